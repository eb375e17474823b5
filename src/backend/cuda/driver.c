#include "backend/cuda/driver.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* CUdevice_attribute */
enum {
    ATTRIBUTE_PROCESSORS = 16,
    ATTRIBUTE_MAJOR = 75,
    ATTRIBUTE_MINOR = 76,
    ATTRIBUTE_SHARED_OPTIN = 97,
};

int cuda_check(const struct cuda_driver *driver, int result, struct mo_error *error, const char *what, ...) {
    if (result == 0) return 0;
    const char *text = NULL, *name = NULL;
    char place[512];
    va_list arguments;
    va_start(arguments, what);
    vsnprintf(place, sizeof place, what, arguments);
    va_end(arguments);
    if (driver->error_text) driver->error_text(result, &text);
    if (driver->error_name) driver->error_name(result, &name);
    return mo_error_set(error, result == CUDA_NO_MEMORY ? MO_E_NO_MEMORY : MO_E_IO, "%s: %s (%s, %d)", place,
                        text ? text : "the driver gives no reason", name ? name : "unknown", result);
}

/* dlsym gives an object pointer; POSIX promises that its bytes are the function's address. */
static int find(const struct cuda_driver *driver, const char *symbol, void *field, struct mo_error *error) {
    void *address = dlsym(driver->library, symbol);
    memcpy(field, &address, sizeof address);
    if (address) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "libcuda.so.1 has no %s: the GPU driver is too old (CUDA %d.%d or newer is needed)", symbol,
                        CUDA_OLDEST_DRIVER / 1000, CUDA_OLDEST_DRIVER % 1000 / 10);
}

bool cuda_memory_is_shared;
static struct cuda_driver plain; /* the driver's own functions, behind those for shared memory */

/* The machine's memory, which the card reaches at the same address. Not managed memory: a few machines that lend their cards out do
 * not have it, or hang on it. */
static int take_shared(cuda_address *at, size_t bytes) {
    void *memory = NULL;
    int result = plain.pinned_take(&memory, bytes, 2); /* CU_MEMHOSTALLOC_DEVICEMAP */
    *at = (cuda_address)(uintptr_t)memory;
    return result;
}

static int free_shared(cuda_address at) {
    return plain.pinned_free((void *)(uintptr_t)at);
}

/* No driver promises to take such memory for the card's in its copies, so these are the machine's own. */
static int copy_in_shared(cuda_address to, const void *from, size_t bytes, struct cuda_stream *stream) {
    int result = plain.stream_wait(stream);
    if (!result) memcpy((void *)(uintptr_t)to, from, bytes);
    return result;
}

static int copy_out_shared(void *to, cuda_address from, size_t bytes, struct cuda_stream *stream) {
    int result = plain.stream_wait(stream);
    if (!result) memcpy(to, (const void *)(uintptr_t)from, bytes);
    return result;
}

static int fill_shared(cuda_address to, unsigned char value, size_t bytes, struct cuda_stream *stream) {
    int result = plain.stream_wait(stream);
    if (!result) memset((void *)(uintptr_t)to, value, bytes);
    return result;
}

static void share_memory(struct cuda_driver *driver) {
    plain = *driver;
    driver->memory_take = take_shared;
    driver->memory_free = free_shared;
    driver->copy_in = copy_in_shared;
    driver->copy_out = copy_out_shared;
    driver->fill = fill_shared;
}

static int find_all(struct cuda_driver *driver, struct mo_error *error) {
    int code = 0;
#define CUDA_FIND(name, symbol, arguments)                                                                             \
    if (!code) code = find(driver, #symbol, &driver->name, error);
    CUDA_FUNCTIONS(CUDA_FIND)
#undef CUDA_FIND
    if (!code && cuda_memory_is_shared) share_memory(driver);
    return code;
}

static int start(struct cuda_driver *driver, struct mo_error *error) {
    int version = 0, n = 0;
    int result = driver->init(0);
    if (result) {
        cuda_check(driver, result, error, "the GPU driver does not start");
        if (error) error->code = MO_E_NOT_FOUND; /* a driver without a card, most of the time */
        return MO_E_NOT_FOUND;
    }
    int code = cuda_check(driver, driver->driver_version(&version), error, "the GPU driver does not tell its version");
    if (code) return code;
    if (version < CUDA_OLDEST_DRIVER) {
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "the GPU driver is too old: it knows CUDA %d.%d, %d.%d or newer is needed", version / 1000,
                            version % 1000 / 10, CUDA_OLDEST_DRIVER / 1000, CUDA_OLDEST_DRIVER % 1000 / 10);
    }
    code = cuda_check(driver, driver->device_count(&n), error, "the GPU driver does not count its cards");
    if (code || n > 0) return code;
    return mo_error_set(error, MO_E_NOT_FOUND, "the GPU driver sees no card (CUDA_VISIBLE_DEVICES may hide it)");
}

/* The driver stays in the process once it is there: it leaves threads and what they do at their end behind. */
int cuda_driver_open(struct cuda_driver *driver, struct mo_error *error) {
    *driver = (struct cuda_driver){.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)};
    if (!driver->library) {
        return mo_error_set(error, MO_E_NOT_FOUND, "no GPU driver: %s", dlerror());
    }
    int code = find_all(driver, error);
    if (!code) code = start(driver, error);
    if (code) cuda_driver_close(driver);
    return code;
}

void cuda_driver_close(struct cuda_driver *driver) {
    if (driver->library) dlclose(driver->library);
    *driver = (struct cuda_driver){0};
}

static int describe(const struct cuda_driver *driver, struct cuda_card *card, struct mo_error *error) {
    int major = 0, minor = 0;
    int result = driver->device_name(card->name, sizeof card->name, card->handle);
    if (!result) result = driver->device_attribute(&major, ATTRIBUTE_MAJOR, card->handle);
    if (!result) result = driver->device_attribute(&minor, ATTRIBUTE_MINOR, card->handle);
    if (!result) result = driver->device_attribute(&card->processors, ATTRIBUTE_PROCESSORS, card->handle);
    if (!result) result = driver->device_attribute(&card->shared_bytes, ATTRIBUTE_SHARED_OPTIN, card->handle);
    if (!result) result = driver->driver_version(&card->driver_version);
    int code = cuda_check(driver, result, error, "GPU %d cannot be described", card->index);
    card->capability = major * 10 + minor;
    if (code || card->capability >= CUDA_OLDEST_CARD) return code;
    return mo_error_set(error, MO_E_UNSUPPORTED, "GPU %d (%s) has compute capability %d.%d: 8.0 or newer is needed",
                        card->index, card->name, major, minor);
}

int cuda_card_open(const struct cuda_driver *driver, int index, struct cuda_card *card, struct mo_error *error) {
    int n = 0;
    *card = (struct cuda_card){.index = index};
    int code = cuda_check(driver, driver->device_count(&n), error, "the GPU driver does not count its cards");
    if (code) return code;
    if (index < 0 || index >= n) {
        return mo_error_set(error, MO_E_NOT_FOUND, "there is no GPU %d: the driver sees %d, numbered from 0", index, n);
    }
    code = cuda_check(driver, driver->device_get(&card->handle, index), error, "GPU %d cannot be opened", index);
    if (!code) code = describe(driver, card, error);
    if (code) return code;
    code = cuda_check(driver, driver->context_retain(&card->context, card->handle), error, "GPU %d (%s) cannot be used",
                      index, card->name);
    if (code) return code;
    int result = driver->context_use(card->context);
    if (!result) result = driver->memory_info(&card->free_bytes, &card->total_bytes);
    code = cuda_check(driver, result, error, "GPU %d (%s) cannot be used", index, card->name);
    if (code) driver->context_release(card->handle);
    return code;
}

void cuda_card_close(const struct cuda_driver *driver, const struct cuda_card *card) {
    driver->context_release(card->handle);
}
