/* find/pull.h - one pull, for `moebius pull` and for whoever needs a model that is not here yet (find/find.h): find/pull_run.c does it;
 * find/pull_view.c says how far it is, notes, tables, JSON. */
#ifndef MOEBIUS_FIND_PULL_H
#define MOEBIUS_FIND_PULL_H

#include <stdbool.h>
#include "hub/pull.h"
#include "hub/select.h"

struct pull_view {
    bool is_terminal;
    bool is_judged;    /* who pulls says what fits */
    int64_t total;     /* bytes of wanted files */
    int64_t was_there; /* of them, at the start */
    int n_files;
    double start_s, shown_s, speed; /* bytes/s, of the last seconds */
    long long shown_received;
};

/* Before it starts, from the listing. */
void pull_view_begin(struct pull_view *view, const struct hub_pull *pull);
/* For struct hub_pull: `context` is the view. */
void pull_view_note(void *view, const char *line);
void pull_view_tick(void *view, const struct hub_pull *pull);
void pull_view_end(const struct pull_view *view);

/* One line: what is here now. */
void pull_view_done(const struct pull_view *view, const struct hub_pull *pull);

/* What would be done, or has been: a table, or JSON. `path` of the snapshot. */
void pull_print_plan(const struct pull_view *view, const struct hub_pull *pull);
int pull_print_json(const struct pull_view *view, const struct hub_pull *pull, const char *path, bool is_dry,
                    struct mo_error *error);
/* GGUF files to choose from: on stderr, or as JSON. */
int pull_print_choices(const struct hub_pull *pull, bool is_json, struct mo_error *error);

enum { PULL_CONNECTIONS = 4, PULL_RETRIES = 12, PULL_STALL_S = 60 };

struct pull_wish {
    const char *model, *revision; /* "org/name"; NULL: "main" */
    const char *token;            /* NULL: what the environment says */
    struct hub_patterns patterns;
    int connections, retries, stall_s;
    bool is_dry; /* nothing but the listing */
    /* From the listing, other patterns; NULL: none. */
    int (*choose)(void *context, const struct hub_pull *pull, struct hub_patterns *patterns, struct mo_error *error);
    /* Before a byte of weights, the small files are in the cache: an error is the end. NULL: nobody asks. */
    int (*judge)(void *context, const struct hub_pull *pull, struct mo_error *error);
    /* All is here, or `is_dry`; `path` of the snapshot. */
    int (*done)(void *context, const struct hub_pull *pull, const struct pull_view *view, const char *path,
                struct mo_error *error);
    void *context;
};
/* MO_E_CANCELLED: SIGINT or SIGTERM, whose handlers are its own meanwhile; what has come so far stays. */
int pull_run(const struct pull_wish *wish, struct mo_error *error);

#endif
