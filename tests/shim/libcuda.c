/* tests/shim/libcuda.c - a libcuda.so.1 for tests: its card's memory is the machine's, its kernels run as fibres, and it
 * fails where it is told to. It does nothing before somebody waits for it: as late as a card might, so that what the host reads or
 * overwrites too early is found out. Memory ends at a page that must not be touched, so that a kernel that reads or writes past the
 * end of what it was given dies on the spot; and between kernels and copies the card's memory is nobody's, so that a host that takes an
 * address of the card's for one of its own dies, too. (Not what is taken where both sides reach it, as tests do: cuda_memory_is_shared.)
 *
 * MOEBIUS_FAKE_CUDA is a list of NAME=NUMBER, separated by commas:
 *   devices, version, capability, processors, free_mib   what the machine has (default 1, 13000, 89, 3, 8192)
 *   init, alloc, pinned, load, launch, copy, wait, event, prepare, graph   the N-th such call fails (alloc and pinned: out of
 *                                              memory; event: waiting for one)
 *   log                                      1: every call on stderr
 * MOEBIUS_SHIM_WRONG names a kernel whose last block never runs: what it should have written keeps what was there. */
#include "fibre.h"
#include "race.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum {
    OK = 0,
    INVALID = 1,
    NO_MEMORY = 2,
    NO_DEVICE = 100,
    NO_CONTEXT = 201,
    NO_BINARY = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    NOT_WHILE_RECORDING = 900,
    RECORDING_BROKEN = 901,
    WRONG_THREAD = 908
};
enum { KERNELS_MAX = 128, BLOCKS_MAX = 1024, NAN_BYTES = 24 << 20, PAGE = 4096, ALIGN = 16 };

/* --- what to do ----------------------------------------------------------------------------------------------------- */

static long option(const char *name, long normal) {
    const char *text = getenv("MOEBIUS_FAKE_CUDA");
    size_t n = strlen(name);
    for (const char *at = text; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        if (!strncmp(at, name, n) && at[n] == '=') return strtol(at + n + 1, NULL, 10);
    }
    return normal;
}

/* Counts calls of a kind; true for the one that is to fail. */
static bool fails(const char *kind) {
    static struct {
        const char *kind;
        long calls;
    } counters[16];
    int i = 0;
    while (counters[i].kind && strcmp(counters[i].kind, kind)) i++;
    counters[i].kind = kind;
    bool now = ++counters[i].calls == option(kind, -1);
    if (option("log", 0)) fprintf(stderr, "fake cuda: %s %ld%s\n", kind, counters[i].calls, now ? " fails" : "");
    return now;
}

/* --- memory --------------------------------------------------------------------------------------------------------- */

static struct {
    uint8_t *map, *at;
    size_t map_bytes, bytes;
    bool pinned, cards_alone;
} blocks[BLOCKS_MAX];

/* While the card works its memory can be reached. */
static void open_memory(bool open) {
    for (int i = 0; i < BLOCKS_MAX; i++) {
        if (blocks[i].cards_alone)
            mprotect(blocks[i].map, blocks[i].map_bytes - PAGE, open ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
}

static size_t bytes_taken(void) {
    size_t sum = 0;
    for (int i = 0; i < BLOCKS_MAX; i++) sum += blocks[i].bytes;
    return sum;
}

/* The end of what is given is the end of a page. New memory holds NaN, as a card's might. */
static int take(void **at, size_t bytes, bool pinned, bool cards_alone) {
    int i = 0;
    size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN, map_bytes = (rounded + PAGE - 1) / PAGE * PAGE + PAGE;
    while (i < BLOCKS_MAX && blocks[i].map) i++;
    if (i == BLOCKS_MAX || bytes == 0) return INVALID;
    uint8_t *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return NO_MEMORY;
    mprotect(map + map_bytes - PAGE, PAGE, PROT_NONE);
    blocks[i].map = map;
    blocks[i].map_bytes = map_bytes;
    blocks[i].bytes = bytes;
    blocks[i].pinned = pinned;
    *at = blocks[i].at = map + map_bytes - PAGE - rounded;
    madvise(map, map_bytes, MADV_NOHUGEPAGE);
    if (bytes <= NAN_BYTES) memset(*at, 0xff, bytes); /* what is larger is staging and cache: it would take too long */
    blocks[i].cards_alone = cards_alone;
    if (cards_alone) mprotect(map, map_bytes - PAGE, PROT_NONE);
    return OK;
}

static int give_back(const void *at) {
    for (int i = 0; i < BLOCKS_MAX; i++) {
        if (!blocks[i].map || blocks[i].at != at) continue;
        munmap(blocks[i].map, blocks[i].map_bytes);
        memset(&blocks[i], 0, sizeof blocks[i]);
        return OK;
    }
    return INVALID;
}

static bool is_inside(const void *at, size_t bytes, bool pinned) {
    for (int i = 0; i < BLOCKS_MAX; i++) {
        const uint8_t *first = blocks[i].at;
        if (first && blocks[i].pinned == pinned && (const uint8_t *)at >= first &&
            (const uint8_t *)at + bytes <= first + blocks[i].bytes)
            return true;
    }
    return false;
}

#ifdef SHIM_RACES
static bool holds(int block, const uint8_t *at) {
    const uint8_t *first = blocks[block].at;
    return first && at >= first && at < first + blocks[block].bytes;
}

bool shim_is_cards(const void *at) {
    static int found[256]; /* in which block pages lay lately, by their numbers' last bits */
    int *last = &found[(uintptr_t)at / PAGE % 256];
    for (int i = -1; i < BLOCKS_MAX; i++) {
        const int block = i < 0 ? *last : i;
        if (!holds(block, at)) continue;
        *last = block;
        return true;
    }
    return false;
}
#endif

/* --- kernels -------------------------------------------------------------------------------------------------------- */

struct shim_function {
    const char *name;
    shim_kernel *kernel;
    size_t params_bytes;
    int own_bytes, shared_bytes; /* of shared memory: declared, and what a launch may ask for beside it */
};
static struct shim_function functions[KERNELS_MAX];
static int n_functions;
static uint64_t seed;

void shim_register(const char *name, shim_kernel *kernel, size_t params_bytes, int own_bytes) {
    functions[n_functions++] = (struct shim_function){name, kernel, params_bytes, own_bytes, (48 << 10) - own_bytes};
}

/* A recording: launches and their arguments, as they were then. */
struct shim_launch {
    const struct shim_function *function;
    int blocks, threads, shared_bytes;
    void *params;
    bool begins_early;
};
struct shim_graph {
    struct shim_launch *launches;
    int n, owners;
};
static struct shim_graph *recording;
static pthread_t recorder; /* the thread that began it */
static bool is_relaxed, is_broken;

/* For every call but a launch. A card would keep some of them in the recording, and do them again in every replay: with memory that
 * the host has used for something else by then. Others it forbids to the thread that records. */
static bool is_recording(void) {
    bool now = recording && pthread_equal(recorder, pthread_self());
    is_broken |= now;
    return now;
}

static struct shim_launch make_launch(struct shim_launch launch, const void *params) {
    launch.params = malloc(launch.function->params_bytes);
    memcpy(launch.params, params, launch.function->params_bytes);
    return launch;
}

static int record(struct shim_launch launch) {
    struct shim_graph *g = recording;
    g->launches = realloc(g->launches, (size_t)(g->n + 1) * sizeof *g->launches);
    g->launches[g->n++] = launch;
    return OK;
}

static int release(struct shim_graph *g) {
    if (--g->owners > 0) return OK;
    for (int i = 0; i < g->n; i++) free(g->launches[i].params);
    free(g->launches);
    free(g);
    return OK;
}

/* --- the stream: what was asked for and is not done yet -------------------------------------------------------------- */

/* Reached when so many things have been done since the start; the time of that. */
struct shim_event {
    uint64_t after;
    double ms;
    unsigned flags;
    bool is_recorded;
};

enum work_kind { LAUNCH, GRAPH, COPY, FILL, EVENT };
struct work {
    enum work_kind kind;
    struct shim_launch launch;
    struct shim_graph *graph;
    struct shim_event *event;
    void *to;
    const void *from;
    size_t bytes;
    unsigned char value;
};
static struct work *queue;
static size_t n_queued, queue_room;
static uint64_t n_done;

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* The block that does not run, or -1. */
static int left_out_of(const struct shim_launch *l) {
    const char *wrong = getenv("MOEBIUS_SHIM_WRONG");
    return wrong && !strcmp(wrong, l->function->name) ? l->blocks - 1 : -1;
}

static void run_launch(const struct shim_launch *l) {
    race_launch(l->function->name, l->params, l->function->params_bytes, l->blocks, l->begins_early);
    const struct shim_grid grid = {l->blocks, left_out_of(l), l->threads, l->function->own_bytes + l->shared_bytes};
    shim_run(l->function->kernel, l->params, &grid, &seed);
}

static void do_work(struct work *work) {
    switch (work->kind) {
    case LAUNCH:
        run_launch(&work->launch);
        free(work->launch.params);
        break;
    case GRAPH:
        for (int i = 0; i < work->graph->n; i++) run_launch(&work->graph->launches[i]);
        release(work->graph);
        break;
    case COPY:
        memcpy(work->to, work->from, work->bytes);
        break;
    case FILL:
        memset(work->to, work->value, work->bytes);
        break;
    case EVENT:
        work->event->ms = now_ms();
    }
}

/* Works until `n` things have been done since the start. */
static void work_until(uint64_t n) {
    size_t i = 0;
    if (!n_queued || n_done >= n) return;
    open_memory(true);
    for (; i < n_queued && n_done < n; i++, n_done++) do_work(&queue[i]);
    open_memory(false);
    n_queued -= i;
    memmove(queue, queue + i, n_queued * sizeof *queue);
}
static void work_off(void) {
    work_until(n_done + n_queued);
}

static int later(struct work work) {
    if (n_queued == queue_room) {
        queue_room = queue_room ? 2 * queue_room : 256;
        queue = realloc(queue, queue_room * sizeof *queue);
    }
    queue[n_queued++] = work;
    return OK;
}

/* A copy from or to memory that is not pinned is over when the call returns. */
static int copy(void *to, const void *from, const void *host, size_t bytes) {
    later((struct work){.kind = COPY, .to = to, .from = from, .bytes = bytes});
    if (!is_inside(host, bytes, true)) work_off();
    return OK;
}

/* --- the driver's functions ----------------------------------------------------------------------------------------- */

#define API __attribute__((visibility("default")))
int cuInit(unsigned flags);
int cuDriverGetVersion(int *version);
int cuGetErrorName(int code, const char **text);
int cuGetErrorString(int code, const char **text);
int cuDeviceGetCount(int *n);
int cuDeviceGet(int *device, int index);
int cuDeviceGetName(char *name, int size, int device);
int cuDeviceGetAttribute(int *value, int attribute, int device);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuCtxSetCurrent(void *context);
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes);
int cuMemAlloc_v2(uint64_t *at, size_t bytes);
int cuMemFree_v2(uint64_t at);
int cuMemHostAlloc(void **at, size_t bytes, unsigned flags);
int cuMemFreeHost(void *at);
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream);
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream);
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream);
int cuStreamCreate(void **stream, unsigned flags);
int cuStreamSynchronize(void *stream);
int cuStreamDestroy_v2(void *stream);
int cuEventCreate(struct shim_event **event, unsigned flags);
int cuEventRecord(struct shim_event *event, void *stream);
int cuEventSynchronize(const struct shim_event *event);
int cuEventElapsedTime(float *ms, const struct shim_event *first, const struct shim_event *second);
int cuEventDestroy_v2(struct shim_event *event);
int cuModuleLoadData(void **module, const void *image);
int cuModuleUnload(void *module);
int cuModuleGetFunction(struct shim_function **function, void *module, const char *name);
int cuFuncGetAttribute(int *value, int attribute, const struct shim_function *function);
int cuFuncSetAttribute(struct shim_function *function, int attribute, int value);
int cuStreamBeginCapture_v2(void *stream, int mode);
int cuStreamEndCapture(void *stream, struct shim_graph **graph);
int cuGraphInstantiateWithFlags(struct shim_graph **ready, struct shim_graph *graph, unsigned long long flags);
int cuGraphLaunch(struct shim_graph *graph, void *stream);
int cuGraphExecDestroy(struct shim_graph *graph);
int cuGraphDestroy(struct shim_graph *graph);
int cuLaunchKernel(const struct shim_function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream,
                   void **arguments, void **extra);

static char thing; /* what handles point at */

/* A thread without a context can do nothing that a card has a part in; the context goes with the last one who retained it. */
static int retained, generation = 1;
static _Thread_local int used;
static bool has_context(void) {
    return retained > 0 && used == generation;
}

static int ready(void) {
    return !has_context() ? NO_CONTEXT : is_recording() ? NOT_WHILE_RECORDING : OK;
}

API int cuInit(unsigned flags) {
    (void)flags;
    const char *text = getenv("MOEBIUS_SHIM_SEED");
    seed = text ? strtoull(text, NULL, 10) : 1;
    return fails("init") ? NO_DEVICE : OK;
}

API int cuDriverGetVersion(int *version) {
    *version = (int)option("version", 13000);
    return OK;
}

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {INVALID, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {NO_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {NO_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_WHILE_RECORDING, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {RECORDING_BROKEN, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"}};

static int find_error(int code, const char **text, bool name) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].code != code) continue;
        *text = name ? errors[i].name : errors[i].text;
        return OK;
    }
    return INVALID;
}
API int cuGetErrorName(int code, const char **text) {
    return find_error(code, text, true);
}
API int cuGetErrorString(int code, const char **text) {
    return find_error(code, text, false);
}

API int cuDeviceGetCount(int *n) {
    *n = (int)option("devices", 1);
    return OK;
}
API int cuDeviceGet(int *device, int index) {
    *device = index;
    return index < option("devices", 1) ? OK : INVALID;
}
API int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, (size_t)size, "fibres on a CPU %d", device);
    return OK;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = (int)option("capability", 89);
    (void)device;
    *value = attribute == 75   ? capability / 10
             : attribute == 76 ? capability % 10
             : attribute == 97 ? SHIM_SHARED_BYTES
             : attribute == 16 ? (int)option("processors", 3)
                               : 1;
    return OK;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &thing;
    retained++;
    return OK;
}
API int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    work_off();
    free(queue);
    queue = NULL;
    queue_room = 0;
    if (option("leaks", 0) && bytes_taken())
        fprintf(stderr, "fake cuda: %zu bytes were not given back\n", bytes_taken());
    if (retained == 0) return INVALID;
    generation += --retained == 0;
    return OK;
}
API int cuCtxSetCurrent(void *context) {
    used = context == &thing && retained ? generation : 0;
    return used ? OK : INVALID;
}
API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    *total_bytes = (size_t)option("free_mib", 8192) << 20;
    *free_bytes = *total_bytes - bytes_taken();
    return OK;
}
API int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    int refusal = ready();
    if (refusal) return refusal;
    void *memory = NULL;
    int code = fails("alloc") ? NO_MEMORY : take(&memory, bytes, false, true);
    *at = (uint64_t)(uintptr_t)memory;
    return code;
}
API int cuMemFree_v2(uint64_t at) {
    int refusal = ready();
    if (refusal) return refusal;
    work_off();
    return give_back((void *)(uintptr_t)at);
}
API int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    int refusal = ready();
    if (refusal) return refusal;
    bool is_cards = flags & 2; /* kernels are to reach it */
    return fails(is_cards ? "alloc" : "pinned") ? NO_MEMORY : take(at, bytes, !is_cards, false);
}
API int cuMemFreeHost(void *at) {
    int refusal = ready();
    if (refusal) return refusal;
    work_off();
    return give_back(at);
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    int refusal = ready();
    if (refusal) return refusal;
    if (fails("copy")) return LAUNCH_FAILED;
    if (!is_inside((void *)(uintptr_t)to, bytes, false)) return INVALID;
    return copy((void *)(uintptr_t)to, from, from, bytes);
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    (void)stream;
    int refusal = ready();
    if (refusal) return refusal;
    if (fails("copy")) return LAUNCH_FAILED;
    if (!is_inside((void *)(uintptr_t)from, bytes, false)) return INVALID;
    return copy(to, (void *)(uintptr_t)from, to, bytes);
}
API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    int refusal = ready();
    if (refusal) return refusal;
    if (!is_inside((void *)(uintptr_t)to, bytes, false)) return INVALID;
    return later((struct work){.kind = FILL, .to = (void *)(uintptr_t)to, .value = value, .bytes = bytes});
}
API int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    if (!has_context()) return NO_CONTEXT;
    *stream = &thing;
    return OK;
}
API int cuStreamSynchronize(void *stream) {
    (void)stream;
    int refusal = ready();
    if (refusal) return refusal;
    work_off();
    return fails("wait") ? LAUNCH_FAILED : OK;
}
API int cuStreamDestroy_v2(void *stream) {
    (void)stream;
    return OK;
}
API int cuEventCreate(struct shim_event **event, unsigned flags) {
    if (!has_context()) return NO_CONTEXT;
    *event = calloc(1, sizeof **event);
    if (*event) (*event)->flags = flags;
    return *event ? OK : NO_MEMORY;
}
API int cuEventRecord(struct shim_event *event, void *stream) {
    (void)stream;
    int refusal = ready();
    if (refusal) return refusal;
    later((struct work){.kind = EVENT, .event = event});
    event->after = n_done + n_queued;
    event->is_recorded = true;
    return OK;
}
API int cuEventElapsedTime(float *ms, const struct shim_event *first, const struct shim_event *second) {
    enum { NO_TIMING = 2 };
    if (!first->is_recorded || !second->is_recorded || (first->flags | second->flags) & NO_TIMING)
        return INVALID_HANDLE;
    if (first->after > n_done || second->after > n_done) return NOT_READY;
    *ms = (float)(second->ms - first->ms);
    return OK;
}
API int cuEventSynchronize(const struct shim_event *event) {
    if (!has_context()) return NO_CONTEXT;
    work_until(event->after);
    return fails("event") ? LAUNCH_FAILED : OK;
}
API int cuEventDestroy_v2(struct shim_event *event) {
    work_off();
    free(event);
    return OK;
}
API int cuModuleLoadData(void **module, const void *image) {
    (void)image;
    *module = &thing;
    if (!has_context()) return NO_CONTEXT;
    if (option("version", 13000) < 13000) return NO_BINARY; /* what the kernels are said to be made by (image.c) */
    return fails("load") ? NO_BINARY : OK;
}
API int cuModuleUnload(void *module) {
    (void)module;
    return OK;
}
API int cuModuleGetFunction(struct shim_function **function, void *module, const char *name) {
    int capability = (int)option("capability", 89);
    (void)module;
    if (strstr(name, "_native") && strstr(name, "linear") && capability != 89 && capability < 120) return NOT_FOUND;
    for (int i = 0; i < n_functions; i++) {
        if (strcmp(functions[i].name, name)) continue;
        *function = &functions[i];
        return OK;
    }
    return NOT_FOUND;
}
API int cuFuncGetAttribute(int *value, int attribute, const struct shim_function *function) {
    if (attribute != 1) return INVALID;
    *value = function->own_bytes;
    return OK;
}
API int cuFuncSetAttribute(struct shim_function *function, int attribute, int value) {
    if (attribute != 8 || value > SHIM_SHARED_BYTES - function->own_bytes) return INVALID;
    function->shared_bytes = value;
    return OK;
}
/* CUlaunchConfig, with as many attributes as there are here: one. */
struct launch_attribute {
    int id, padding, value[16];
};
struct launch_config {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    const struct launch_attribute *attributes;
    unsigned n_attributes;
};
enum { MAY_BEGIN_EARLY = 6 }; /* CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */

int cuLaunchKernelEx(const struct launch_config *config, const struct shim_function *function, void **arguments,
                     void **extra);
API int cuLaunchKernelEx(const struct launch_config *config, const struct shim_function *function, void **arguments,
                         void **extra) {
    if (!has_context()) return NO_CONTEXT;
    if (fails("launch")) return LAUNCH_FAILED;
    bool flat =
        config->grid[1] == 1 && config->grid[2] == 1 && config->block[1] == 1 && config->block[2] == 1 && !extra;
    if (!flat || !config->grid[0] || (int)config->shared_bytes > function->shared_bytes) return INVALID;
    if (config->n_attributes > 1 || (config->n_attributes && config->attributes->id != MAY_BEGIN_EARLY)) return INVALID;
    bool early = config->n_attributes && config->attributes->value[0];
    if (option("log", 0))
        fprintf(stderr, "fake cuda: %s %u x %u, %u bytes%s\n", function->name, config->grid[0], config->block[0],
                config->shared_bytes, early ? ", may begin early" : "");
    struct shim_launch launch = make_launch((struct shim_launch){.function = function,
                                                                 .blocks = (int)config->grid[0],
                                                                 .threads = (int)config->block[0],
                                                                 .shared_bytes = (int)config->shared_bytes,
                                                                 .begins_early = early},
                                            arguments[0]);
    return recording ? record(launch) : later((struct work){.kind = LAUNCH, .launch = launch});
}

API int cuLaunchKernel(const struct shim_function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream,
                       void **arguments, void **extra) {
    const struct launch_config config = {.grid = {grid_x, grid_y, grid_z},
                                         .block = {block_x, block_y, block_z},
                                         .shared_bytes = shared_bytes,
                                         .stream = stream};
    return cuLaunchKernelEx(&config, function, arguments, extra);
}

API int cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)stream;
    if (!has_context()) return NO_CONTEXT;
    if (recording) return INVALID;
    recording = calloc(1, sizeof *recording);
    recording->owners = 1;
    recorder = pthread_self();
    is_relaxed = mode == 2;
    is_broken = false;
    return OK;
}
API int cuStreamEndCapture(void *stream, struct shim_graph **graph) {
    (void)stream;
    *graph = NULL;
    if (!recording) return INVALID;
    if (!is_relaxed && !pthread_equal(recorder, pthread_self())) return WRONG_THREAD;
    if (is_broken) {
        release(recording);
    } else {
        *graph = recording;
    }
    recording = NULL;
    return *graph ? OK : RECORDING_BROKEN;
}
API int cuGraphInstantiateWithFlags(struct shim_graph **ready, struct shim_graph *graph, unsigned long long flags) {
    (void)flags;
    graph->owners++;
    *ready = graph;
    return fails("prepare") ? NO_MEMORY : OK;
}
API int cuGraphLaunch(struct shim_graph *graph, void *stream) {
    (void)stream;
    int refusal = ready();
    if (refusal) return refusal;
    if (fails("graph")) return LAUNCH_FAILED;
    graph->owners++;
    return later((struct work){.kind = GRAPH, .graph = graph});
}
API int cuGraphExecDestroy(struct shim_graph *graph) {
    return release(graph);
}
API int cuGraphDestroy(struct shim_graph *graph) {
    return release(graph);
}
