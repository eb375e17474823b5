#include "cmd_pull.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "cli.h"
#include "cmd.h"
#include "base/clock.h"
#include "hub/select.h"
#include "hub/settings.h"
#include "model/locate.h"

enum { STOPPED = 130, MOST_CHANGES = 2 };

struct command_line {
    const char *revision;
    struct cli_list include, exclude;
    bool is_dry, is_json;
    int connections, retries, stall_s;
};

static atomic_bool *g_stop;
static volatile sig_atomic_t g_signal;

/* The first one ends the transfers in order; a second ends the program, which loses nothing either. */
static void on_signal(int number) {
    g_signal = number;
    atomic_store(g_stop, true);
}

static void watch_signals(struct hub_pull *pull) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    g_stop = &pull->stop;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Both become parts of URLs and of paths. */
static int check_names(const char *model, const char *revision, struct mo_error *error) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./";
    if (!model_is_repository(model) || strlen(model) > 200 || model[strspn(model, plain)])
        return mo_error_set(error, MO_E_INVALID, "%s: expected org/name, as the hub's pages show it", model);
    if (!hub_path_is_safe(revision, strlen(revision)) || strstr(revision, "..") || strlen(revision) > 200)
        return mo_error_set(error, MO_E_INVALID, "--revision %s: not a branch, tag or commit", revision);
    return 0;
}

static int check_space(const struct pull_view *view, const struct hub_pull *pull, struct mo_error *error) {
    int64_t left = hub_cache_free_bytes(&pull->cache), need = view->total - view->was_there;
    if (left < 0 || need <= left) return 0;
    return mo_error_set(
        error, MO_E_IO,
        "%s needs %.2f GB more, and the disk of %s has %.2f GB free (HF_HUB_CACHE=FOLDER puts the cache "
        "somewhere else); nothing was downloaded",
        pull->model, (double)need / 1e9, pull->cache.folder, (double)left / 1e9);
}

/* What is listed, and chosen of it. */
static int prepare(struct hub_pull *pull, const struct command_line *c, struct pull_view *view,
                   struct mo_error *error) {
    const struct hub_patterns patterns = {
        .include = c->include.items, .n_include = c->include.n, .exclude = c->exclude.items, .n_exclude = c->exclude.n};
    int code = hub_pull_list(pull, error);
    if (code) return code;
    if (!c->include.n && hub_has_choices(&pull->listing)) {
        code = pull_print_choices(pull, c->is_json, error);
        return code ? code : mo_error_set(error, MO_E_INVALID, "%s: say which files, with --include", pull->model);
    }
    code = hub_select(&pull->listing, &patterns, pull->model, error);
    if (code) return code;
    pull_view_begin(view, pull);
    return 0;
}

/* The files, then their names in the snapshot. Lists again when the hub has meanwhile another content. */
static int download(struct hub_pull *pull, const struct command_line *c, struct pull_view *view,
                    struct mo_error *error) {
    for (int n = 0;; n++) {
        int code = check_space(view, pull, error);
        if (!code) code = hub_pull_files(pull, error);
        pull_view_end(view);
        if (!code) return hub_cache_link(&pull->cache, &pull->listing, pull->revision, error);
        if (!pull->has_changed || n == MOST_CHANGES) return code;
        atomic_store(&pull->stop, false);
        if (g_signal) return code; /* looked at last: a handler that comes later sets `stop` again */
        pull_view_note(view, "the repository has changed at the hub meanwhile; looking again");
        atomic_store(&pull->n_there, 0);
        atomic_store(&pull->n_files_done, 0);
        code = prepare(pull, c, view, error);
        if (code) return code;
    }
}

/* What `moebius run` takes: the snapshot, or its GGUF files (of shards the first). */
static void print_models(const struct hub_listing *listing, const char *path) {
    int n = 0;
    for (int i = 0; i < listing->n; i++) {
        const struct hub_file *file = &listing->files[i];
        if (!file->is_wanted || !hub_is_first_of_gguf(file->path)) continue;
        printf("%s/%s\n", path, file->path);
        n++;
    }
    if (!n) puts(path);
}

static int say_done(const struct hub_pull *pull, const struct pull_view *view, const char *path, bool is_json,
                    struct mo_error *error) {
    double received = (double)atomic_load(&pull->n_received), seconds = clock_now_s() - view->start_s;
    if (is_json) return pull_print_json(view, pull, path, false, error);
    if (received > 0)
        fprintf(stderr, "%s: %d files, %.3f GB, %.3f GB of them now, in %.1f s (%.1f MB/s); hashes are right\n",
                pull->model, view->n_files, (double)view->total / 1e9, received / 1e9, seconds,
                received / 1e6 / (seconds > 0 ? seconds : 1));
    else
        fprintf(stderr, "%s: %d files, %.3f GB, all here already\n", pull->model, view->n_files,
                (double)view->total / 1e9);
    print_models(&pull->listing, path);
    return 0;
}

static int run(struct hub_pull *pull, const struct command_line *c, struct mo_error *error) {
    struct pull_view view = {0};
    char path[HUB_PATH_BYTES];
    const char *offline = getenv("HF_HUB_OFFLINE");
    pull->context = &view;
    if (offline && strchr("1YyTt", *offline) && *offline)
        return mo_error_set(error, MO_E_UNSUPPORTED, "HF_HUB_OFFLINE=%s: nothing is downloaded", offline);
    if (pull->site.token && !hub_shows_token(&pull->site))
        pull_view_note(&view, "the token is not sent: HF_ENDPOINT is plain http");
    int code = hub_cache_open(&pull->cache, pull->model, error);
    if (!code) code = prepare(pull, c, &view, error);
    if (code) return code;
    snprintf(path, sizeof path, "%s/snapshots/%s", pull->cache.repository, pull->listing.commit);
    if (c->is_dry) {
        if (c->is_json) return pull_print_json(&view, pull, path, true, error);
        pull_print_plan(&view, pull);
        return 0;
    }
    code = download(pull, c, &view, error);
    snprintf(path, sizeof path, "%s/snapshots/%s", pull->cache.repository, pull->listing.commit);
    if (!code) return say_done(pull, &view, path, c->is_json, error);
    if (!g_signal) return code;
    return mo_error_set(error, MO_E_CANCELLED, "stopped: %.3f of %.3f GB are here, and the same command goes on",
                        (double)atomic_load(&pull->n_there) / 1e9, (double)view.total / 1e9);
}

static int start(const char *model, const struct command_line *c, struct mo_error *error) {
    struct hub_settings settings;
    struct hub_pull *pull = calloc(1, sizeof *pull);
    if (!pull) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    pull->model = model;
    pull->revision = c->revision;
    pull->connections = c->connections;
    pull->retries = c->retries;
    pull->note = pull_view_note;
    pull->tick = pull_view_tick;
    int code = check_names(model, c->revision, error);
    if (!code) code = hub_settings_read(&settings, error);
    if (!code) {
        pull->site = (struct hub_site){.endpoint = settings.endpoint,
                                       .token = *settings.token ? settings.token : NULL,
                                       .token_place = settings.token_place,
                                       .stall_s = c->stall_s,
                                       .stop = &pull->stop};
        watch_signals(pull);
        code = run(pull, c, error);
        signal(SIGINT, SIG_DFL); /* the flag that the handler sets goes away */
        signal(SIGTERM, SIG_DFL);
    }
    hub_list_free(&pull->listing);
    free(pull);
    return code;
}

int cmd_pull(int argc, char **argv) {
    struct command_line c = {.revision = "main", .connections = 4, .retries = 12, .stall_s = 60};
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--revision", .type = CLI_STRING, .target = &c.revision, .value = "REV", .help = "branch, tag or commit (default main)"},
        {.names = "--include", .type = CLI_LIST, .target = &c.include, .value = "GLOB",
         .help = "these files, not those that Moebius needs; may be given several times. Without\n* ? [ any name that holds it: Q4_K_M. Shards come together"},
        {.names = "--exclude", .type = CLI_LIST, .target = &c.exclude, .value = "GLOB", .help = "not these; may be given several times"},
        {.names = "--dry-run", .type = CLI_FLAG, .target = &c.is_dry, .help = "only say which files, their sizes, and what is here already"},
        {.names = "--json", .type = CLI_FLAG, .target = &c.is_json, .help = "for programs"},
        {.names = "--connections", .type = CLI_INT, .target = &c.connections, .min = 1, .max = 32, .value = "N", .help = "files at once (default 4)"},
        {.names = "--retries", .type = CLI_INT, .target = &c.retries, .min = 0, .max = 1000, .value = "N",
         .help = "tries of a file that bring not a byte (default 12), with growing pauses"},
        {.names = "--timeout", .type = CLI_INT, .target = &c.stall_s, .min = 1, .max = 3600, .value = "S", .help = "without a byte, then the connection is given up (default 60)"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "pull",
        .arguments = "org/name [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about =
            "Downloads a model from the Hugging Face hub into its cache, where `moebius run org/name` and Python's\n"
            "programs find it: weights (*.safetensors), configuration, tokenizer, chat template, licence. Of GGUF\n"
            "files say which one. What was begun, here or by Python's programs, is gone on with: after ctrl-C, a\n"
            "crash or a cut connection the same command goes on. Every file's hash is compared with the hub's.\n"
            "HF_HUB_CACHE or HF_HOME say where, HF_TOKEN (or the file that huggingface-cli login writes) who, and\n"
            "HF_ENDPOINT another hub; https_proxy and NO_PROXY are used, SSL_CERT_FILE for an authority of your own.\n"
            "The snapshot's folder (or the GGUF file in it) goes to standard output. Exit status: 0 all is here, 1 "
            "failure, 2 wrong usage\n"
            "(or a choice of GGUF files to make), 130 stopped.",
        .examples = "  moebius pull deepseek-ai/DeepSeek-V2-Lite-Chat\n"
                    "  moebius pull deepseek-ai/DeepSeek-V3 --dry-run\n"
                    "  moebius pull org/name-GGUF --include Q4_K_M",
    };
    struct mo_error error = {0};
    const char *model = NULL;
    int n;
    int code = cli_parse(&command, argc, argv, &model, &n, &error);
    if (code > 0) return 0;
    if (!code && !n) code = mo_error_set(&error, MO_E_INVALID, "no org/name given (--help shows how)");
    if (!code) code = start(model, &c, &error);
    if (!code) return 0;
    int status = cli_fail("pull", &error);
    return g_signal ? STOPPED : status;
}
