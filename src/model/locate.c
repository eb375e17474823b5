#include "model/locate.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

__attribute__((format(printf, 4, 5))) static int format_path(char *path, size_t path_size, struct mo_error *error,
                                                             const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(path, path_size, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= path_size) return mo_error_set(error, MO_E_INVALID, "path of the model is too long");
    return 0;
}

int model_hub_home(char *path, size_t path_size, struct mo_error *error) {
    const char *home = getenv("HF_HOME"), *cache = getenv("XDG_CACHE_HOME"), *user = getenv("HOME");
    if (home && *home) return format_path(path, path_size, error, "%s", home);
    if (cache && *cache) return format_path(path, path_size, error, "%s/huggingface", cache);
    if (user && *user) return format_path(path, path_size, error, "%s/.cache/huggingface", user);
    return mo_error_set(error, MO_E_NOT_FOUND, "no Hugging Face cache: set HF_HOME or HOME");
}

int model_hub_cache(char *path, size_t path_size, struct mo_error *error) {
    char home[3000];
    const char *hub = getenv("HF_HUB_CACHE");
    if (hub && *hub) return format_path(path, path_size, error, "%s", hub);
    int code = model_hub_home(home, sizeof home, error);
    return code ? code : format_path(path, path_size, error, "%s/hub", home);
}

bool model_is_repository(const char *model) {
    const char *slash = strchr(model, '/');
    if (!slash || slash == model || !slash[1] || strchr(slash + 1, '/')) return false;
    return model[0] != '.' && slash[1] != '.' && !strstr(model, "..");
}

/* A folder's name: what a ref says could lead anywhere, and one that a full disk has cut short to nothing, to all snapshots. */
static bool is_commit(const char *name) {
    return *name && *name != '.' && !strchr(name, '/');
}

/* CACHE/models--org--name/snapshots/COMMIT, where refs/REVISION holds the commit unless REVISION is one itself. */
static int locate(const char *model, const char *revision, char *path, size_t path_size, struct mo_error *error) {
    char cache[3000], repository[3500], refs[4096];
    int code = model_hub_cache(cache, sizeof cache, error);
    if (code) return code;
    const char *slash = strchr(model, '/');
    code = format_path(repository, sizeof repository, error, "%s/models--%.*s--%s", cache, (int)(slash - model), model,
                       slash + 1);
    if (code) return code;
    code = format_path(refs, sizeof refs, error, "%s/refs/%s", repository, revision);
    if (code) return code;
    char *commit = NULL;
    size_t size;
    if (file_exists(refs) && file_read(refs, 200, &commit, &size, NULL) == 0) commit[strcspn(commit, "\r\n ")] = 0;
    const bool is_named = is_commit(commit ? commit : revision);
    code = format_path(path, path_size, error, "%s/snapshots/%s", repository, commit ? commit : revision);
    free(commit);
    if (code) return code;
    if (is_named && file_is_directory(path)) return 0;
    bool is_main = strcmp(revision, "main") == 0;
    return mo_error_set(error, MO_E_NOT_FOUND,
                        "model %s (revision %s) is neither a folder nor in the Hugging Face cache at %s; get it with: "
                        "moebius pull %s%s%s (or huggingface-cli download)",
                        model, revision, cache, model, is_main ? "" : " --revision ", is_main ? "" : revision);
}

int model_locate(const char *model, const char *revision, char *path, size_t path_size, struct mo_error *error) {
    if (revision && (strstr(revision, "..") || revision[0] == '/')) {
        return mo_error_set(error, MO_E_INVALID, "--revision %s: not a branch, tag or commit", revision);
    }
    return locate(model, revision ? revision : "main", path, path_size, error);
}
