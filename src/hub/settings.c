#include "hub/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/file.h"
#include "model/locate.h"

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static int read_endpoint(struct hub_settings *settings, struct mo_error *error) {
    const char *endpoint = variable("HF_ENDPOINT");
    if (!endpoint) endpoint = "https://huggingface.co";
    size_t n = strlen(endpoint);
    while (n && endpoint[n - 1] == '/') n--;
    if (strncasecmp(endpoint, "https://", 8) && strncasecmp(endpoint, "http://", 7))
        return mo_error_set(error, MO_E_INVALID, "HF_ENDPOINT=%s: expected https://...", endpoint);
    if (n >= sizeof settings->endpoint) return mo_error_set(error, MO_E_INVALID, "HF_ENDPOINT is too long");
    memcpy(settings->endpoint, endpoint, n);
    settings->endpoint[n] = 0;
    return 0;
}

/* It becomes a line of a request: nothing but visible characters may be in it. */
static int take_token(struct hub_settings *settings, const char *text, const char *place, struct mo_error *error) {
    static const char blanks[] = " \t\r\n";
    text += strspn(text, blanks);
    size_t n = strlen(text);
    while (n && strchr(blanks, text[n - 1])) n--;
    for (size_t i = 0; i < n; i++) {
        if (text[i] <= ' ' || text[i] > '~' || n >= sizeof settings->token)
            return mo_error_set(error, MO_E_INVALID, "%s: not a token of the hub (hf_...)", place);
    }
    memcpy(settings->token, text, n);
    settings->token[n] = 0;
    snprintf(settings->token_place, sizeof settings->token_place, "%s", place);
    return 0;
}

static int read_token(struct hub_settings *settings, struct mo_error *error) {
    static const char *const names[] = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"};
    char home[3000], path[3100], *text = NULL;
    const char *given = variable("HF_TOKEN_PATH");
    size_t size;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (variable(names[i])) return take_token(settings, variable(names[i]), names[i], error);
    if (!given && model_hub_home(home, sizeof home, NULL)) return 0;
    if (given)
        snprintf(path, sizeof path, "%s", given);
    else
        snprintf(path, sizeof path, "%s/token", home);
    if (!file_exists(path)) return 0;
    int code = file_read(path, 10000, &text, &size, error);
    if (!code) code = take_token(settings, text, path, error);
    free(text);
    return code;
}

int hub_settings_read(struct hub_settings *settings, const char *token, struct mo_error *error) {
    memset(settings, 0, sizeof *settings);
    int code = read_endpoint(settings, error);
    if (!code && token) return take_token(settings, token, "--hf-token", error);
    return code ? code : read_token(settings, error);
}

const char *hub_offline(void) {
    const char *offline = variable("HF_HUB_OFFLINE");
    return offline && strchr("1YyTt", *offline) ? offline : NULL;
}
