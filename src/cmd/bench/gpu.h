/* cmd/bench/gpu.h - what `bench` says beside a GPU: the card's own speed (its memory read, what starting a kernel costs), and where the
 * time of a decode step goes. The floor of a step is bytes / read bandwidth + kernels x boundary cost: no schedule of so many
 * kernels is quicker on that card, and the aim is to be within 1.15 of it. */
#ifndef MOEBIUS_CMD_BENCH_GPU_H
#define MOEBIUS_CMD_BENCH_GPU_H

#include <jansson.h>
#include "backend/cuda/probe.h"
#include "cmd/bench/machine.h"

struct bench_gpu {
    struct cuda_probe *probe;
    struct cuda_card_facts card;
    struct bench_spread read_gb_s; /* at the beginning */
    struct cuda_constants constants;
    struct cuda_load load;
    bool has_profile;
    struct cuda_profile profile; /* of a step with one sequence */
    int profile_depth;
};

/* Opens and measures the card that --device names ("cuda", "cuda:N"); *gpu stays NULL where it names none, or none is there:
 * the engine then says so. */
int bench_gpu_open(struct bench_gpu **gpu, const char *device, struct mo_error *error);
void bench_gpu_close(struct bench_gpu *gpu); /* accepts NULL */

/* As bench_reader_measure. */
int bench_gpu_read(struct bench_gpu *gpu, int passes, struct bench_spread *gb_s, struct mo_error *error);

/* Seconds of the floor; and of its two parts. */
struct bench_floor {
    double bytes_s, kernels_s, s;
};
struct bench_floor bench_gpu_floor(const struct bench_gpu *gpu, double bytes, double read_gb_s, int kernels);

void bench_gpu_say_card(const struct bench_gpu *gpu);
void bench_gpu_say_load(const struct bench_gpu *gpu);
void bench_gpu_say_profile(const struct bench_gpu *gpu, const char *mark);
json_t *bench_gpu_json(const struct bench_gpu *gpu);

#endif
