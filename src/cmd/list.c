#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/json.h"
#include "base/utf8.h"
#include "cli/cli.h"
#include "cmd/cmd.h"
#include "hub/stock.h"
#include "model/locate.h"

struct list {
    json_t *models; /* for programs; NULL: for people */
    int n;
    double bytes;
};

static const char *const formats[] = {"-", "safetensors", "GGUF"};

static int take_json(struct list *list, const struct hub_model *m) {
    char when[32];
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&m->modified, &utc));
    json_t *file = *m->file ? json_lossy(m->file) : json_null();
    json_t *commit = *m->commit ? json_lossy(m->commit) : json_null(); /* a folder's name: any bytes */
    return json_array_append_new(list->models,
                                 json_pack("{so ss? so so ss sI ss sb so}", "name", json_lossy(m->name), "revision",
                                           *m->revision ? m->revision : NULL, "commit", commit, "file", file, "format",
                                           formats[m->format], "bytes", (json_int_t)m->bytes, "modified", when, "whole",
                                           m->is_whole, "path", json_lossy(m->path)));
}

/* What one types to get it: of several GGUF files, with the file. */
static void print_line(const struct hub_model *m) {
    char name[2000], when[32];
    struct tm local;
    const bool is_main = !*m->revision || !strcmp(m->revision, "main");
    snprintf(name, sizeof name, "%s%s%s%s%s", m->name, is_main ? "" : " --revision ", is_main ? "" : m->revision,
             *m->file ? " --hf-file " : "", m->file);
    utf8_clean(name);
    strftime(when, sizeof when, "%Y-%m-%d %H:%M", localtime_r(&m->modified, &local));
    printf("%-12s %9.2f GB  %s  %-8s %s\n", formats[m->format], (double)m->bytes / 1e9, when,
           m->is_whole ? "whole" : "in part", name);
}

static int take(void *context, const struct hub_model *m, struct mo_error *error) {
    struct list *list = context;
    list->bytes += (double)m->bytes;
    if (!list->models && !list->n) printf("%-12s %12s  %-16s  %-8s MODEL\n", "FORMAT", "SIZE", "CAME", "IS HERE");
    list->n++;
    if (!list->models) {
        print_line(m);
        return 0;
    }
    return take_json(list, m) ? mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list") : 0;
}

static int list_models(bool is_json, struct mo_error *error) {
    char cache[HUB_PATH_BYTES];
    struct list list = {.models = is_json ? json_array() : NULL};
    int code = model_hub_cache(cache, sizeof cache, error);
    if (!code) code = hub_stock_each(cache, take, &list, error);
    if (is_json && !code)
        return json_print(json_pack("{so so}", "cache", json_lossy(cache), "models", list.models), error);
    json_decref(list.models);
    if (!code && !list.n) fprintf(stderr, "no models in %s (moebius pull org/name brings one)\n", cache);
    return code;
}

int cmd_list(int argc, char **argv) {
    bool is_json = false;
    const struct cli_flag flags[] = {
        {.names = "--json", .type = CLI_FLAG, .target = &is_json, .help = "for programs"},
        {0},
    };
    const struct cli_command command = {
        .name = "list",
        .arguments = "[flags]",
        .flags = flags,
        .about = "Says which models the Hugging Face cache has, whoever has brought them: what their weights are, what "
                 "they take,\nsince when, and whether all of their weights are here. `moebius ls` is the same.",
    };
    struct mo_error error = {0};
    int n, code = cli_parse(&command, argc, argv, NULL, &n, &error);
    if (code > 0) return 0;
    if (!code) code = list_models(is_json, &error);
    return code ? cli_fail("list", &error) : 0;
}
