/* bench_experts.h - what --expert-cache did while something was timed, beside what the disk can do. */
#ifndef MOEBIUS_BENCH_EXPERTS_H
#define MOEBIUS_BENCH_EXPERTS_H

#include <jansson.h>
#include "engine.h"

struct bench_experts {
    bool is_on;
    struct store_stats sum; /* during all of it */
    double s, tokens;       /* how long it took, and what for */
};

/* Before and after; nothing without a store. */
void bench_experts_begin(struct bench_experts *experts, const struct engine *engine);
void bench_experts_end(struct bench_experts *experts, const struct engine *engine, double tokens);

/* How fast the disk gives the model's file to the same threads with as much to do as they can take: GB/s. */
int bench_experts_read_disk(const struct engine *engine, double *gb_s, struct mo_error *error);

/* One line, for people. */
void bench_experts_say(const struct bench_experts *experts, double disk_gb_s);
json_t *bench_experts_json(const struct bench_experts *experts, double disk_gb_s);

#endif
