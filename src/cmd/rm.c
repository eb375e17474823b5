#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "cli/cli.h"
#include "cmd/cmd.h"
#include "find/find.h"
#include "hub/local.h"
#include "hub/select.h"
#include "hub/stock.h"
#include "model/locate.h"

struct removal {
    struct find_name name;
    struct hub_cache cache;
    struct hub_listing listing; /* with a tag: of the snapshot, */
    struct hub_choice choice;   /* and what it means there */
    char snapshot[HUB_PATH_BYTES];
    double bytes;
};

static int not_here(const struct removal *r, const char *what, struct mo_error *error) {
    return mo_error_set(error, MO_E_NOT_FOUND, "%s%s is not in the Hugging Face cache at %s", r->name.repository, what,
                        r->cache.folder);
}

/* The shards of the GGUF model that the tag calls. */
static int choose_files(struct removal *r, const char *revision, struct mo_error *error) {
    int code = model_locate(r->name.repository, revision, r->snapshot, sizeof r->snapshot, error);
    if (!code) code = hub_local_list(&r->listing, r->snapshot, error);
    if (code) return code;
    if (!hub_choose(&r->listing, r->name.tag, &r->choice))
        return mo_error_set(error, MO_E_NOT_FOUND, "%s has no GGUF file called %s", r->snapshot, r->name.tag);
    const struct hub_patterns patterns = {.include = &r->choice.path, .n_include = 1};
    r->bytes = (double)r->choice.size;
    return hub_select(&r->listing, &patterns, r->name.repository, error);
}

static int look(struct removal *r, const char *model, const char *revision, struct mo_error *error) {
    int code = find_read_name(&r->name, model, error);
    if (!code) code = hub_cache_open(&r->cache, r->name.repository, error);
    if (code) return code;
    if (!file_is_directory(r->cache.repository)) return not_here(r, "", error);
    if (*r->name.tag) return choose_files(r, revision, error);
    if (revision)
        return mo_error_set(error, MO_E_INVALID, "--revision says where a GGUF file is looked for: %s:Q4_K_M",
                            r->name.repository);
    r->bytes = (double)hub_stock_bytes(&r->cache);
    return 0;
}

/* Only "y" is yes. */
static int ask(const struct removal *r, struct mo_error *error) {
    char answer[16] = "";
    if (!isatty(STDIN_FILENO))
        return mo_error_set(error, MO_E_INVALID, "%s, %.2f GB: nobody is here to ask, --yes takes it away",
                            r->name.repository, r->bytes / 1e9);
    fprintf(stderr, "take %s%s%s (%.2f GB) out of %s? y/N ", r->name.repository, r->choice.path ? ", " : "",
            r->choice.path ? r->choice.path : "", r->bytes / 1e9, r->cache.folder);
    if (fgets(answer, sizeof answer, stdin) && (answer[0] == 'y' || answer[0] == 'Y')) return 0;
    return mo_error_set(error, MO_E_CANCELLED, "nothing was taken away");
}

static int take_out(struct removal *r, bool is_sure, struct mo_error *error) {
    int code = is_sure ? 0 : ask(r, error);
    if (!code) {
        code = *r->name.tag ? hub_stock_remove_files(&r->cache, r->snapshot, &r->listing, error)
                            : hub_stock_remove(&r->cache, error);
    }
    if (!code)
        fprintf(stderr, "%s%s%s: %.2f GB taken away\n", r->name.repository, r->choice.path ? ", " : "",
                r->choice.path ? r->choice.path : "", r->bytes / 1e9);
    return code;
}

int cmd_rm(int argc, char **argv) {
    const char *model = NULL, *revision = NULL;
    bool is_sure = false;
    const struct cli_flag flags[] = {
        {.names = "--yes,-y", .type = CLI_FLAG, .target = &is_sure, .help = "do not ask"},
        {.names = "--revision",
         .type = CLI_STRING,
         .target = &revision,
         .value = "REV",
         .help = "where a GGUF file is looked for: branch, tag or commit (default main)"},
        {0},
    };
    const struct cli_command command = {
        .name = "rm",
        .arguments = "org/name[:Q4_K_M] [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about = "Takes a model out of the Hugging Face cache: all of it, or of GGUF files the one that is called so. "
                 "Nothing outside\nof the cache is touched, whatever links there are. Exit status: 0 it is gone, 1 "
                 "failure, 2 wrong usage, 130 not wanted.",
        .examples = "  moebius list\n  moebius rm org/name-GGUF:Q8_0",
    };
    struct mo_error error = {0};
    struct removal removal = {0};
    int n, code = cli_parse(&command, argc, argv, &model, &n, &error);
    if (code > 0) return 0;
    if (!code && !n) code = mo_error_set(&error, MO_E_INVALID, "no org/name given (--help shows how)");
    if (!code) code = look(&removal, model, revision, &error);
    if (!code) code = take_out(&removal, is_sure, &error);
    hub_list_free(&removal.listing);
    return code ? cli_fail("rm", &error) : 0;
}
