#include "backend/cuda/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cuda/driver.h"
#include "backend/cuda/image.h"
#include "backend/cuda/params_bench.h"

/* CUdevice_attribute */
enum {
    ATTRIBUTE_CLOCK_KHZ = 13,
    ATTRIBUTE_ECC = 32,
    ATTRIBUTE_PCI_BUS = 33,
    ATTRIBUTE_PCI_DEVICE = 34,
    ATTRIBUTE_MEMORY_CLOCK_KHZ = 36,
    ATTRIBUTE_MEMORY_BUS_BITS = 37,
    ATTRIBUTE_L2_BYTES = 38,
    ATTRIBUTE_PCI_DOMAIN = 50,
};
enum {
    CACHES = 16, /* the buffer is so many times the last cache */
    BLOCKS_A_PROCESSOR = 4,
    READS_A_PASS = 4,
    WARM_UP_MS = 300, /* a card that had nothing to do takes that long to reach its clocks */
    EMPTY_KERNELS = 400,
    SMALL_KERNELS = 200,
    BOUNDARY_KERNELS = 48,
    CHAIN_RUNS = 3,
    BARRIERS = 200,
    COPIES = 4,
    SMALL_BYTES = 64 << 10,
    BOUNDARY_BYTES = 64 << 10, /* a processor: about what a stage of a large model reads at batch 1 */
    COPY_BYTES = 64 << 20,
    CAPTURE_THREAD_LOCAL = 1,
};
static const size_t LEAST_BUFFER_BYTES = 2 << 20;

enum probe_kernel { PROBE_EMPTY, PROBE_READ, PROBE_BARRIER, PROBE_KERNELS };
static const char *const kernel_names[PROBE_KERNELS] = {"probe_empty", "probe_read", "probe_barrier"};

struct cuda_probe {
    struct cuda_driver driver;
    struct cuda_card card;
    bool card_open;
    struct cuda_card_facts facts;
    struct cuda_stream *stream;
    struct cuda_event *first, *second;
    struct cuda_module *module;
    struct cuda_function *kernels[PROBE_KERNELS];
    cuda_address buffer, words; /* [bytes], and the sink and the counter */
    size_t bytes;
    bool is_warm;
    void *pinned; /* [COPY_BYTES] while copies are timed */
};

static int check(const struct cuda_probe *p, int result, struct mo_error *error, const char *what) {
    return cuda_check(&p->driver, result, error, "GPU %d (%s): measuring it: %s", p->card.index, p->card.name, what);
}

static int attribute(const struct cuda_probe *p, int which) {
    int value = 0;
    return p->driver.device_attribute(&value, which, p->card.handle) ? 0 : value;
}

static void describe(struct cuda_probe *p) {
    p->facts = (struct cuda_card_facts){.index = p->card.index,
                                        .capability = p->card.capability,
                                        .processors = p->card.processors,
                                        .driver_version = p->card.driver_version,
                                        .l2_bytes = attribute(p, ATTRIBUTE_L2_BYTES),
                                        .clock_khz = attribute(p, ATTRIBUTE_CLOCK_KHZ),
                                        .memory_clock_khz = attribute(p, ATTRIBUTE_MEMORY_CLOCK_KHZ),
                                        .memory_bus_bits = attribute(p, ATTRIBUTE_MEMORY_BUS_BITS),
                                        .ecc = attribute(p, ATTRIBUTE_ECC),
                                        .free_bytes = p->card.free_bytes,
                                        .total_bytes = p->card.total_bytes};
    snprintf(p->facts.name, sizeof p->facts.name, "%s", p->card.name);
    snprintf(p->facts.pci, sizeof p->facts.pci, "%08x:%02x:%02x.0", (unsigned)attribute(p, ATTRIBUTE_PCI_DOMAIN),
             (unsigned)attribute(p, ATTRIBUTE_PCI_BUS), (unsigned)attribute(p, ATTRIBUTE_PCI_DEVICE));
}

static int load_kernels(struct cuda_probe *p, struct mo_error *error) {
    const struct cuda_image *image = cuda_images;
    while (image->name && strcmp(image->name, "probe")) image++;
    if (!image->name) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "this moebius was built without CUDA kernels: nvcc was not found");
    }
    int code = check(p, p->driver.module_load(&p->module, image->data), error, "loading its kernels");
    for (int i = 0; i < PROBE_KERNELS && !code; i++) {
        code = check(p, p->driver.function_get(&p->kernels[i], p->module, kernel_names[i]), error, kernel_names[i]);
    }
    return code;
}

static size_t boundary_bytes(const struct cuda_probe *p) {
    return (size_t)p->card.processors * BOUNDARY_BYTES;
}

static int take_buffer(struct cuda_probe *p, struct mo_error *error) {
    size_t wanted = (size_t)p->facts.l2_bytes * CACHES, most = p->card.free_bytes / 4;
    if (wanted < LEAST_BUFFER_BYTES) wanted = LEAST_BUFFER_BYTES;
    p->bytes = (wanted < most ? wanted : most) / boundary_bytes(p) * boundary_bytes(p);
    if (p->bytes == 0) {
        return mo_error_set(error, MO_E_NO_MEMORY, "GPU %d (%s) has too little free memory to measure its speed",
                            p->card.index, p->card.name);
    }
    int code = check(p, p->driver.memory_take(&p->buffer, p->bytes), error, "memory to read");
    if (!code) code = check(p, p->driver.memory_take(&p->words, 64), error, "memory for two words");
    if (!code) code = check(p, p->driver.fill(p->buffer, 0x5a, p->bytes, p->stream), error, "filling memory");
    if (!code) code = check(p, p->driver.fill(p->words, 0, 64, p->stream), error, "clearing words");
    return code ? code : check(p, p->driver.stream_wait(p->stream), error, "filling memory");
}

static int open_all(struct cuda_probe *p, int device, struct mo_error *error) {
    int code = cuda_driver_open(&p->driver, error);
    if (!code) code = cuda_card_open(&p->driver, device, &p->card, error);
    if (code) return code;
    p->card_open = true;
    describe(p);
    code = check(p, p->driver.stream_create(&p->stream, 1), error, "a stream");
    if (!code) code = check(p, p->driver.event_create(&p->first, 0), error, "an event");
    if (!code) code = check(p, p->driver.event_create(&p->second, 0), error, "an event");
    if (!code) code = load_kernels(p, error);
    return code ? code : take_buffer(p, error);
}

int cuda_probe_open(struct cuda_probe **probe, int device, struct mo_error *error) {
    struct cuda_probe *p = calloc(1, sizeof *p);
    if (!p) return mo_error_set(error, MO_E_NO_MEMORY, "no memory to measure the GPU");
    int code = open_all(p, device, error);
    if (code) {
        cuda_probe_close(p);
        return code;
    }
    *probe = p;
    return 0;
}

void cuda_probe_close(struct cuda_probe *p) {
    if (!p) return;
    if (p->card_open) {
        p->driver.context_use(p->card.context);
        if (p->stream) p->driver.stream_wait(p->stream);
        if (p->pinned) p->driver.pinned_free(p->pinned);
        if (p->buffer) p->driver.memory_free(p->buffer);
        if (p->words) p->driver.memory_free(p->words);
        if (p->first) p->driver.event_destroy(p->first);
        if (p->second) p->driver.event_destroy(p->second);
        if (p->module) p->driver.module_unload(p->module);
        if (p->stream) p->driver.stream_destroy(p->stream);
        cuda_card_close(&p->driver, &p->card);
    }
    cuda_driver_close(&p->driver);
    free(p);
}

const struct cuda_card_facts *cuda_probe_card(const struct cuda_probe *p) {
    return &p->facts;
}

static int launch(struct cuda_probe *p, enum probe_kernel kernel, int blocks, struct probe_params params) {
    void *arguments[1] = {&params};
    params.data = (const uint8_t *)(uintptr_t)p->buffer;
    params.sink = (uint32_t *)(uintptr_t)p->words;
    params.counter = params.sink + 1;
    params.blocks = blocks;
    return p->driver.launch(p->kernels[kernel], (unsigned)blocks, 1, 1, BLOCK_THREADS, 1, 1, 0, p->stream, arguments,
                            NULL);
}

/* Milliseconds between the two events. */
static int elapsed(struct cuda_probe *p, double *ms) {
    float found = 0;
    int result = p->driver.event_wait(p->second);
    if (!result) result = p->driver.event_elapsed(&found, p->first, p->second);
    *ms = (double)found;
    return result;
}

static int read_blocks(const struct cuda_probe *p) {
    return p->card.processors * BLOCKS_A_PROCESSOR;
}

static int time_reads(struct cuda_probe *p, double *ms) {
    int result = p->driver.event_record(p->first, p->stream);
    for (int i = 0; i < READS_A_PASS && !result; i++) {
        result = launch(p, PROBE_READ, read_blocks(p), (struct probe_params){.bytes = p->bytes});
    }
    if (!result) result = p->driver.event_record(p->second, p->stream);
    return result ? result : elapsed(p, ms);
}

/* A pass that is not counted; at first as many as it takes to bring the card's clocks up. */
static int warm_up(struct cuda_probe *p) {
    double spent_ms = 0, ms = 0;
    int result;
    do {
        result = time_reads(p, &ms);
        spent_ms += fmax(ms, 0.01); /* it ends by any clock */
    } while (!p->is_warm && !result && spent_ms < WARM_UP_MS);
    p->is_warm = true;
    return result;
}

int cuda_probe_read(struct cuda_probe *p, int passes, double *gb_s, struct mo_error *error) {
    int code = check(p, p->driver.context_use(p->card.context), error, "cuCtxSetCurrent");
    if (!code) code = check(p, warm_up(p), error, "reading its memory");
    for (int i = 0; i < passes && !code; i++) {
        double ms = 0;
        code = check(p, time_reads(p, &ms), error, "reading its memory");
        gb_s[i] = (double)p->bytes * READS_A_PASS / (ms > 0 ? ms : 1e-6) * 1e-6;
    }
    return code;
}

/* A chain of `n` equal kernels; kernel i reads `bytes` from another place than the one before. */
struct chain {
    enum probe_kernel kernel;
    int n, blocks;
    size_t bytes;
};

static int record_chain(struct cuda_probe *p, const struct chain *c, struct cuda_ready_graph **ready) {
    struct cuda_graph *graph = NULL;
    int result = p->driver.capture_begin(p->stream, CAPTURE_THREAD_LOCAL);
    for (int i = 0; i < c->n && !result; i++) {
        size_t places = c->bytes ? p->bytes / c->bytes : 1;
        struct probe_params params = {.bytes = c->bytes, .offset = (size_t)i % places * c->bytes};
        result = launch(p, c->kernel, c->blocks, params);
    }
    int ended = p->driver.capture_end(p->stream, &graph);
    if (!result) result = ended;
    if (!result) result = p->driver.graph_prepare(ready, graph, 0);
    if (graph) p->driver.graph_destroy(graph);
    return result;
}

/* Microseconds that each kernel of the chain takes, as a graph; the quickest of some runs, for the card may be busy elsewhere. */
static int time_chain(struct cuda_probe *p, const struct chain *c, double *us, struct mo_error *error) {
    struct cuda_ready_graph *ready = NULL;
    int result = record_chain(p, c, &ready);
    *us = 0;
    for (int i = -1; i < CHAIN_RUNS && !result; i++) {
        double ms;
        result = p->driver.event_record(p->first, p->stream);
        if (!result) result = p->driver.graph_launch(ready, p->stream);
        if (!result) result = p->driver.event_record(p->second, p->stream);
        if (!result) result = elapsed(p, &ms);
        if (!result && i >= 0 && (i == 0 || ms * 1e3 / c->n < *us)) *us = ms * 1e3 / c->n;
    }
    if (ready) p->driver.graph_forget(ready);
    return check(p, result, error, kernel_names[c->kernel]);
}

static int time_barrier(struct cuda_probe *p, double *us, struct mo_error *error) {
    double ms[2] = {0};
    int result = 0, rounds[2] = {1, 1 + BARRIERS}; /* the difference is free of what starting costs */
    for (int i = 0; i < 4 && !result; i++) {       /* the first two are not counted */
        result = p->driver.fill(p->words, 0, 64, p->stream);
        if (!result) result = p->driver.event_record(p->first, p->stream);
        if (!result) {
            result = launch(p, PROBE_BARRIER, p->card.processors, (struct probe_params){.rounds = rounds[i % 2]});
        }
        if (!result) result = p->driver.event_record(p->second, p->stream);
        if (!result) result = elapsed(p, &ms[i % 2]);
    }
    uint32_t gave_up = 0;
    if (!result) result = p->driver.copy_out(&gave_up, p->words, sizeof gave_up, p->stream);
    if (!result) result = p->driver.stream_wait(p->stream);
    *us = gave_up ? 0 : (ms[1] - ms[0]) * 1e3 / BARRIERS;
    return check(p, result, error, "probe_barrier");
}

static int time_copies(struct cuda_probe *p, bool to_card, double *gb_s, struct mo_error *error) {
    size_t bytes = p->bytes < COPY_BYTES ? p->bytes : COPY_BYTES;
    double ms = 0;
    int result = 0;
    for (int i = -1; i < COPIES && !result; i++) {
        if (i == 0) result = p->driver.event_record(p->first, p->stream);
        if (result) break;
        result = to_card ? p->driver.copy_in(p->buffer, p->pinned, bytes, p->stream)
                         : p->driver.copy_out(p->pinned, p->buffer, bytes, p->stream);
    }
    if (!result) result = p->driver.event_record(p->second, p->stream);
    if (!result) result = elapsed(p, &ms);
    *gb_s = (double)bytes * COPIES / (ms > 0 ? ms : 1e-6) * 1e-6;
    return check(p, result, error, to_card ? "sending to it" : "reading from it");
}

static int time_bus(struct cuda_probe *p, struct cuda_constants *out, struct mo_error *error) {
    int code = check(p, p->driver.pinned_take(&p->pinned, COPY_BYTES, 0), error, "pinned memory");
    if (code) return code;
    memset(p->pinned, 0x5a, COPY_BYTES);
    code = time_copies(p, true, &out->to_card_gb_s, error);
    if (!code) code = time_copies(p, false, &out->from_card_gb_s, error);
    p->driver.pinned_free(p->pinned);
    p->pinned = NULL;
    return code;
}

int cuda_probe_constants(struct cuda_probe *p, double read_gb_s, struct cuda_constants *out, struct mo_error *error) {
    double small = 0, large = 0;
    const struct chain empty = {PROBE_EMPTY, EMPTY_KERNELS, p->card.processors, 0};
    const struct chain few = {PROBE_READ, SMALL_KERNELS, p->card.processors, SMALL_BYTES};
    const struct chain many = {PROBE_READ, BOUNDARY_KERNELS, read_blocks(p), boundary_bytes(p)};
    *out = (struct cuda_constants){0};
    int code = check(p, p->driver.context_use(p->card.context), error, "cuCtxSetCurrent");
    if (!code) code = time_chain(p, &empty, &out->node_gap_us, error);
    if (!code) code = time_chain(p, &few, &small, error);
    if (!code) code = time_chain(p, &many, &large, error);
    if (!code) code = time_barrier(p, &out->barrier_us, error);
    if (!code) code = time_bus(p, out, error);
    out->fill_drain_us = small - out->node_gap_us;
    out->boundary_us = fmax(large - (double)boundary_bytes(p) / read_gb_s * 1e-3, out->node_gap_us);
    return code;
}
