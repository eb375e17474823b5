/* backend/cuda/pages.c - one page of the latent cache from the card or to it, by way of a pinned page, in a stream of its own: a
 * step at work goes on, and neither waits for the other. Whoever asks knows that the step does not touch the page. */
#include <string.h>
#include "backend/cuda/cuda.h"

static size_t layer_bytes(const struct cuda *cuda) {
    return KV_PAGE_TOKENS * cuda->row_bytes;
}

static size_t page_bytes(const struct cuda *cuda) {
    return (size_t)cuda->part.n_layers * layer_bytes(cuda);
}

int cuda_pages_open(struct cuda *cuda, struct mo_error *error) {
    size_t bytes = page_bytes(cuda);
    void *memory = NULL;
    if (!cuda->options.copies_pages) return 0;
    int code = cuda_check(&cuda->driver, cuda->driver.stream_create(&cuda->page_stream, 1), error,
                          "GPU %d: no stream for pages", cuda->card.index);
    if (code) return code;
    code = cuda_check(&cuda->driver, cuda->driver.pinned_take(&memory, bytes, 0), error,
                      "%zu bytes of pinned memory for a page", bytes);
    cuda->page = memory;
    return code;
}

void cuda_pages_close(struct cuda *cuda) {
    if (cuda->page) cuda->driver.pinned_free(cuda->page);
    if (cuda->page_stream) cuda->driver.stream_destroy(cuda->page_stream);
}

static cuda_address place_of(const struct cuda *cuda, int layer, int32_t page) {
    size_t index = (size_t)layer * (size_t)cuda->options.n_pages + (size_t)page;
    return cuda->cache_at + index * layer_bytes(cuda);
}

/* All layers that are here, and waits for them. */
static int copy_layers(struct cuda *cuda, int32_t page, bool out) {
    const struct cuda_driver *d = &cuda->driver;
    size_t bytes = layer_bytes(cuda);
    int result = d->context_use(cuda->card.context);
    for (int layer = 0; layer < cuda->part.n_layers && !result; layer++) {
        uint8_t *here = cuda->page + (size_t)layer * bytes;
        cuda_address there = place_of(cuda, layer, page);
        result = out ? d->copy_out(here, there, bytes, cuda->page_stream)
                     : d->copy_in(there, here, bytes, cuda->page_stream);
    }
    int waited =
        d->stream_wait(cuda->page_stream); /* what has begun is waited for in any case: the memory is used again */
    return result ? result : waited;
}

int cuda_page_out(struct backend *backend, int32_t page, void *to, struct mo_error *error) {
    struct cuda *cuda = (struct cuda *)backend;
    int code = cuda_check(&cuda->driver, copy_layers(cuda, page, true), error, "GPU %d: reading a page of the cache",
                          cuda->card.index);
    if (!code) memcpy(to, cuda->page, page_bytes(cuda));
    return code;
}

int cuda_page_in(struct backend *backend, int32_t page, const void *from, struct mo_error *error) {
    struct cuda *cuda = (struct cuda *)backend;
    memcpy(cuda->page, from, page_bytes(cuda));
    return cuda_check(&cuda->driver, copy_layers(cuda, page, false), error, "GPU %d: sending a page of the cache",
                      cuda->card.index);
}
