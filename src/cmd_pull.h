/* cmd_pull.h - what `moebius pull` says: a line that shows how far it is, notes, tables, JSON. */
#ifndef MOEBIUS_CMD_PULL_H
#define MOEBIUS_CMD_PULL_H

#include <stdbool.h>
#include "hub/pull.h"

struct pull_view {
    bool is_terminal;
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

/* What would be done, or has been: a table, or JSON. `path` of the snapshot. */
void pull_print_plan(const struct pull_view *view, const struct hub_pull *pull);
int pull_print_json(const struct pull_view *view, const struct hub_pull *pull, const char *path, bool is_dry,
                    struct mo_error *error);
/* GGUF files to choose from: on stderr, or as JSON. */
int pull_print_choices(const struct hub_pull *pull, bool is_json, struct mo_error *error);

#endif
