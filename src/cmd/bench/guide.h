/* cmd/bench/guide.h - a hosting guide's table of DeepSeek-Coder-V2-Lite on one RTX 4090, beside what was measured here in the same
 * shapes: a prompt of 1024, 256 tokens generated, 1, 4 and 8 sequences; a prompt of 8192. */
#ifndef MOEBIUS_CMD_BENCH_GUIDE_H
#define MOEBIUS_CMD_BENCH_GUIDE_H

#include "cmd/bench/report.h"

/* The guide's shapes. Leaves plan->repeat. */
void bench_guide_plan(struct bench_plan *plan);
void bench_say_guide(const struct bench_report *report);
json_t *bench_guide_json(const struct bench_report *report);

#endif
