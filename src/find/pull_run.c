#include "find/pull.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "hub/settings.h"
#include "model/locate.h"

enum { MOST_CHANGES = 2 };

static atomic_bool *g_stop;
static volatile sig_atomic_t g_signal;

/* The first one ends the transfers in order; a second ends the program, which loses nothing either. */
static void on_signal(int number) {
    g_signal = number;
    atomic_store(g_stop, true);
}

static const int watched[] = {SIGINT, SIGTERM};
enum { N_WATCHED = sizeof watched / sizeof *watched };

static void watch_signals(struct hub_pull *pull, struct sigaction before[N_WATCHED]) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    g_stop = &pull->stop;
    g_signal = 0;
    for (int i = 0; i < N_WATCHED; i++) sigaction(watched[i], &action, &before[i]);
}

/* The flag that the handler sets goes away. */
static void leave_signals(const struct sigaction before[N_WATCHED]) {
    for (int i = 0; i < N_WATCHED; i++) sigaction(watched[i], &before[i], NULL);
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
static int prepare(struct hub_pull *pull, const struct pull_wish *wish, struct pull_view *view,
                   struct mo_error *error) {
    struct hub_patterns patterns = wish->patterns;
    int code = hub_pull_list(pull, error);
    if (!code && wish->choose) code = wish->choose(wish->context, pull, &patterns, error);
    if (!code) code = hub_select(&pull->listing, &patterns, pull->model, error);
    if (code) return code;
    view->is_judged = wish->judge != NULL;
    pull_view_begin(view, pull);
    return 0;
}

/* Small files first, where these say whether the others are wanted. */
static int bring(struct hub_pull *pull, const struct pull_wish *wish, const struct pull_view *view,
                 struct mo_error *error) {
    int code = check_space(view, pull, error);
    if (!code && wish->judge) {
        code = hub_pull_files(pull, HUB_BESIDE_WEIGHTS, error);
        pull_view_end(view);
        if (!code) code = wish->judge(wish->context, pull, error);
    }
    return code ? code : hub_pull_files(pull, HUB_ALL, error);
}

/* The files, then their names in the snapshot. Lists again when the hub has meanwhile another content. */
static int download(struct hub_pull *pull, const struct pull_wish *wish, struct pull_view *view,
                    struct mo_error *error) {
    for (int n = 0;; n++) {
        int code = bring(pull, wish, view, error);
        pull_view_end(view);
        if (!code) return hub_cache_link(&pull->cache, &pull->listing, pull->revision, error);
        if (!pull->has_changed || n == MOST_CHANGES) return code;
        atomic_store(&pull->stop, false);
        if (g_signal) return code; /* looked at last: a handler that comes later sets `stop` again */
        pull_view_note(view, "the repository has changed at the hub meanwhile; looking again");
        atomic_store(&pull->n_there, 0);
        atomic_store(&pull->n_files_done, 0);
        code = prepare(pull, wish, view, error);
        if (code) return code;
    }
}

static int run(struct hub_pull *pull, const struct pull_wish *wish, struct mo_error *error) {
    struct pull_view view = {0};
    char path[HUB_PATH_BYTES];
    const char *offline = hub_offline();
    pull->context = &view;
    if (offline) return mo_error_set(error, MO_E_UNSUPPORTED, "HF_HUB_OFFLINE=%s: nothing is downloaded", offline);
    if (pull->site.token && !hub_shows_token(&pull->site))
        pull_view_note(&view, "the token is not sent: HF_ENDPOINT is plain http");
    int code = hub_cache_open(&pull->cache, pull->model, error);
    if (!code) code = prepare(pull, wish, &view, error);
    if (!code && !wish->is_dry) code = download(pull, wish, &view, error);
    if (!code) {
        snprintf(path, sizeof path, "%s/snapshots/%s", pull->cache.repository, pull->listing.commit);
        return wish->done(wish->context, pull, &view, path, error);
    }
    if (!g_signal) return code;
    return mo_error_set(error, MO_E_CANCELLED, "stopped: %.3f of %.3f GB are here, and the same command goes on",
                        (double)atomic_load(&pull->n_there) / 1e9, (double)view.total / 1e9);
}

int pull_run(const struct pull_wish *wish, struct mo_error *error) {
    struct sigaction before[N_WATCHED];
    struct hub_settings settings;
    struct hub_pull *pull = calloc(1, sizeof *pull);
    if (!pull) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    pull->model = wish->model;
    pull->revision = wish->revision ? wish->revision : "main";
    pull->connections = wish->connections;
    pull->retries = wish->retries;
    pull->note = pull_view_note;
    pull->tick = pull_view_tick;
    int code = check_names(pull->model, pull->revision, error);
    if (!code) code = hub_settings_read(&settings, wish->token, error);
    if (!code) {
        pull->site = (struct hub_site){.endpoint = settings.endpoint,
                                       .token = *settings.token ? settings.token : NULL,
                                       .token_place = settings.token_place,
                                       .stall_s = wish->stall_s,
                                       .stop = &pull->stop};
        watch_signals(pull, before);
        code = run(pull, wish, error);
        leave_signals(before);
    }
    hub_list_free(&pull->listing);
    free(pull);
    return code;
}
