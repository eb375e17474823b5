#include "plan/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/utf8.h"

#define MIB *1048576.0

/* Memory as the driver reports it; speed and 16-bit tensor operations with fp32 sums from the vendors' data sheets (GeForce halves
 * that rate, data-centre cards do not). Links: PCIe 4 or 5 with 16 lanes, or NVLink. */
static const struct plan_gpu cards[] = {
    {"rtx-3090", 1, 24576 MIB, 936, 71, 25, 25},     {"rtx-4080", 1, 16376 MIB, 717, 97.5, 25, 25},
    {"rtx-4090", 1, 24564 MIB, 1008, 165.2, 25, 25}, {"rtx-5090", 1, 32607 MIB, 1792, 210, 50, 50},
    {"a100-80g", 1, 81920 MIB, 2039, 312, 300, 25},  {"h100", 1, 81559 MIB, 3350, 989, 450, 50},
    {"h200", 1, 143771 MIB, 4800, 989, 450, 50},
};
enum { N_CARDS = sizeof cards / sizeof *cards, MAX_GPUS = 4096 };

const struct plan_gpu *plan_gpu_builtin(int i) {
    return i < N_CARDS ? &cards[i] : NULL;
}

const char *plan_parallel_name(enum plan_parallel parallel) {
    static const char *const names[] = {"auto", "tensor", "expert", "pipeline", "ranks"};
    return names[parallel];
}

/* Numbers separated by commas, all above 0, nothing after them. */
static bool read_numbers(const char *text, double *out, int n) {
    for (int i = 0; i < n; i++) {
        char *end;
        out[i] = strtod(text, &end);
        if (end == text || !(out[i] > 0) || out[i] > 1e12 || *end != (i + 1 < n ? ',' : 0)) return false;
        text = end + 1;
    }
    return true;
}

static int refuse_gpu(const char *text, struct mo_error *error) {
    char names[512] = "";
    for (int i = 0; i < N_CARDS; i++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%.30s, ", cards[i].name);
    }
    return mo_error_set(error, MO_E_INVALID,
                        "--gpu: expected %snone or NAME=GB,GB/s,TFLOPS, perhaps with a count before it as in "
                        "2xrtx-4090; found \"%s\"",
                        names, text);
}

/* "2x" before a name; a name may begin with a digit, but not with a number and an x. */
static const char *read_count(const char *text, int *count) {
    char *end;
    long n = strtol(text, &end, 10);
    *count = 1;
    if (end == text || *end != 'x' || n < 1 || n > MAX_GPUS) return text;
    *count = (int)n;
    return end + 1;
}

int plan_gpu_parse(struct plan_gpu *gpu, const char *text, struct mo_error *error) {
    int count;
    const char *name = read_count(text, &count), *equals = strchr(name, '=');
    *gpu = (struct plan_gpu){0};
    if (!strcmp(text, "none")) {
        snprintf(gpu->name, sizeof gpu->name, "none");
        return 0;
    }
    for (int i = 0; i < N_CARDS && !equals; i++) {
        if (strcmp(cards[i].name, name) != 0) continue;
        *gpu = cards[i];
        gpu->count = count;
        return 0;
    }
    double numbers[3];
    if (!equals || equals == name || !read_numbers(equals + 1, numbers, 3)) return refuse_gpu(text, error);
    *gpu = (struct plan_gpu){.count = count,
                             .memory_bytes = numbers[0] * 1e9,
                             .gb_s = numbers[1],
                             .tflops = numbers[2],
                             .link_gb_s = 25,
                             .host_gb_s = 25};
    snprintf(gpu->name, sizeof gpu->name, "%.*s", (int)(equals - name), name);
    utf8_clean(gpu->name);
    return 0;
}

int plan_ram_parse(struct plan_machine *machine, const char *text, struct mo_error *error) {
    char *end;
    double size = strtod(text, &end), unit = 1e9, speed = 0;
    bool good = end != text && size > 0 && size < 1e9;
    if (!strncmp(end, "GiB", 3)) {
        unit = 1 << 30;
        end += 3;
    }
    if (*end == '@') {
        good &= read_numbers(end + 1, &speed, 1);
    } else {
        good &= !*end;
    }
    if (!good) {
        return mo_error_set(error, MO_E_INVALID,
                            "--ram: expected GB, GiB or GB@GB/s, as in 64, 64GiB or 64@89; found \"%s\"", text);
    }
    machine->ram_bytes = size * unit;
    if (speed > 0) machine->ram_gb_s = speed;
    return 0;
}

/* What a number of these is in GB/s; *end behind the unit's name. */
static double read_unit(const char *text, const char **end) {
    static const struct {
        const char *name;
        double gb_s;
    } units[] = {{"gbit", 1.0 / 8}, {"mbit", 1e-3 / 8}, {"GB/s", 1}, {"MB/s", 1e-3}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        *end = text + strlen(units[i].name);
        if (!strncmp(text, units[i].name, strlen(units[i].name))) return units[i].gb_s;
    }
    *end = text;
    return 1;
}

int plan_network_parse(struct plan_machine *machine, const char *text, struct mo_error *error) {
    static const double DEFAULT_US = 50;
    char *number_end;
    const char *end;
    double us = DEFAULT_US, speed = strtod(text, &number_end), gb_s = speed * read_unit(number_end, &end);
    bool has_unit = end != number_end, good = number_end != text && gb_s > 1e-9 && gb_s < 1e12;
    good &= *end == ',' ? read_numbers(end + 1, &us, 1) : has_unit && !*end;
    if (!good) {
        return mo_error_set(error, MO_E_INVALID,
                            "--network: expected a speed and microseconds, as in 10gbit,50 or 1.25,50 (GB/s); found "
                            "\"%s\"",
                            text);
    }
    machine->network_gb_s = gb_s;
    machine->network_s = us * 1e-6;
    return 0;
}
