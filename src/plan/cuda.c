/* plan/cuda.c - the cards, through the driver's own library; the names and numbers are those of its published interface. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "plan/detect.h"

enum {
    ATTRIBUTE_CLOCK_KHZ = 13,
    ATTRIBUTE_PROCESSORS = 16,
    ATTRIBUTE_MEMORY_KHZ = 36,
    ATTRIBUTE_BUS_BITS = 37,
    ATTRIBUTE_MAJOR = 75,
    ATTRIBUTE_MINOR = 76,
};

struct driver {
    int (*init)(unsigned flags);
    int (*version)(int *version);
    int (*count)(int *count);
    int (*get)(int *device, int ordinal);
    int (*name)(char *name, int size, int device);
    int (*memory)(size_t *bytes, int device);
    int (*attribute)(int *value, int attribute, int device);
};

static bool find(void *library, const char *name, void *function) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol); /* ISO C has no cast from an object to a function */
    return symbol != NULL;
}

static bool bind(struct driver *d, void *library) {
    return find(library, "cuInit", &d->init) && find(library, "cuDriverGetVersion", &d->version) &&
           find(library, "cuDeviceGetCount", &d->count) && find(library, "cuDeviceGet", &d->get) &&
           find(library, "cuDeviceGetName", &d->name) && find(library, "cuDeviceTotalMem_v2", &d->memory) &&
           find(library, "cuDeviceGetAttribute", &d->attribute);
}

static int attribute(const struct driver *d, int which, int device) {
    int value = 0;
    return d->attribute(&value, which, device) ? 0 : value;
}

/* 16-bit tensor operations with fp32 sums a clock and processor, dense: GeForce and workstation cards have a quarter of a
 * data-centre card's. */
static double ops_a_clock(int capability) {
    switch (capability) {
    case 80:
        return 2048;
    case 90:
        return 4096;
    case 100:
    case 103:
        return 8192;
    default:
        return capability >= 86 ? 512 : capability >= 70 ? 1024 : 0;
    }
}

static void read_card(const struct driver *d, int ordinal, struct plan_cuda *cuda) {
    struct plan_gpu *gpu = &cuda->cards[cuda->n];
    int device = 0;
    size_t bytes = 0;
    *gpu = (struct plan_gpu){.count = 1, .link_gb_s = 25, .host_gb_s = 25};
    if (d->get(&device, ordinal) || d->memory(&bytes, device) || d->name(gpu->name, sizeof gpu->name, device)) return;
    gpu->name[sizeof gpu->name - 1] = 0;
    int capability = attribute(d, ATTRIBUTE_MAJOR, device) * 10 + attribute(d, ATTRIBUTE_MINOR, device);
    double clock = attribute(d, ATTRIBUTE_CLOCK_KHZ, device) * 1e3;
    gpu->memory_bytes = (double)bytes;
    gpu->gb_s = 2e3 * attribute(d, ATTRIBUTE_MEMORY_KHZ, device) * attribute(d, ATTRIBUTE_BUS_BITS, device) / 8 * 1e-9;
    gpu->tflops = attribute(d, ATTRIBUTE_PROCESSORS, device) * clock * ops_a_clock(capability) * 1e-12;
    cuda->capability[cuda->n++] = capability;
}

static void read_cards(const struct driver *d, struct plan_cuda *cuda) {
    int count = 0, code = d->init(0);
    if (!code) code = d->version(&cuda->driver_version);
    if (!code) code = d->count(&count);
    if (code) {
        snprintf(cuda->why_not, sizeof cuda->why_not, "the NVIDIA driver is installed, but says error %d", code);
        return;
    }
    for (int i = 0; i < count && cuda->n < PLAN_MAX_CARDS; i++) read_card(d, i, cuda);
    if (!cuda->n) snprintf(cuda->why_not, sizeof cuda->why_not, "the NVIDIA driver is installed, but sees no card");
}

void plan_detect_cuda(struct plan_cuda *cuda) {
    struct driver driver;
    *cuda = (struct plan_cuda){0};
    void *library =
        dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* stays open: unloading a driver is asking for trouble */
    if (!library) {
        snprintf(cuda->why_not, sizeof cuda->why_not, "no NVIDIA driver (libcuda.so.1) on this machine");
    } else if (!bind(&driver, library)) {
        snprintf(cuda->why_not, sizeof cuda->why_not,
                 "libcuda.so.1 is too old or is not the driver's: functions are missing");
    } else {
        read_cards(&driver, cuda);
    }
}

void plan_cuda_gpu(const struct plan_cuda *cuda, struct plan_gpu *gpu) {
    *gpu = (struct plan_gpu){0};
    for (int i = 0; i < cuda->n; i++) {
        if (i == 0) *gpu = cuda->cards[0];
        if (i > 0 && !strcmp(cuda->cards[i].name, gpu->name)) gpu->count++;
    }
}
