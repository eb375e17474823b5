/* cmd_plan.h - what the files of `plan` share: cmd_plan.c (flags), cmd_plan_gather.c (the model, this machine), cmd_plan_text.c and
 * cmd_plan_json.c (one plan), cmd_plan_tables.c and cmd_plan_fits.c (published tables corrected, docs/what-fits.md),
 * cmd_plan_plots.c (its pictures), cmd_plan_check.c (is a figure possible?). */
#ifndef MOEBIUS_CMD_PLAN_H
#define MOEBIUS_CMD_PLAN_H

#include "find_model.h"
#include "override_flags.h"
#include "plan/speed.h"

/* The command line; NULL, 0 or below 0: not given. */
struct plan_arguments {
    const char *model, *revision, *gpu, *ram, *network, *quant, *folder, *expert_trace;
    struct find_flags hub;
    struct override_flags overrides;
    double nvme_gb_s, hit_rate, utilization, cpu_gflops;
    int kv; /* 0 auto, else enum kv_format + 1 */
    int context, seqs, batched_tokens, threads, nodes, ranks;
    int experts, parallel, device; /* indices of the choices */
    int n_cpu_moe;                 /* layers */
    bool json, explain, cpu_moe;
};

enum { PLAN_MAX_DECODE = 32, PLAN_MAX_PREFILL = 8 };

/* One plan, ready to be shown. */
struct plan_report {
    const struct plan_arguments *arguments;
    struct plan_input input;
    bool recipe_is_published; /* nobody chose it */
    char gpu_from[128], ram_from[128], ram_speed_from[128], ssd_from[384];
    struct plan_memory memory;
    struct plan_speed decode[PLAN_MAX_DECODE], prefill[PLAN_MAX_PREFILL];
    int n_decode, n_prefill;
    struct plan_nearest nearest[PLAN_NEAREST];
    int n_nearest;
};

/* Everything that is not given is detected, and measured where the plan needs it. */
int plan_gather(struct plan_report *report, const struct plan_arguments *arguments, struct mo_error *error);

/* Of a known shape, `memory` alone: nothing is measured, so a disk is only there if its speed is given. */
int plan_gather_room(struct plan_report *report, const struct plan_arguments *arguments, const struct plan_arch *arch,
                     struct mo_error *error);

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
