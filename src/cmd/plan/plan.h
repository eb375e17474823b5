/* cmd/plan/plan.h - what the files of `plan` share: plan.c (flags), gather.c (the model, this machine), text.c and json.c (one
 * plan), tables.c and fits.c (published tables corrected, docs/what-fits.md), plots.c (its pictures), check.c (is a figure
 * possible?). */
#ifndef MOEBIUS_CMD_PLAN_PLAN_H
#define MOEBIUS_CMD_PLAN_PLAN_H

#include "find/room.h"

/* Everything that is not given is detected, and measured where the plan needs it. */
int plan_gather(struct plan_report *report, const struct plan_arguments *arguments, struct mo_error *error);

void plan_print_text(const struct plan_report *report);
int plan_print_json(const struct plan_report *report, struct mo_error *error);

/* Why this engine, as it is, cannot run what was planned; NULL: it can. */
const char *plan_report_not_here(const struct plan_report *report);
/* Where the hit rate is from: "given", "trace", "assumed"; NULL: no expert is read from disk. */
const char *plan_report_hits_from(const struct plan_report *report);
/* "vram", "cpu", ..., "cluster" where machines share the work. */
const char *plan_report_class(const struct plan_report *report);

/* A built-in model on built-in cards, nothing detected: for tables. Wrong names are a programmer's mistake. */
struct plan_input plan_table_input(const char *model, const char *quant, const char *gpu, enum kv_format kv,
                                   int context, int seqs);

enum plan_table {
    PLAN_TABLE_NONE,
    PLAN_TABLE_VRAM,
    PLAN_TABLE_CONCURRENCY,
    PLAN_TABLE_ESTIMATES,
    PLAN_TABLE_WHAT_FITS
};
void plan_print_table(enum plan_table table);
void plan_print_what_fits(void);
enum plan_plot { PLAN_PLOT_NONE, PLAN_PLOT_BANDWIDTH, PLAN_PLOT_671B };
void plan_print_plot(enum plan_plot plot);

/* "Is this number possible?" */
struct plan_check {
    bool wanted, json;
    const char *params; /* "14.8B" or "671B,37B" */
    double bits, gb_s, tokens_per_s;
};
/* *possible tells the exit status. */
int plan_run_check(const struct plan_check *check, bool *possible, struct mo_error *error);

#endif
