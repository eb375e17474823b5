#include "cmd/bench/guide.h"

#include <math.h>
#include <stdio.h>
#include "base/json.h"

#define GUIDE_SOURCE "gigagpu.com, \"RTX 4090 24GB for DeepSeek-Coder-V2-Lite\""
#define GUIDE_MACHINE "one RTX 4090 (24 GB), vLLM 0.6.3"

enum { PROMPT = 1024, LONG_PROMPT = 8192, GENERATE = 256 };
enum row_kind { ROW_DECODE, ROW_FIRST_TOKEN, ROW_PROMPT };

/* As published; nobody here has measured them. */
static const struct guide_row {
    const char *what, *unit;
    enum row_kind kind;
    int n; /* sequences, or tokens of the prompt */
    double fp8, awq;
} rows[] = {
    {"decode, batch 1", "tokens/s", ROW_DECODE, 1, 120, 145},
    {"decode, batch 4", "tokens/s", ROW_DECODE, 4, 410, 490},
    {"decode, batch 8", "tokens/s", ROW_DECODE, 8, 620, 720},
    {"first token after 1024", "ms", ROW_FIRST_TOKEN, PROMPT, 95, 80},
    {"prompt of 8192", "tokens/s", ROW_PROMPT, LONG_PROMPT, 3800, 4200},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

void bench_guide_plan(struct bench_plan *plan) {
    plan->prompt = (struct bench_list){.values = {PROMPT, LONG_PROMPT}, .n = 2};
    plan->batch = (struct bench_list){.values = {1, 4, 8}, .n = 3};
    plan->depth = (struct bench_list){.values = {PROMPT}, .n = 1};
    plan->generate = GENERATE;
}

/* What was measured here for a row, and which share it is of what the machine can do (NAN: nothing to compare with). */
struct here {
    double value, share;
};

static struct here find_decode(const struct bench_report *r, int batch) {
    for (int i = 0; i < r->n_decode; i++) {
        const struct bench_decode *d = &r->decode[i];
        if (d->batch == batch) return (struct here){d->tokens_per_s.median, d->gb_per_s / d->read_gb_s};
    }
    return (struct here){NAN, NAN};
}

static struct here find_prompt(const struct bench_report *r, int tokens, enum row_kind kind) {
    for (int i = 0; i < r->n_prompt; i++) {
        if (r->plan->prompt.values[i] != tokens) continue;
        double s = r->prompt[i].seconds.median, share = r->int8_tops.median > 0 ? bench_share_of_peak(r, i) : NAN;
        return (struct here){kind == ROW_FIRST_TOKEN ? s * 1e3 : tokens / s, share};
    }
    return (struct here){NAN, NAN};
}

static struct here find_here(const struct bench_report *r, const struct guide_row *row) {
    return row->kind == ROW_DECODE ? find_decode(r, row->n) : find_prompt(r, row->n, row->kind);
}

/* DeepSeek-Coder-V2-Lite, by the numbers that make its speed. */
static bool is_of_guide(const struct model *m) {
    return m->layers == 27 && m->hidden == 2048 && m->experts == 64 && m->expert_width == 1408 && m->vocab == 102400;
}

void bench_say_guide(const struct bench_report *r) {
    printf("\nThe hosting guide's table, beside this machine: prompt %d, %d tokens generated\n", PROMPT, GENERATE);
    printf("guide: " GUIDE_SOURCE ": " GUIDE_MACHINE "; as published, not measured by us\n");
    printf("%-24s %-9s %10s %10s %12s  %s\n", "", "", "guide, FP8", "guide, AWQ", "here", "share of the machine");
    for (int i = 0; i < N_ROWS; i++) {
        struct here here = find_here(r, &rows[i]);
        printf("%-24s %-9s %10.0f %10.0f %12.2f", rows[i].what, rows[i].unit, rows[i].fp8, rows[i].awq, here.value);
        if (!isnan(here.share)) {
            printf("  %5.1f %% of %s", 100 * here.share,
                   rows[i].kind == ROW_DECODE ? "memory's speed" : "8-bit operations");
        }
        printf("%s\n", r->mark);
    }
    if (!is_of_guide(&r->engine->model)) printf("(This model is not of the shape that the guide is about.)\n");
    printf(
        "(The guide's first token would need 10800 to 12800 tokens/s: it does not agree with its own long prompt.)\n");
}

json_t *bench_guide_json(const struct bench_report *r) {
    json_t *list = json_array();
    for (int i = 0; i < N_ROWS; i++) {
        struct here here = find_here(r, &rows[i]);
        json_array_append_new(list, json_pack("{ss ss s{sf sf} so so sb}", "what", rows[i].what, "unit", rows[i].unit,
                                              "published", "fp8", rows[i].fp8, "awq", rows[i].awq, "here",
                                              json_finite(here.value), "share", json_finite(here.share), "synthetic",
                                              *r->made != '\0'));
    }
    return json_pack("{ss ss sb so}", "source", GUIDE_SOURCE, "machine", GUIDE_MACHINE, "same_shape",
                     is_of_guide(&r->engine->model), "rows", list);
}
