/* backend/cuda/pages.c - one page of the latent cache from the card or to it, by way of a pinned page, in a stream of its own: a
 * step at work goes on, and neither waits for the other. Whoever asks knows that the step does not touch the page. */
#include <string.h>
#include "backend/cuda/cuda.h"

int cuda_pages_open(struct cuda *cuda, struct mo_error *error) {
    size_t bytes = cuda_page_bytes(cuda);
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

/* A piece of the page, between the card and where *here is; that moves on. */
struct page_copy {
    struct cuda *cuda;
    uint8_t *here;
    bool out;
};

static int copy_piece(struct page_copy *copy, const uint8_t *there, size_t bytes) {
    const struct cuda_driver *d = &copy->cuda->driver;
    struct cuda_stream *stream = copy->cuda->page_stream;
    const cuda_address address = (cuda_address)(uintptr_t)there;
    uint8_t *here = copy->here;
    copy->here += bytes;
    if (bytes == 0) return 0;
    return copy->out ? d->copy_out(here, address, bytes, stream) : d->copy_in(address, here, bytes, stream);
}

/* Rows, V3.2's keys, V4's near part. */
static int copy_layer(struct page_copy *copy, int layer, int32_t page) {
    const struct cache_view view = cuda_cache_of(copy->cuda, layer);
    const bool is_hybrid = model_is_hybrid(copy->cuda->model);
    int result = copy_piece(copy, view.pages + (size_t)page * view.page_bytes, view.page_bytes);
    if (!result && !is_hybrid)
        result = copy_piece(copy, view.keys + (size_t)page * view.key_page_bytes, view.key_page_bytes);
    if (!result && is_hybrid) {
        size_t near = (size_t)cuda_near_of(copy->cuda, page);
        result = copy_piece(copy, view.near + near * view.near_bytes, view.near_bytes);
    }
    return result;
}

/* All layers that are here, and waits for them. */
static int copy_layers(struct cuda *cuda, int32_t page, bool out) {
    const struct cuda_driver *d = &cuda->driver;
    struct page_copy copy = {cuda, cuda->page, out};
    int result = d->context_use(cuda->card.context);
    for (int i = 0; i < cuda->part.n_layers && !result; i++)
        result = copy_layer(&copy, cuda->part.first_layer + i, page);
    int waited =
        d->stream_wait(cuda->page_stream); /* what has begun is waited for in any case: the memory is used again */
    return result ? result : waited;
}

int cuda_page_out(struct backend *backend, int32_t page, void *to, struct mo_error *error) {
    struct cuda *cuda = (struct cuda *)backend;
    int code = cuda_check(&cuda->driver, copy_layers(cuda, page, true), error, "GPU %d: reading a page of the cache",
                          cuda->card.index);
    if (!code) memcpy(to, cuda->page, cuda_page_bytes(cuda));
    return code;
}

int cuda_page_in(struct backend *backend, int32_t page, const void *from, struct mo_error *error) {
    struct cuda *cuda = (struct cuda *)backend;
    memcpy(cuda->page, from, cuda_page_bytes(cuda));
    return cuda_check(&cuda->driver, copy_layers(cuda, page, false), error, "GPU %d: sending a page of the cache",
                      cuda->card.index);
}
