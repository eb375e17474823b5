#include "find/find.h"

#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "find/pull.h"
#include "find/fits.h"
#include "hub/local.h"
#include "hub/settings.h"
#include "model/locate.h"

size_t find_model_flags(struct find_flags *hub, const char **model, const char **revision, struct cli_flag *flags) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "--revision", .type = CLI_STRING, .target = revision, .value = "REV",
         .help = "branch, tag or commit at the Hugging Face hub (default main)"},
        {.names = "--hf-repo,-hf,-hfr", .type = CLI_STRING, .target = model, .given = &hub->is_repository, .value = "org/name[:Q]",
         .help = "a MODEL of the Hugging Face hub, of GGUF files the one called Q\n(default Q4_K_M, else the first); MODEL may be that, too"},
        {.names = "--hf-file,-hff", .type = CLI_STRING, .target = &hub->file, .value = "FILE", .help = "of that repository this GGUF file"},
        {.names = "--hf-token,-hft", .type = CLI_STRING, .target = &hub->token, .value = "TOKEN",
         .help = "instead of HF_TOKEN; other users of the machine can see it here"},
        {.names = "--offline", .type = CLI_FLAG, .target = &hub->is_offline,
         .help = "fetch nothing: MODEL is here, or refused (as HF_HUB_OFFLINE=1)"},
    };
    /* clang-format on */
    const size_t n = sizeof table / sizeof *table;
    memcpy(flags, table, sizeof table);
    return n;
}

/* ---- what is asked for ---- */

enum { IN_PART = 1 };

int find_read_name(struct find_name *name, const char *model, struct mo_error *error) {
    static const char *const hosts[] = {"https://huggingface.co/", "huggingface.co/", "hf.co/"};
    const char *at = model;
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts && at == model; i++)
        if (!strncmp(model, hosts[i], strlen(hosts[i]))) at += strlen(hosts[i]);
    size_t n = strcspn(at, ":");
    snprintf(name->repository, sizeof name->repository, "%.*s", (int)(n < 400 ? n : 400), at);
    int m = snprintf(name->tag, sizeof name->tag, "%s", at[n] ? at + n + 1 : "");
    bool is_all = n < sizeof name->repository && m < (int)sizeof name->tag;
    if (is_all && model_is_repository(name->repository) && (!at[n] || at[n + 1])) return 0;
    return mo_error_set(error, MO_E_NOT_FOUND, "%s: no such model folder or file (and not an org/name)", model);
}

struct finding {
    const struct find_request *request;
    struct find_name name;
    char *path;
    size_t path_size;
    struct hub_choice choice; /* at the hub */
};

static const char *tag_of(const struct finding *f) {
    return *f->name.tag ? f->name.tag : NULL;
}

/* One of its GGUF files, rather than the folder; false: there is none that is meant. */
static bool choose_file(const struct finding *f, const struct hub_listing *listing, struct hub_choice *choice) {
    const char *file = f->request->hub->file;
    if (!file) return hub_choose(listing, tag_of(f), choice);
    for (int at = 0; hub_next_choice(listing, &at, choice);)
        if (!strcmp(choice->path, file)) return true;
    return false;
}

static bool wants_file(const struct finding *f, const struct hub_listing *listing) {
    return f->request->hub->file || tag_of(f) || hub_has_choices(listing);
}

static int set_path(const struct finding *f, const char *snapshot, const char *file, struct mo_error *error) {
    int n = snprintf(f->path, f->path_size, "%s%s%s", snapshot, file ? "/" : "", file ? file : "");
    if (n >= 0 && (size_t)n < f->path_size) return 0;
    return mo_error_set(error, MO_E_INVALID, "path of the model is too long");
}

/* ---- what is here ---- */

/* The folder or file of a snapshot, if all that is needed is in it. */
static bool look_at(const struct finding *f, const char *snapshot, const struct hub_listing *listing) {
    struct hub_choice choice;
    if (wants_file(f, listing))
        return choose_file(f, listing, &choice) && choice.is_whole && !set_path(f, snapshot, choice.path, NULL);
    bool is_enough = (f->request->need == FIND_TEXT && hub_local_has(listing, "tokenizer.json")) ||
                     (f->request->need == FIND_CONFIG && hub_local_has(listing, "config.json")) ||
                     hub_local_is_whole(listing, snapshot);
    return is_enough && !set_path(f, snapshot, NULL, NULL);
}

/* IN_PART: `path` is where. */
static int look_in_cache(const struct finding *f, struct mo_error *error) {
    char snapshot[HUB_PATH_BYTES];
    struct hub_listing listing;
    int code = model_locate(f->name.repository, f->request->revision, snapshot, sizeof snapshot, error);
    if (code) return code;
    code = hub_local_list(&listing, snapshot, error);
    if (!code && !look_at(f, snapshot, &listing)) code = set_path(f, snapshot, NULL, error) ? MO_E_INVALID : IN_PART;
    hub_list_free(&listing);
    return code;
}

/* ---- what is fetched ---- */

static const char *const weights[] = {"*.safetensors", "*.gguf"};

/* Names what could have been meant. */
static int no_such_file(const struct finding *f, const struct hub_listing *listing, struct mo_error *error) {
    char names[500] = "";
    size_t used = 0;
    struct hub_choice choice;
    for (int at = 0; hub_next_choice(listing, &at, &choice) && used < sizeof names;)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", choice.path);
    const char *file = f->request->hub->file;
    return mo_error_set(error, MO_E_NOT_FOUND, "%s has no GGUF file %s%s; it has %s", f->name.repository,
                        file ? "" : "called ", file ? file : f->name.tag, used ? names : "none");
}

static int choose(void *context, const struct hub_pull *pull, struct hub_patterns *patterns, struct mo_error *error) {
    struct finding *f = context;
    if (!wants_file(f, &pull->listing)) {
        if (f->request->need < FIND_FILES) {
            patterns->exclude = weights;
            patterns->n_exclude = sizeof weights / sizeof *weights;
        }
        return 0;
    }
    if (f->request->need == FIND_CONFIG)
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "%s holds GGUF files, and what they are is known when one is here: moebius pull %s "
                            "--include Q4_K_M",
                            pull->model, pull->model);
    if (!choose_file(f, &pull->listing, &f->choice)) return no_such_file(f, &pull->listing, error);
    patterns->include = &f->choice.path;
    patterns->n_include = 1;
    return 0;
}

static int judge(void *context, const struct hub_pull *pull, struct mo_error *error) {
    const struct finding *f = context;
    return find_fits(f->request, pull, error);
}

static int done(void *context, const struct hub_pull *pull, const struct pull_view *view, const char *path,
                struct mo_error *error) {
    const struct finding *f = context;
    const char *file = NULL;
    pull_view_done(view, pull);
    for (int i = 0; i < pull->listing.n && !file; i++) {
        const struct hub_file *at = &pull->listing.files[i];
        if (at->is_wanted && hub_is_first_of_gguf(at->path)) file = at->path;
    }
    return set_path(f, path, file, error);
}

static int fetch(struct finding *f, struct mo_error *error) {
    const struct find_request *r = f->request;
    const struct pull_wish wish = {.model = f->name.repository,
                                   .revision = r->revision,
                                   .token = r->hub->token,
                                   .connections = PULL_CONNECTIONS,
                                   .retries = PULL_RETRIES,
                                   .stall_s = PULL_STALL_S,
                                   .choose = choose,
                                   .judge = judge,
                                   .done = done,
                                   .context = f};
    char cache[HUB_PATH_BYTES];
    int code = model_hub_cache(cache, sizeof cache, error);
    if (code) return code;
    code = pull_run(&wish, error);
    if (!code || code == MO_E_CANCELLED) return code;
    return mo_error_prefix(
        error, "%s is neither a folder nor whole in the Hugging Face cache at %s, and is not fetched", r->model, cache);
}

/* Half of a model is opened as it is: that says what is missing. */
static int take_part(const struct finding *f, struct mo_error *error) {
    const char *file = f->request->hub->file;
    if (!file && !tag_of(f)) return 0;
    return mo_error_set(error, MO_E_NOT_FOUND, "%s: no GGUF file %s%s is whole in %s, and nothing is fetched offline",
                        f->request->model, file ? "" : "called ", file ? file : tag_of(f), f->path);
}

int find_model(const struct find_request *r, char *path, size_t path_size, struct mo_error *error) {
    struct finding f = {.request = r, .path = path, .path_size = path_size};
    if (!r->hub->is_repository && file_exists(r->model)) {
        if (!r->hub->file) return set_path(&f, r->model, NULL, error);
        return mo_error_set(error, MO_E_INVALID, "--hf-file %s goes with org/name, and %s is here", r->hub->file,
                            r->model);
    }
    int code = find_read_name(&f.name, r->model, error);
    if (code) return code;
    code = look_in_cache(&f, error);
    if (code != IN_PART && code != MO_E_NOT_FOUND) return code;
    if (!r->hub->is_offline && !hub_offline()) return fetch(&f, error);
    return code == IN_PART ? take_part(&f, error) : code;
}
