#include "cmd/bench/gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PASSES = 9 };

/* "cuda" or "cuda:N" -> 0 or N, of several the first; -1: another device, or not a number (the engine refuses it). */
static int card_of(const char *device) {
    char *end;
    if (!device || strncmp(device, "cuda", 4)) return -1;
    if (!device[4]) return 0;
    long n = device[4] == ':' ? strtol(device + 5, &end, 10) : -1;
    return n < 0 || n > 255 || end == device + 5 || (*end && *end != ',') ? -1 : (int)n;
}

static int measure(struct bench_gpu *gpu, struct mo_error *error) {
    gpu->card = *cuda_probe_card(gpu->probe);
    int code = bench_gpu_read(gpu, PASSES, &gpu->read_gb_s, error);
    return code ? code : cuda_probe_constants(gpu->probe, gpu->read_gb_s.median, &gpu->constants, error);
}

int bench_gpu_open(struct bench_gpu **out, const char *device, struct mo_error *error) {
    int index = card_of(device);
    *out = NULL;
    if (index < 0) return 0;
    struct bench_gpu *gpu = calloc(1, sizeof *gpu);
    if (!gpu) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    int code = cuda_probe_open(&gpu->probe, index, error);
    if (!code) code = measure(gpu, error);
    if (code) bench_gpu_close(gpu);
    if (code == MO_E_NOT_FOUND) return 0;
    if (!code) *out = gpu;
    return code;
}

void bench_gpu_close(struct bench_gpu *gpu) {
    if (!gpu) return;
    cuda_probe_close(gpu->probe);
    free(gpu);
}

int bench_gpu_read(struct bench_gpu *gpu, int passes, struct bench_spread *gb_s, struct mo_error *error) {
    double rate[BENCH_PASSES_MAX];
    int code = cuda_probe_read(gpu->probe, passes, rate, error);
    if (!code) *gb_s = bench_spread_of(rate, passes);
    return code;
}

struct bench_floor bench_gpu_floor(const struct bench_gpu *gpu, double bytes, double read_gb_s, int kernels) {
    struct bench_floor floor = {bytes / (read_gb_s * 1e9), kernels * gpu->constants.boundary_us * 1e-6, 0};
    floor.s = floor.bytes_s + floor.kernels_s;
    return floor;
}

/* ---- for people ---- */

void bench_gpu_say_card(const struct bench_gpu *gpu) {
    const struct cuda_card_facts *f = &gpu->card;
    const struct cuda_constants *c = &gpu->constants;
    printf("GPU %d: %s, compute capability %d.%d, %d processors, %.1f MB of L2, %.2f of %.2f GiB free, driver for CUDA "
           "%d.%d\n",
           f->index, f->name, f->capability / 10, f->capability % 10, f->processors, f->l2_bytes * 1e-6,
           (double)f->free_bytes / (1 << 30), (double)f->total_bytes / (1 << 30), f->driver_version / 1000,
           f->driver_version % 1000 / 10);
    printf("  reads %.1f GB/s from its memory (%.1f to %.1f)\n", gpu->read_gb_s.median, gpu->read_gb_s.min,
           gpu->read_gb_s.max);
    printf(
        "  a kernel's boundary costs %.2f us (from one to the next in a graph %.2f, filling and draining a small one "
        "%.2f)\n",
        c->boundary_us, c->node_gap_us, c->fill_drain_us);
    printf("  all processors meet in %.2f us; to the card %.2f GB/s, from it %.2f GB/s (pinned memory)\n",
           c->barrier_us, c->to_card_gb_s, c->from_card_gb_s);
    fflush(stdout);
}

void bench_gpu_say_load(const struct bench_gpu *gpu) {
    const struct cuda_load *l = &gpu->load;
    printf("  %.2f GB of weights %s in %.2f s, %.2f GB/s\n", l->bytes * 1e-9,
           l->generated ? "made on the card" : "brought to the card", l->s, l->bytes / l->s * 1e-9);
}

void bench_gpu_say_profile(const struct bench_gpu *gpu, const char *mark) {
    const struct cuda_profile *p = &gpu->profile;
    if (!gpu->has_profile) return;
    printf("\na step of one sequence at depth %d: %d kernels, %d a layer with experts", gpu->profile_depth,
           p->step_kernels, p->layer_kernels);
    if (p->dense_layer_kernels) printf(", %d a dense one", p->dense_layer_kernels);
    printf("; the card needs %.1f us for them%s\n", p->step_us, mark);
    printf("%-10s %2s  %-22s %7s %7s  %9s %9s %9s  %s\n", "stage", "", "kernel", "times", "blocks", "us", "MB", "GB/s",
           "of memory");
    for (int i = 0; i < p->n; i++) {
        const struct cuda_launch_time *t = &p->launches[i];
        double rate = t->us > 0 ? t->bytes / t->us * 1e-3 : 0;
        printf("%-10s %2d  %-22s %7d %7d  %9.2f", t->stage, t->launch, t->kernel, t->layers, t->blocks, t->us);
        if (t->bytes > 0) {
            printf(" %9.3f %9.1f  %7.1f %%", t->bytes * 1e-6, rate, 100 * rate / gpu->read_gb_s.median);
        }
        printf("\n");
    }
    printf("(Each alone over all layers, boundary included. Small matrices may be found in the card's cache.)\n");
    fflush(stdout);
}

/* ---- for programs ---- */

static json_t *card_json(const struct cuda_card_facts *f) {
    return json_pack("{si ss si si si si si si si so sI sI}", "index", f->index, "name", f->name, "capability",
                     f->capability, "processors", f->processors, "l2_bytes", f->l2_bytes, "clock_khz", f->clock_khz,
                     "memory_clock_khz", f->memory_clock_khz, "memory_bus_bits", f->memory_bus_bits, "driver_version",
                     f->driver_version, "ecc", json_boolean(f->ecc), "free_bytes", (json_int_t)f->free_bytes,
                     "total_bytes", (json_int_t)f->total_bytes);
}

static json_t *constants_json(const struct bench_gpu *gpu) {
    const struct cuda_constants *c = &gpu->constants;
    return json_pack("{sf sf sf sf sf sf sf sf sf}", "read_gb_s", gpu->read_gb_s.median, "read_gb_s_min",
                     gpu->read_gb_s.min, "read_gb_s_max", gpu->read_gb_s.max, "node_gap_us", c->node_gap_us,
                     "fill_drain_us", c->fill_drain_us, "boundary_us", c->boundary_us, "barrier_us", c->barrier_us,
                     "to_card_gb_s", c->to_card_gb_s, "from_card_gb_s", c->from_card_gb_s);
}

static json_t *profile_json(const struct bench_gpu *gpu) {
    const struct cuda_profile *p = &gpu->profile;
    json_t *list = json_array();
    for (int i = 0; i < p->n; i++) {
        const struct cuda_launch_time *t = &p->launches[i];
        double rate = t->us > 0 ? t->bytes / t->us * 1e-3 : 0;
        bool known = t->bytes > 0;
        json_array_append_new(list, json_pack("{ss si ss si si sf so so so}", "stage", t->stage, "launch", t->launch,
                                              "kernel", t->kernel, "layers", t->layers, "blocks", t->blocks, "us",
                                              t->us, "bytes", known ? json_real(t->bytes) : json_null(), "gb_per_s",
                                              known ? json_real(rate) : json_null(), "share_of_bandwidth",
                                              known ? json_real(rate / gpu->read_gb_s.median) : json_null()));
    }
    return json_pack("{si si si si sf so}", "depth", gpu->profile_depth, "step_kernels", p->step_kernels,
                     "layer_kernels", p->layer_kernels, "dense_layer_kernels", p->dense_layer_kernels, "step_us",
                     p->step_us, "launches", list);
}

static json_t *load_json(const struct cuda_load *l) {
    if (l->s <= 0) return json_null();
    return json_pack("{sb sf sf sf}", "generated", l->generated, "bytes", l->bytes, "s", l->s, "gb_per_s",
                     l->bytes / l->s * 1e-9);
}

json_t *bench_gpu_json(const struct bench_gpu *gpu) {
    return json_pack("{so so so so}", "card", card_json(&gpu->card), "constants", constants_json(gpu), "load",
                     load_json(&gpu->load), "profile", gpu->has_profile ? profile_json(gpu) : json_null());
}
