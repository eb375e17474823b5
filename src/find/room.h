/* find/room.h - where a model of a known shape would lie on this machine, or on one that is described: what `plan` shows, and what
 * a model is judged by before it is fetched. */
#ifndef MOEBIUS_FIND_ROOM_H
#define MOEBIUS_FIND_ROOM_H

#include "cli/override_flags.h"
#include "find/find.h"
#include "plan/detect.h"
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

/* What lies where, with nothing measured: the report has its arguments and the model. *host is this machine. */
int plan_room(struct plan_report *report, struct plan_host *host, struct mo_error *error);
/* The same for a shape alone, so a disk is only there if its speed is given. */
int plan_gather_room(struct plan_report *report, const struct plan_arguments *arguments, const struct plan_arch *arch,
                     struct mo_error *error);
/* Beside weights and cache, on the CPU: the backend counts its own scratch, from the numbers alone. */
double plan_cpu_scratch_bytes(const struct plan_input *input, int threads);

#endif
