/* backend/cuda/driver.h - the GPU's driver, found at run time: libcuda.so.1 is opened by name and the functions below are
 * looked up in it, so one binary runs with or without a GPU. No CUDA headers, no CUDA runtime. Failures come with the
 * driver's own words. Engine thread. Includes: base/error.h. */
#ifndef MOEBIUS_BACKEND_CUDA_DRIVER_H
#define MOEBIUS_BACKEND_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

typedef uint64_t cuda_address; /* in the card's memory */
struct cuda_stream;
struct cuda_event;
struct cuda_module;
struct cuda_function;
struct cuda_context;
struct cuda_graph;
struct cuda_ready_graph;

/* X(result, name, symbol in libcuda.so.1, arguments): symbols with _v2 are today's ABI. */
#define CUDA_FUNCTIONS(X)                                                                                              \
    X(init, cuInit, (unsigned flags))                                                                                  \
    X(driver_version, cuDriverGetVersion, (int *version))                                                              \
    X(error_name, cuGetErrorName, (int code, const char **text))                                                       \
    X(error_text, cuGetErrorString, (int code, const char **text))                                                     \
    X(device_count, cuDeviceGetCount, (int *n))                                                                        \
    X(device_get, cuDeviceGet, (int *device, int index))                                                               \
    X(device_name, cuDeviceGetName, (char *name, int size, int device))                                                \
    X(device_attribute, cuDeviceGetAttribute, (int *value, int attribute, int device))                                 \
    X(context_retain, cuDevicePrimaryCtxRetain, (struct cuda_context * *context, int device))                          \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (int device))                                                     \
    X(context_use, cuCtxSetCurrent, (struct cuda_context * context))                                                   \
    X(memory_info, cuMemGetInfo_v2, (size_t * free_bytes, size_t * total_bytes))                                       \
    X(memory_take, cuMemAlloc_v2, (cuda_address * at, size_t bytes))                                                   \
    X(memory_free, cuMemFree_v2, (cuda_address at))                                                                    \
    X(pinned_take, cuMemHostAlloc, (void **at, size_t bytes, unsigned flags))                                          \
    X(pinned_free, cuMemFreeHost, (void *at))                                                                          \
    X(copy_in, cuMemcpyHtoDAsync_v2, (cuda_address to, const void *from, size_t bytes, struct cuda_stream *stream))    \
    X(copy_out, cuMemcpyDtoHAsync_v2, (void *to, cuda_address from, size_t bytes, struct cuda_stream *stream))         \
    X(fill, cuMemsetD8Async, (cuda_address to, unsigned char value, size_t bytes, struct cuda_stream *stream))         \
    X(stream_create, cuStreamCreate, (struct cuda_stream * *stream, unsigned flags))                                   \
    X(stream_wait, cuStreamSynchronize, (struct cuda_stream * stream))                                                 \
    X(stream_after, cuStreamWaitEvent, (struct cuda_stream * stream, struct cuda_event * event, unsigned flags))       \
    X(stream_destroy, cuStreamDestroy_v2, (struct cuda_stream * stream))                                               \
    X(event_create, cuEventCreate, (struct cuda_event * *event, unsigned flags))                                       \
    X(event_record, cuEventRecord, (struct cuda_event * event, struct cuda_stream * stream))                           \
    X(event_wait, cuEventSynchronize, (struct cuda_event * event))                                                     \
    X(event_elapsed, cuEventElapsedTime, (float *ms, struct cuda_event *first, struct cuda_event *second))             \
    X(event_destroy, cuEventDestroy_v2, (struct cuda_event * event))                                                   \
    X(module_load, cuModuleLoadData, (struct cuda_module * *module, const void *image))                                \
    X(module_unload, cuModuleUnload, (struct cuda_module * module))                                                    \
    X(function_get, cuModuleGetFunction,                                                                               \
      (struct cuda_function * *function, struct cuda_module * module, const char *name))                               \
    X(function_look, cuFuncGetAttribute, (int *value, int attribute, struct cuda_function *function))                  \
    X(function_set, cuFuncSetAttribute, (struct cuda_function * function, int attribute, int value))                   \
    X(capture_begin, cuStreamBeginCapture_v2, (struct cuda_stream * stream, int mode))                                 \
    X(capture_end, cuStreamEndCapture, (struct cuda_stream * stream, struct cuda_graph * *graph))                      \
    X(graph_prepare, cuGraphInstantiateWithFlags,                                                                      \
      (struct cuda_ready_graph * *ready, struct cuda_graph * graph, unsigned long long flags))                         \
    X(graph_launch, cuGraphLaunch, (struct cuda_ready_graph * ready, struct cuda_stream * stream))                     \
    X(graph_forget, cuGraphExecDestroy, (struct cuda_ready_graph * ready))                                             \
    X(graph_destroy, cuGraphDestroy, (struct cuda_graph * graph))                                                      \
    X(launch, cuLaunchKernel,                                                                                          \
      (struct cuda_function * function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,           \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, struct cuda_stream *stream, void **arguments,        \
       void **extra))                                                                                                  \
    X(launch_as, cuLaunchKernelEx,                                                                                     \
      (const struct cuda_launch_config *config, struct cuda_function *function, void **arguments, void **extra))

/* CUlaunchConfig and CUlaunchAttribute. */
struct cuda_launch_attribute {
    int id, padding, value[16];
};
struct cuda_launch_config {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    struct cuda_stream *stream;
    const struct cuda_launch_attribute *attributes;
    unsigned n_attributes;
};
enum { CUDA_MAY_BEGIN_EARLY = 6 }; /* CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: value[0] is yes or no */

struct cuda_driver {
    void *library;
#define CUDA_FIELD(name, symbol, arguments) int(*name) arguments;
    CUDA_FUNCTIONS(CUDA_FIELD)
#undef CUDA_FIELD
};

/* For tests on a card, which look at its memory as at their own: it is taken where both sides reach it, on the host. Set it before
 * cuda_driver_open. */
extern bool cuda_memory_is_shared;

enum {
    CUDA_NO_MEMORY = 2,         /* CUDA_ERROR_OUT_OF_MEMORY */
    CUDA_OLDEST_DRIVER = 12000, /* 12.0, for the functions above; what the kernels need is their nvcc's (image.h) */
    CUDA_OLDEST_CARD = 80,      /* compute capability 8.0 */
};

/* One card, as the driver describes it. */
struct cuda_card {
    char name[128];
    int index, handle, capability; /* 89 is 8.9 */
    int processors, driver_version;
    int shared_bytes; /* that a block may ask for */
    struct cuda_context *context;
    size_t free_bytes, total_bytes;
};

/* Opens the driver and initialises it. Without a driver or a card: MO_E_NOT_FOUND; with one that is too old:
 * MO_E_UNSUPPORTED. */
int cuda_driver_open(struct cuda_driver *driver, struct mo_error *error);
void cuda_driver_close(struct cuda_driver *driver); /* accepts a zeroed one */

/* Takes card `index` into use by this thread, and describes it. A card below 8.0 is MO_E_UNSUPPORTED. */
int cuda_card_open(const struct cuda_driver *driver, int index, struct cuda_card *card, struct mo_error *error);
/* The other way round, for the thread that closes. */
void cuda_card_close(const struct cuda_driver *driver, const struct cuda_card *card);

/* 0, or an error "WHAT: the driver's words (NAME)"; out of memory is MO_E_NO_MEMORY. */
int cuda_check(const struct cuda_driver *driver, int result, struct mo_error *error, const char *what, ...)
    __attribute__((format(printf, 4, 5)));

#endif
