#include "cmd/check.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "base/json.h"
#include "base/pool.h"
#include "cmd/bench/machine.h"
#include "check/speed.h"

enum { MACHINE_PASSES = 9, LINE_PASSES = 3 };

/* The machine with one number of threads, and where results go. */
struct bench_run {
    enum cpu_level best;
    int threads;
    struct bench_reader *reader;
    struct bench_spread read_gb_s, int8_tops, f32_tops, bf16_tops;
    json_t *machine, *speeds; /* arrays; NULL: for people */
};

struct bench_line {
    const char *level, *weights, *activations;
    double gb_per_s, read_gb_s; /* one token; what the memory gave just before and after */
    double gop_per_s;           /* SPEED_TOKENS tokens */
};

/* Of the machine's 8-bit operations; 0 if it has none to compare with. */
static double share_of_peak(const struct bench_run *run, const struct bench_line *line) {
    return run->int8_tops.median > 0 ? line->gop_per_s / (run->int8_tops.median * 1e3) : 0;
}

static void say_tops(const char *kind, struct bench_spread tops) {
    if (tops.median > 0)
        printf(",\n    does %.3f Tera %s operations a second (%.3f to %.3f)", tops.median, kind, tops.min, tops.max);
}

static void say_machine(const struct bench_run *run) {
    printf("%s%d thread%s: reads %.2f GB/s from memory (%.2f to %.2f)", run->threads > 1 ? "\n" : "", run->threads,
           run->threads > 1 ? "s" : "", run->read_gb_s.median, run->read_gb_s.min, run->read_gb_s.max);
    say_tops("8-bit", run->int8_tops);
    say_tops("f32", run->f32_tops);
    say_tops("bf16", run->bf16_tops);
    printf("\n%-11s %-9s %-11s  %24s  %8s  %21s\n", "level", "weights", "activations", "one token: weights, GB/s",
           "of memory", "64 tokens: Gop/s");
    fflush(stdout);
}

static void say_line(const struct bench_run *run, const struct bench_line *l) {
    printf("%-11s %-9s %-11s  %24.2f  %7.1f %%  %12.1f", l->level, l->weights, l->activations, l->gb_per_s,
           100 * l->gb_per_s / l->read_gb_s, l->gop_per_s);
    if (run->int8_tops.median > 0) printf("  %5.1f %% of 8-bit", 100 * share_of_peak(run, l));
    printf("\n");
    fflush(stdout);
}

static json_t *tops_json(struct bench_spread tops) {
    return tops.median > 0 ? json_real(tops.median) : json_null();
}

static json_t *machine_json(const struct bench_run *run) {
    return json_pack("{si sf so so so}", "threads", run->threads, "read_gb_s", run->read_gb_s.median, "int8_tops",
                     tops_json(run->int8_tops), "f32_tops", tops_json(run->f32_tops), "bf16_tops",
                     tops_json(run->bf16_tops));
}

static json_t *line_json(const struct bench_run *run, const struct bench_line *l) {
    return json_pack("{ss ss ss si sf sf sf si sf so}", "level", l->level, "weights", l->weights, "activations",
                     l->activations, "threads", run->threads, "gb_per_s", l->gb_per_s, "read_gb_s", l->read_gb_s,
                     "share_of_bandwidth", l->gb_per_s / l->read_gb_s, "tokens", SPEED_TOKENS, "gop_per_s",
                     l->gop_per_s, "share_of_peak",
                     run->int8_tops.median > 0 ? json_real(share_of_peak(run, l)) : json_null());
}

static void time_line(struct bench_run *run, struct speed *speed, int kind, enum cpu_level level, bool quantized) {
    struct bench_spread before = bench_reader_measure(run->reader, LINE_PASSES);
    struct bench_line line = {
        .level = cpu_level_name(level), .weights = speed_kind_name(kind), .activations = quantized ? "8-bit" : "f32"};
    line.gb_per_s = speed_read(speed, level, quantized) * 1e-9;
    line.read_gb_s = (before.median + bench_reader_measure(run->reader, LINE_PASSES).median) / 2;
    line.gop_per_s = speed_compute(speed, level, quantized) * 1e-9;
    if (run->speeds)
        json_array_append_new(run->speeds, line_json(run, &line));
    else
        say_line(run, &line);
}

/* The plain C is for comparing bits, and timed only where there is nothing else. */
static int time_kind(struct bench_run *run, int kind, struct mo_error *error) {
    struct speed *speed;
    int first = run->best < CPU_AVX2 ? (int)run->best : CPU_AVX2;
    int code = speed_open(&speed, kind, run->threads, error);
    if (code) return code;
    for (int quantized = 0; quantized < 2; quantized++) {
        for (int level = first; level <= (int)run->best; level++) {
            if (cpu_offers((enum cpu_level)level) && speed_has(speed, (enum cpu_level)level, quantized))
                time_line(run, speed, kind, (enum cpu_level)level, quantized);
        }
    }
    speed_close(speed);
    return 0;
}

static int time_threads(struct bench_run *run, const char *name, struct mo_error *error) {
    int code = bench_reader_open(&run->reader, run->threads, error);
    if (!code) run->read_gb_s = bench_reader_measure(run->reader, MACHINE_PASSES);
    if (!code) code = bench_measure_peak(PEAK_INT8, run->threads, &run->int8_tops, error);
    if (!code) code = bench_measure_peak(PEAK_F32, run->threads, &run->f32_tops, error);
    if (!code) code = bench_measure_peak(PEAK_BF16, run->threads, &run->bf16_tops, error);
    if (!code && run->machine) json_array_append_new(run->machine, machine_json(run));
    if (!code && !run->machine) say_machine(run);
    for (int kind = 0; kind < SPEED_KINDS && !code; kind++) {
        const bool is_other = !name && speed_is_like_another(kind);
        if (!is_other && (!name || !strcmp(name, speed_kind_name(kind)))) code = time_kind(run, kind, error);
    }
    bench_reader_close(run->reader);
    run->reader = NULL;
    return code;
}

static int print_json(const struct bench_run *run, struct mo_error *error) {
    json_t *root = json_pack("{ss ss sO sO}", "version", MOEBIUS_VERSION, "level", cpu_level_name(run->best), "machine",
                             run->machine, "speeds", run->speeds);
    return json_print(root, error);
}

static int check_name(const char *name, struct mo_error *error) {
    for (int kind = 0; name && kind < SPEED_KINDS; kind++) {
        if (!strcmp(name, speed_kind_name(kind))) return 0;
    }
    if (!name) return 0;
    char names[256];
    size_t n = 0;
    for (int kind = 0; kind < SPEED_KINDS; kind++) {
        const char *before = kind == 0 ? "" : kind + 1 < SPEED_KINDS ? ", " : " or ";
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", before, speed_kind_name(kind));
        assert(n < sizeof names);
    }
    return mo_error_set(error, MO_E_INVALID, "--bench: expected %s, found \"%.40s\"", names, name);
}

int check_bench(enum cpu_level best, const char *name, int threads, bool json, struct mo_error *error) {
    struct bench_run run = {.best = best, .machine = json ? json_array() : NULL, .speeds = json ? json_array() : NULL};
    int code = check_name(name, error);
    for (int round = 0; round < (threads > 1 ? 2 : 1) && !code; round++) {
        run.threads = round ? threads : 1;
        code = time_threads(&run, name, error);
    }
    if (!code && json) code = print_json(&run, error);
    json_decref(run.machine);
    json_decref(run.speeds);
    return code;
}
