/* cmd/bench/report.h - everything that `bench` measures, in words for people as it comes, and as JSON for programs at the end. */
#ifndef MOEBIUS_CMD_BENCH_REPORT_H
#define MOEBIUS_CMD_BENCH_REPORT_H

#include <jansson.h>
#include "base/cpu.h"
#include "cmd/bench/gpu.h"
#include "cmd/bench/measure.h"

struct bench_report {
    const struct bench_plan *plan;
    bool json, guide;
    const char *file;      /* the JSON as well, written anew after every line; NULL: none */
    struct bench_gpu *gpu; /* NULL: the CPU computes */
    struct engine *engine;
    struct bench bench;
    char hash[65];            /* empty: the weights were made in memory */
    char made[512], mark[64]; /* how synthetic weights were made, and what marks every line then; else empty */
    enum cpu_level level;
    struct bench_reader *reader;
    struct bench_spread read_gb_s, read_after_gb_s; /* memory before and after: was the machine quiet? */
    struct bench_spread int8_tops;
    double disk_gb_s; /* with --expert-cache */
    struct bench_prompt prompt[BENCH_LIST_MAX];
    int n_prompt;
    struct bench_decode decode[BENCH_LIST_MAX * BENCH_LIST_MAX];
    int n_decode;
    double rss_bytes;
};

/* Fills `made` and `mark` if the engine's model is synthetic. */
void bench_report_mark(struct bench_report *report);

void bench_say_machine(const struct bench_report *report);
void bench_say_prompts(const struct bench_report *report);
void bench_say_decode(const struct bench_report *report, const struct bench_decode *decode);
void bench_say_end(const struct bench_report *report);

/* All of it; NULL without memory. The caller releases it. */
json_t *bench_report_json(const struct bench_report *report);

/* Writes it to r->file, by way of a file beside it: who reads it never finds half of it. */
int bench_report_write(const struct bench_report *report, struct mo_error *error);

/* Of the machine's 8-bit operations, for prompt i of the plan; 0 if it has none to compare with. */
double bench_share_of_peak(const struct bench_report *report, int i);

#endif
