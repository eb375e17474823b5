/* server/metrics.h - /metrics in the Prometheus text format 0.0.4, by vLLM's names and llama.cpp's. Includes: sched, expert,
 * ranks, base/buffer.h. */
#ifndef MOEBIUS_SERVER_METRICS_H
#define MOEBIUS_SERVER_METRICS_H

#include <time.h>
#include "expert/store.h"
#include "ranks/ranks.h"
#include "sched/sched.h"
#include "base/buffer.h"

#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* `experts`: NULL where they are not read as needed; `ranks`: where there is one process alone. */
void metrics_write(struct buffer *out, const struct sched_stats *stats, const struct store_stats *experts,
                   const struct ranks_stats *ranks, const char *model_name);

/* When the server started, under the name that all exporters have for it. */
void metrics_write_start(struct buffer *out, time_t start);

#endif
