/* backend/cuda/probe.h - what a card can do apart from any model, and what each kernel of a step takes on it: the two sides of
 * every figure that `bench` gives for a GPU. Times are the card's own (events), never the host's. Engine thread.
 * Includes: backend.h. */
#ifndef MOEBIUS_BACKEND_CUDA_PROBE_H
#define MOEBIUS_BACKEND_CUDA_PROBE_H

#include "backend/backend.h"

/* The card beside which a run was made; 0 where the driver does not say. */
struct cuda_card_facts {
    char name[128], pci[24]; /* its address, as NVML writes it: 00000000:01:00.0 */
    int index, capability, processors, driver_version;
    int l2_bytes, clock_khz, memory_clock_khz, memory_bus_bits, ecc;
    size_t free_bytes, total_bytes;
};

struct cuda_constants {
    double node_gap_us;   /* from one kernel of a graph to the next, when they do nothing */
    double fill_drain_us; /* what a kernel that reads a few kilobytes takes beyond that */
    double
        boundary_us;   /* what a kernel that reads BOUNDARY_BYTES takes beyond the reading: gap, filling and draining */
    double barrier_us; /* all processors wait for one another in a kernel; 0: they did not come */
    double to_card_gb_s, from_card_gb_s; /* pinned memory */
};

struct cuda_probe;
/* Takes some memory of card `device` (at most a quarter of what is free) until it is closed. */
int cuda_probe_open(struct cuda_probe **probe, int device, struct mo_error *error);
void cuda_probe_close(struct cuda_probe *probe); /* accepts NULL */
const struct cuda_card_facts *cuda_probe_card(const struct cuda_probe *probe);
/* GB/s (1e9 bytes) at which the card reads a buffer far larger than its cache; [passes] of them. */
int cuda_probe_read(struct cuda_probe *probe, int passes, double *gb_s, struct mo_error *error);
/* `read_gb_s` is what cuda_probe_read found. */
int cuda_probe_constants(struct cuda_probe *probe, double read_gb_s, struct cuda_constants *out,
                         struct mo_error *error);

/* One launch of one stage, over all layers that have the stage. */
struct cuda_launch_time {
    const char *stage, *kernel;
    int launch;   /* which of the stage's, from 0 */
    int layers;   /* times that a step has it */
    int blocks;   /* of the last one */
    double us;    /* of each, with what it takes to start it */
    double bytes; /* of weights that each must read; 0: not known (attention reads the cache) */
};
enum { CUDA_PROFILE_MAX = 256 };
struct cuda_profile {
    int step_kernels, layer_kernels,
        dense_layer_kernels; /* counted: of a step; the most of a layer with experts, and of one without */
    double step_us;          /* all kernels of a step, recorded once and replayed */
    int n;
    struct cuda_launch_time launches[CUDA_PROFILE_MAX];
};
/* Takes a step apart: `batch` is computed and its kernels are counted; with `timed`, each launch of each stage is then timed
 * alone, layer after layer, so that nothing but small matrices is found in the card's cache. Afterwards the batch's cache rows are
 * not what they should be. Not for routed experts on the CPU (MO_E_UNSUPPORTED). */
int cuda_profile_step(struct backend *backend, const struct batch *batch, bool timed, struct cuda_profile *out,
                      struct mo_error *error);

/* How the weights came. */
struct cuda_load {
    bool generated; /* made on the card: nothing was read */
    double bytes, s;
};
struct cuda_load cuda_backend_load(const struct backend *backend);

#endif
