/* plan/speed.h - how fast: what has to be read, computed and waited for, over what the machine can do. Each figure has a
 * limit, which nothing can pass (parts on different devices at once, everything at full speed), and an expectation (one
 * part after the other, each at the share in efficiency.h).
 * Includes: plan. */
#ifndef MOEBIUS_PLAN_SPEED_H
#define MOEBIUS_PLAN_SPEED_H

#include "plan/efficiency.h"
#include "plan/memory.h"

enum plan_device {
    PLAN_ON_GPU,
    PLAN_ON_CPU,
    PLAN_ON_LINK,
    PLAN_ON_SSD,
    PLAN_ON_WAY,
    PLAN_DEVICES
}; /* WAY: launches, messages */
enum plan_work { PLAN_BYTES, PLAN_OPS, PLAN_WAIT };

/* One term of a time. Parts of one stage of one device overlap; stages follow one another. */
struct plan_part {
    const char *what;
    enum plan_device device;
    enum plan_work work;
    int stage;
    double amount, rate; /* bytes or operations, and how many a second; waits: how many times, and 1 / seconds */
    double share;        /* of the rate that is expected */
    double limit_s, expected_s;
};

enum { PLAN_MAX_PARTS = 24 };
struct plan_speed {
    int batch, depth, tokens; /* tokens: that come out of it (decode), or go in (prefill) */
    double bytes;             /* from all memories */
    double limit_s, expected_s;
    double overlapped_s; /* expected, if the disk is read while the rest computes */
    struct plan_part parts[PLAN_MAX_PARTS];
    int n_parts;
};
static inline double plan_speed_limit(const struct plan_speed *speed) {
    return speed->tokens / speed->limit_s;
}
static inline double plan_speed_expected(const struct plan_speed *speed) {
    return speed->tokens / speed->expected_s;
}

/* One step of `batch` sequences with `depth` tokens each. */
void plan_decode(const struct plan_input *input, const struct plan_memory *memory, int batch, int depth,
                 struct plan_speed *speed);
/* A prompt of `tokens`, in chunks of wish.batched_tokens: its time is the time to the first token. */
void plan_prefill(const struct plan_input *input, const struct plan_memory *memory, int tokens,
                  struct plan_speed *speed);
/* False where nobody has said how fast the processor multiplies: prompts there have no figure. */
bool plan_prefill_known(const struct plan_input *input, const struct plan_memory *memory);

/* Of experts: the hit rate in RAM that the plan goes by. */
double plan_hit_rate(const struct plan_input *input, const struct plan_memory *memory);

/* "Is this number possible?": tokens/s that `bytes` a token allow. */
double plan_check_limit(double active_params, double bits, double gb_s);

/* ---- for `bench`: what this machine's CPU should do ---- */

struct plan_cpu_case {
    const struct plan_arch *arch;
    const struct plan_weights *weights;
    enum kv_format kv;
    double read_gb_s;             /* measured with the same number of threads */
    double gflops, gops16, gops8; /* fp32; bf16, as in struct plan_machine; bytes; 0: operations cost nothing */
    double routed_bytes;          /* counted, of a step; below 0: as many experts as independent tokens meet */
    double cache_rows;            /* counted, of a step; below 0: batch x depth */
    double ssd_gb_s;              /* of the disk that gives experts which are not in memory; 0: all of them are there */
    double hit_rate;              /* of experts, if there is such a disk */
};
void plan_predict_cpu(const struct plan_cpu_case *the_case, int batch, int depth, struct plan_speed *speed);

#endif
