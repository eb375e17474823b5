#include "find/pull.h"

#include <stdio.h>
#include "cli/cli.h"
#include "cmd/cmd.h"
#include "find/find.h"

struct command_line {
    struct pull_wish wish;
    struct cli_list include, exclude;
    bool is_json;
    struct find_name name;
    struct hub_choice choice; /* that the name's tag calls */
};

/* Of GGUF files one is a whole model: who pulls says which. */
static int ask_which(void *context, const struct hub_pull *pull, struct hub_patterns *patterns,
                     struct mo_error *error) {
    struct command_line *c = context;
    const bool is_called = *c->name.tag && !patterns->n_include;
    if (is_called && hub_choose(&pull->listing, c->name.tag, &c->choice)) {
        patterns->include = &c->choice.path;
        patterns->n_include = 1;
        return 0;
    }
    if (is_called && !hub_has_choices(&pull->listing))
        return mo_error_set(error, MO_E_NOT_FOUND, "%s has no GGUF file called %s", pull->model, c->name.tag);
    if (patterns->n_include || !hub_has_choices(&pull->listing)) return 0;
    int code = pull_print_choices(pull, c->is_json, error);
    return code ? code : mo_error_set(error, MO_E_INVALID, "%s: say which files, with --include", pull->model);
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

static int say_done(void *context, const struct hub_pull *pull, const struct pull_view *view, const char *path,
                    struct mo_error *error) {
    const struct command_line *c = context;
    if (c->is_json) return pull_print_json(view, pull, path, c->wish.is_dry, error);
    if (c->wish.is_dry) {
        pull_print_plan(view, pull);
        return 0;
    }
    pull_view_done(view, pull);
    print_models(&pull->listing, path);
    return 0;
}

int cmd_pull(int argc, char **argv) {
    struct command_line c = {
        .wish = {.connections = PULL_CONNECTIONS, .retries = PULL_RETRIES, .stall_s = PULL_STALL_S}};
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--revision", .type = CLI_STRING, .target = &c.wish.revision, .value = "REV", .help = "branch, tag or commit (default main)"},
        {.names = "--include", .type = CLI_LIST, .target = &c.include, .value = "GLOB",
         .help = "these files, not those that Moebius needs; may be given several times. Without\n* ? [ any name that holds it: Q4_K_M. Shards come together"},
        {.names = "--exclude", .type = CLI_LIST, .target = &c.exclude, .value = "GLOB", .help = "not these; may be given several times"},
        {.names = "--hf-token,-hft", .type = CLI_STRING, .target = &c.wish.token, .value = "TOKEN",
         .help = "instead of HF_TOKEN; other users of the machine can see it here"},
        {.names = "--dry-run", .type = CLI_FLAG, .target = &c.wish.is_dry, .help = "only say which files, their sizes, and what is here already"},
        {.names = "--json", .type = CLI_FLAG, .target = &c.is_json, .help = "for programs"},
        {.names = "--connections", .type = CLI_INT, .target = &c.wish.connections, .min = 1, .max = 32, .value = "N", .help = "files at once (default 4)"},
        {.names = "--retries", .type = CLI_INT, .target = &c.wish.retries, .min = 0, .max = 1000, .value = "N",
         .help = "tries of a file that bring not a byte (default 12), with growing pauses"},
        {.names = "--timeout", .type = CLI_INT, .target = &c.wish.stall_s, .min = 1, .max = 3600, .value = "S", .help = "without a byte, then the connection is given up (default 60)"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "pull",
        .arguments = "org/name[:Q4_K_M] [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about =
            "Downloads a model from the Hugging Face hub into its cache, where `moebius run org/name` and Python's\n"
            "programs find it: weights (*.safetensors), configuration, tokenizer, chat template, licence. Of GGUF\n"
            "files say which one: org/name:Q4_K_M. What was begun, here or by Python's programs, is gone on with: "
            "after\n"
            "ctrl-C, a crash or a cut connection the same command goes on. Every file's hash is compared with the "
            "hub's.\n"
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
    int n;
    int code = cli_parse(&command, argc, argv, &c.wish.model, &n, &error);
    if (code > 0) return 0;
    if (!code && !n) code = mo_error_set(&error, MO_E_INVALID, "no org/name given (--help shows how)");
    if (!code && !find_read_name(&c.name, c.wish.model, NULL))
        c.wish.model = c.name.repository; /* else it is refused below */
    c.wish.patterns = (struct hub_patterns){
        .include = c.include.items, .n_include = c.include.n, .exclude = c.exclude.items, .n_exclude = c.exclude.n};
    c.wish.choose = ask_which;
    c.wish.done = say_done;
    c.wish.context = &c;
    if (!code) code = pull_run(&c.wish, &error);
    return code ? cli_fail("pull", &error) : 0;
}
