/* tests/fuzz/fuzz_overrides.c - what config.json is told otherwise: up to the first NUL --hf-overrides, up to the next --override-kv, then
 * config.json. What is taken leaves JSON, and says the same when it is said once more. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "model/overrides.h"
#include "require.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A copy of what is up to the next NUL; *at moves behind that. */
static char *next_text(const char **at, const char *end) {
    const char *nul = memchr(*at, 0, (size_t)(end - *at));
    char *text = strndup(*at, (size_t)((nul ? nul : end) - *at));
    require(text);
    *at = nul ? nul + 1 : end;
    return text;
}

static void apply(const struct overrides *overrides, const char *config, size_t size) {
    struct mo_error error = {0};
    json_t *changes = NULL, *root = NULL;
    char *text = strndup(config, size);
    require(text);
    size = strlen(text);
    int code = overrides_apply(overrides, &text, &size, "config.json", &changes, &error);
    if (code) {
        require(error.code == code && error.message[0] && !changes);
    } else {
        json_decref(changes);
        require(json_parse(text, size, "config.json", &root, &error) == 0);
        json_decref(root);
        require(overrides_apply(overrides, &text, &size, "config.json", &changes, &error) == 0);
        require(json_array_size(changes) == 0);
        json_decref(changes);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *at = (const char *)data, *end = at + size;
    struct overrides *overrides = NULL;
    struct mo_error error = {0};
    char *json = next_text(&at, end), *kv = next_text(&at, end);
    const char *const list[] = {kv};
    int code = overrides_read(&overrides, *json ? json : NULL, list, *kv != 0, &error);
    require(!code || (error.code == code && error.message[0] && !overrides));
    if (overrides) apply(overrides, at, (size_t)(end - at));
    overrides_free(overrides);
    free(json);
    free(kv);
    return 0;
}
