/* tests/shim/libcuda.c - a libcuda.so.1 for tests: its cards' memory is the machine's, its kernels run as fibres, and it
 * fails where it is told to. It does nothing before somebody waits for it: as late as a card might, so that what the host reads or
 * overwrites too early is found out. Memory ends at a page that must not be touched, so that a kernel that reads or writes past the
 * end of what it was given dies on the spot; and between kernels and copies the card's memory is nobody's, so that a host that takes an
 * address of the card's for one of its own dies, too, and so does a kernel that reaches for another card's: there is no peer access. (Not what is taken where both sides reach it, as tests do: cuda_memory_is_shared.)
 *
 * MOEBIUS_FAKE_CUDA is a list of NAME=NUMBER, separated by commas:
 *   devices, version, capability, processors, free_mib   what the machine has (default 1, 13000, 89, 3, 8192)
 *   free_mib1, free_mib2, ...                what these cards have, where they have not the same
 *   init, alloc, pinned, load, launch, copy, wait, event, prepare, graph   the N-th such call fails (alloc and pinned: out of
 *                                              memory; event: waiting for one)
 *   eager                                    1: a stream whose event is waited for goes on behind it, as far as it can
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
#include <unistd.h>

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
enum {
    KERNELS_MAX = 128,
    DEVICES_MAX = 8,
    BLOCKS_MAX = 1024,
    NAN_BYTES = 24 << 20,
    NAN_PIECE = 1 << 20,
    PAGE = 4096,
    ALIGN = 16
};

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
    int device; /* whose memory it is, or whose context it was pinned in */
    bool pinned, cards_alone;
} blocks[BLOCKS_MAX];

/* While a card works its memory can be reached, and no other card's. */
static int opened = -1;
static void open_memory(int device) {
    for (int i = 0; i < BLOCKS_MAX && opened != device; i++) {
        if (!blocks[i].cards_alone || (blocks[i].device != device && blocks[i].device != opened)) continue;
        mprotect(blocks[i].map, blocks[i].map_bytes - PAGE,
                 blocks[i].device == device ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
    opened = device;
}

/* The host's turn, who must not touch a card's memory. To close it takes a fifth of a decoding test's time, so once all kinds of work have
 * been seen it is only now and then. */
static void close_memory(void) {
    enum { ALWAYS = 32, THEN = 8 };
    static int times;
    if (++times < ALWAYS || times % THEN == 0) open_memory(-1);
}

static size_t bytes_taken(int device) {
    size_t sum = 0;
    for (int i = 0; i < BLOCKS_MAX; i++) sum += blocks[i].device == device ? blocks[i].bytes : 0;
    return sum;
}

/* New memory holds NaN, as a card's might: it is a piece of a file full of them, again and again, so what nobody touches takes no page,
 * and nothing to open and to close. */
static bool fill_with_nan(uint8_t *map, size_t bytes) {
    static int file = -1;
    if (file < 0) {
        uint8_t *piece = MAP_FAILED;
        file = memfd_create("nan", MFD_CLOEXEC);
        if (file >= 0 && !ftruncate(file, NAN_PIECE))
            piece = mmap(NULL, NAN_PIECE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (piece == MAP_FAILED) return false;
        memset(piece, 0xff, NAN_PIECE);
        munmap(piece, NAN_PIECE);
    }
    for (size_t i = 0; i < bytes; i += NAN_PIECE) {
        const size_t n = bytes - i < NAN_PIECE ? bytes - i : NAN_PIECE;
        if (mmap(map + i, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, file, 0) == MAP_FAILED)
            return false;
    }
    return true;
}

/* The end of what is given is the end of a page. */
static int take(void **at, size_t bytes, int device, bool pinned, bool cards_alone) {
    int i = 0;
    size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN, map_bytes = (rounded + PAGE - 1) / PAGE * PAGE + PAGE;
    while (i < BLOCKS_MAX && blocks[i].map) i++;
    if (i == BLOCKS_MAX || bytes == 0) return INVALID;
    uint8_t *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return NO_MEMORY;
    if (bytes <= NAN_BYTES && !fill_with_nan(map, map_bytes - PAGE)) return NO_MEMORY; /* larger: staging and cache */
    mprotect(map + map_bytes - PAGE, PAGE, PROT_NONE);
    madvise(map, map_bytes, MADV_NOHUGEPAGE);
    blocks[i].map = map;
    blocks[i].map_bytes = map_bytes;
    blocks[i].bytes = bytes;
    blocks[i].device = device;
    blocks[i].pinned = pinned;
    *at = blocks[i].at = map + map_bytes - PAGE - rounded;
    blocks[i].cards_alone = cards_alone;
    if (cards_alone && device != opened) mprotect(map, map_bytes - PAGE, PROT_NONE);
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

/* A card's memory, or (device -1) what is pinned. */
static bool is_inside(const void *at, size_t bytes, int device) {
    for (int i = 0; i < BLOCKS_MAX; i++) {
        const uint8_t *first = blocks[i].at;
        if (first && (device < 0 ? blocks[i].pinned : !blocks[i].pinned && blocks[i].device == device) &&
            (const uint8_t *)at >= first && (const uint8_t *)at + bytes <= first + blocks[i].bytes)
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
    static int found[8192]; /* in which block pages lay lately, by their numbers' last bits */
    int *last = &found[(uintptr_t)at / PAGE % 8192];
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
    int device;
};
static struct shim_function functions[DEVICES_MAX][KERNELS_MAX]; /* each card loads its own */
static int n_functions;
static uint64_t seed;

void shim_register(const char *name, shim_kernel *kernel, size_t params_bytes, int own_bytes) {
    for (int i = 0; i < DEVICES_MAX; i++)
        functions[i][n_functions] =
            (struct shim_function){name, kernel, params_bytes, own_bytes, (48 << 10) - own_bytes, i};
    n_functions++;
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
static const struct shim_stream *recorded; /* the stream of it */
static pthread_t recorder;                 /* the thread that began it */
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

/* --- streams: what was asked for and is not done yet ------------------------------------------------------------------ */

/* Reached when so many things have been done in a stream since its start; the time of that. */
struct shim_event {
    struct shim_stream *stream; /* NULL: never recorded */
    uint64_t after;
    double ms;
    unsigned flags;
    int device;
};

/* WAIT: for another stream's event, as it was when that was asked for. */
enum work_kind { LAUNCH, GRAPH, COPY, FILL, EVENT, WAIT };
struct work {
    enum work_kind kind;
    struct shim_launch launch;
    struct shim_graph *graph;
    struct shim_event *event;
    void *to;
    const void *from;
    size_t bytes;
    unsigned char value;
    struct shim_stream *stream;
    uint64_t after;
};
/* Streams do nothing for each other but what they were told to wait for: so what should have been waited for has not been done. */
struct shim_stream {
    int device;
    struct work *queue;
    size_t n_queued, room;
    uint64_t n_done;
    struct shim_stream *next;
};
static struct shim_stream *streams;

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

static void work_until(struct shim_stream *stream, uint64_t n);

static void do_work(struct work *work) {
    switch (work->kind) {
    case WAIT:
        work_until(work->stream, work->after);
        break;
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

/* Works until `n` things have been done in the stream since its start. */
static void work_until(struct shim_stream *stream, uint64_t n) {
    size_t i = 0;
    for (; i < stream->n_queued && stream->n_done < n; i++, stream->n_done++) {
        open_memory(stream->device);
        do_work(&stream->queue[i]);
    }
    close_memory();
    stream->n_queued -= i;
    if (i) memmove(stream->queue, stream->queue + i, stream->n_queued * sizeof *stream->queue);
}
static void work_off(struct shim_stream *stream) {
    work_until(stream, stream->n_done + stream->n_queued);
}
static void add_stream(struct shim_stream *stream) {
    stream->next = streams;
    streams = stream;
}
/* As some calls do, which say that they may. */
static void work_off_all(void) {
    for (struct shim_stream *s = streams; s; s = s->next) work_off(s);
}

static int later(struct shim_stream *stream, struct work work) {
    if (stream->n_queued == stream->room) {
        stream->room = stream->room ? 2 * stream->room : 256;
        stream->queue = realloc(stream->queue, stream->room * sizeof *stream->queue);
    }
    stream->queue[stream->n_queued++] = work;
    return OK;
}

/* A copy from or to memory that is not pinned is over when the call returns. */
static int copy(struct shim_stream *stream, void *to, const void *from, const void *host, size_t bytes) {
    later(stream, (struct work){.kind = COPY, .to = to, .from = from, .bytes = bytes});
    if (!is_inside(host, bytes, -1)) work_off(stream);
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
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct shim_stream *stream);
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct shim_stream *stream);
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, struct shim_stream *stream);
int cuStreamCreate(struct shim_stream **stream, unsigned flags);
int cuStreamSynchronize(struct shim_stream *stream);
int cuStreamWaitEvent(struct shim_stream *stream, const struct shim_event *event, unsigned flags);
int cuStreamDestroy_v2(struct shim_stream *stream);
int cuEventCreate(struct shim_event **event, unsigned flags);
int cuEventRecord(struct shim_event *event, struct shim_stream *stream);
int cuEventSynchronize(const struct shim_event *event);
int cuEventElapsedTime(float *ms, const struct shim_event *first, const struct shim_event *second);
int cuEventDestroy_v2(struct shim_event *event);
int cuModuleLoadData(void **module, const void *image);
int cuModuleUnload(void *module);
int cuModuleGetFunction(struct shim_function **function, void *module, const char *name);
int cuFuncGetAttribute(int *value, int attribute, const struct shim_function *function);
int cuFuncSetAttribute(struct shim_function *function, int attribute, int value);
int cuStreamBeginCapture_v2(struct shim_stream *stream, int mode);
int cuStreamEndCapture(struct shim_stream *stream, struct shim_graph **graph);
int cuGraphInstantiateWithFlags(struct shim_graph **ready, struct shim_graph *graph, unsigned long long flags);
int cuGraphLaunch(struct shim_graph *graph, struct shim_stream *stream);
int cuGraphExecDestroy(struct shim_graph *graph);
int cuGraphDestroy(struct shim_graph *graph);
int cuLaunchKernel(const struct shim_function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   struct shim_stream *stream, void **arguments, void **extra);

static char thing; /* what handles point at */

/* A card's context. A thread without one can do nothing that a card has a part in; it goes with the last one who retained it. */
static struct shim_context {
    int device, retained, generation;
    struct shim_stream own;
} contexts[DEVICES_MAX];
static _Thread_local struct shim_context *used;
static _Thread_local int used_generation;
static bool has_context(void) {
    return used && used->retained > 0 && used_generation == used->generation;
}

static int ready(void) {
    return !has_context() ? NO_CONTEXT : is_recording() ? NOT_WHILE_RECORDING : OK;
}

/* NULL is the context's own stream. */
static struct shim_stream *stream_of(struct shim_stream *given) {
    return given ? given : &used->own;
}

/* What a stream is asked for wants its card's context. */
static int ready_for(struct shim_stream **stream) {
    int refusal = ready();
    if (refusal) return refusal;
    *stream = stream_of(*stream);
    return (*stream)->device == used->device ? OK : INVALID_HANDLE;
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
    struct shim_context *c = &contexts[device];
    c->device = c->own.device = device;
    if (!c->retained++ && !c->generation) add_stream(&c->own);
    *context = &contexts[device];
    return OK;
}
API int cuDevicePrimaryCtxRelease_v2(int device) {
    work_off_all();
    if (option("leaks", 0) && bytes_taken(device))
        fprintf(stderr, "fake cuda: %zu bytes were not given back\n", bytes_taken(device));
    if (contexts[device].retained == 0) return INVALID;
    contexts[device].generation += --contexts[device].retained == 0;
    return OK;
}
API int cuCtxSetCurrent(void *context) {
    used = context;
    if (used) used_generation = used->generation;
    return has_context() ? OK : INVALID;
}
API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    char own[32];
    if (!has_context()) return NO_CONTEXT;
    snprintf(own, sizeof own, "free_mib%d", used->device);
    *total_bytes = (size_t)option(own, option("free_mib", 8192)) << 20;
    *free_bytes = *total_bytes - bytes_taken(used->device);
    return OK;
}
API int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    int refusal = ready();
    if (refusal) return refusal;
    void *memory = NULL;
    int code = fails("alloc") ? NO_MEMORY : take(&memory, bytes, used->device, false, true);
    *at = (uint64_t)(uintptr_t)memory;
    return code;
}
API int cuMemFree_v2(uint64_t at) {
    int refusal = ready();
    if (refusal) return refusal;
    work_off_all();
    return give_back((void *)(uintptr_t)at);
}
API int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    int refusal = ready();
    if (refusal) return refusal;
    bool is_cards = flags & 2; /* kernels are to reach it */
    return fails(is_cards ? "alloc" : "pinned") ? NO_MEMORY : take(at, bytes, used->device, !is_cards, false);
}
API int cuMemFreeHost(void *at) {
    int refusal = ready();
    if (refusal) return refusal;
    work_off_all();
    return give_back(at);
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct shim_stream *stream) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    if (fails("copy")) return LAUNCH_FAILED;
    if (!is_inside((void *)(uintptr_t)to, bytes, stream->device)) return INVALID;
    return copy(stream, (void *)(uintptr_t)to, from, from, bytes);
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct shim_stream *stream) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    if (fails("copy")) return LAUNCH_FAILED;
    if (!is_inside((void *)(uintptr_t)from, bytes, stream->device)) return INVALID;
    return copy(stream, to, (void *)(uintptr_t)from, to, bytes);
}
API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, struct shim_stream *stream) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    if (!is_inside((void *)(uintptr_t)to, bytes, stream->device)) return INVALID;
    return later(stream, (struct work){.kind = FILL, .to = (void *)(uintptr_t)to, .value = value, .bytes = bytes});
}
API int cuStreamCreate(struct shim_stream **stream, unsigned flags) {
    (void)flags;
    if (!has_context()) return NO_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    if (!*stream) return NO_MEMORY;
    (*stream)->device = used->device;
    add_stream(*stream);
    return OK;
}
API int cuStreamSynchronize(struct shim_stream *stream) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    work_off(stream);
    return fails("wait") ? LAUNCH_FAILED : OK;
}
API int cuStreamWaitEvent(struct shim_stream *stream, const struct shim_event *event, unsigned flags) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    if (flags) return INVALID;
    if (!event->stream) return OK;
    return later(stream, (struct work){.kind = WAIT, .stream = event->stream, .after = event->after});
}
API int cuStreamDestroy_v2(struct shim_stream *stream) {
    struct shim_stream **at = &streams;
    work_off_all(); /* others may be waiting for it */
    while (*at != stream) at = &(*at)->next;
    *at = stream->next;
    free(stream->queue);
    free(stream);
    return OK;
}
API int cuEventCreate(struct shim_event **event, unsigned flags) {
    if (!has_context()) return NO_CONTEXT;
    *event = calloc(1, sizeof **event);
    if (!*event) return NO_MEMORY;
    **event = (struct shim_event){.flags = flags, .device = used->device};
    return OK;
}
API int cuEventRecord(struct shim_event *event, struct shim_stream *stream) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    if (event->device != stream->device) return INVALID_HANDLE;
    later(stream, (struct work){.kind = EVENT, .event = event});
    event->after = stream->n_done + stream->n_queued;
    event->stream = stream;
    return OK;
}
static bool is_over(const struct shim_event *event) {
    return event->after <= event->stream->n_done;
}
API int cuEventElapsedTime(float *ms, const struct shim_event *first, const struct shim_event *second) {
    enum { NO_TIMING = 2 };
    if (!first->stream || !second->stream || (first->flags | second->flags) & NO_TIMING) return INVALID_HANDLE;
    if (!is_over(first) || !is_over(second)) return NOT_READY;
    *ms = (float)(second->ms - first->ms);
    return OK;
}
API int cuEventSynchronize(const struct shim_event *event) {
    if (!has_context()) return NO_CONTEXT;
    if (event->stream) work_until(event->stream, option("eager", 0) ? UINT64_MAX : event->after);
    return fails("event") ? LAUNCH_FAILED : OK;
}
API int cuEventDestroy_v2(struct shim_event *event) {
    work_off_all();
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
    if (!has_context()) return NO_CONTEXT;
    if (strstr(name, "_native") && strstr(name, "linear") && capability != 89 && capability < 120) return NOT_FOUND;
    for (int i = 0; i < n_functions; i++) {
        if (strcmp(functions[used->device][i].name, name)) continue;
        *function = &functions[used->device][i];
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
    struct shim_stream *stream;
    const struct launch_attribute *attributes;
    unsigned n_attributes;
};
enum { MAY_BEGIN_EARLY = 6 }; /* CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */

int cuLaunchKernelEx(const struct launch_config *config, const struct shim_function *function, void **arguments,
                     void **extra);
API int cuLaunchKernelEx(const struct launch_config *config, const struct shim_function *function, void **arguments,
                         void **extra) {
    if (!has_context()) return NO_CONTEXT;
    struct shim_stream *stream = stream_of(config->stream);
    if (stream->device != used->device || function->device != used->device) return INVALID_HANDLE;
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
    bool is_recorded = recording && recorded == stream;
    return is_recorded ? record(launch) : later(stream, (struct work){.kind = LAUNCH, .launch = launch});
}

API int cuLaunchKernel(const struct shim_function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                       struct shim_stream *stream, void **arguments, void **extra) {
    const struct launch_config config = {.grid = {grid_x, grid_y, grid_z},
                                         .block = {block_x, block_y, block_z},
                                         .shared_bytes = shared_bytes,
                                         .stream = stream};
    return cuLaunchKernelEx(&config, function, arguments, extra);
}

API int cuStreamBeginCapture_v2(struct shim_stream *stream, int mode) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    recorded = stream;
    recording = calloc(1, sizeof *recording);
    recording->owners = 1;
    recorder = pthread_self();
    is_relaxed = mode == 2;
    is_broken = false;
    return OK;
}
API int cuStreamEndCapture(struct shim_stream *stream, struct shim_graph **graph) {
    *graph = NULL;
    if (!recording || recorded != stream) return INVALID;
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
API int cuGraphLaunch(struct shim_graph *graph, struct shim_stream *stream) {
    int refusal = ready_for(&stream);
    if (refusal) return refusal;
    if (graph->n && graph->launches[0].function->device != stream->device) return INVALID_HANDLE;
    if (fails("graph")) return LAUNCH_FAILED;
    graph->owners++;
    return later(stream, (struct work){.kind = GRAPH, .graph = graph});
}
API int cuGraphExecDestroy(struct shim_graph *graph) {
    return release(graph);
}
API int cuGraphDestroy(struct shim_graph *graph) {
    return release(graph);
}
