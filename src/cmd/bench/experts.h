/* cmd/bench/experts.h - what --expert-cache did while something was timed, beside what the disk can do; and what was said to
 * other processes (ranks/ranks.h). */
#ifndef MOEBIUS_CMD_BENCH_EXPERTS_H
#define MOEBIUS_CMD_BENCH_EXPERTS_H

#include <jansson.h>
#include "engine/engine.h"

struct bench_experts {
    bool is_on, has_ranks;
    struct store_stats sum; /* during all of it */
    double s, tokens;       /* how long it took, and what for */
    struct ranks_stats ranks;
};

/* Before and after; nothing without a store or ranks. */
void bench_experts_begin(struct bench_experts *experts, const struct engine *engine);
void bench_experts_end(struct bench_experts *experts, const struct engine *engine, double tokens);

/* Of the experts asked for: the share that was there. */
double bench_experts_hit_rate(const struct bench_experts *experts);
/* How fast the others were read, while any was; 0: none was. */
double bench_experts_gb_s(const struct bench_experts *experts);

/* How fast the disk gives the model's file to the same threads with as much to do as they can take: GB/s. */
int bench_experts_read_disk(const struct engine *engine, double *gb_s, struct mo_error *error);

/* A line for either, for people. */
void bench_experts_say(const struct bench_experts *experts, double disk_gb_s);
json_t *bench_experts_json(const struct bench_experts *experts, double disk_gb_s);
json_t *bench_ranks_json(const struct bench_experts *experts); /* null alone */

#endif
