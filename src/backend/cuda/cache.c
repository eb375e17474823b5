/* backend/cuda/cache.c - where the layers' parts of the cache lie on the card. A layer has its pages of rows (V4: of compressed rows
 * and index keys), behind them V3.2's index keys, a page of keys for each page of rows, so that rows lie as in models without an
 * indexer; and V4's near parts. Sizes are those of model/cache_row.h, so a page that is copied out reads the same everywhere. */
#include "backend/cuda/cuda.h"

static int near_parts(const struct cuda *cuda) {
    return cuda->options.n_near ? cuda->options.n_near : cuda->options.n_pages;
}

/* V4's keys lie behind the compressed rows of a page. */
static size_t keys_in_page(const struct cuda *cuda, int layer) {
    return (size_t)cache_compressed_rows(model_makes_rows(cuda->model, layer)) * cuda->far_bytes;
}

static void place_layer(struct cuda *cuda, int layer, size_t *at) {
    const struct model *m = cuda->model;
    const size_t pages = (size_t)cuda->options.n_pages;
    struct cache_place *place = &cuda->cache_places[layer - cuda->part.first_layer];
    *place = (struct cache_place){.page_bytes = KV_PAGE_TOKENS * cuda->row_bytes,
                                  .near_bytes = kv_near_bytes(m, layer, cuda->options.kv),
                                  .pages_at = *at};
    if (model_is_hybrid(m)) {
        place->page_bytes = place->key_page_bytes = kv_page_bytes(m, layer, cuda->options.kv);
        place->keys_at = *at + keys_in_page(cuda, layer);
        *at += pages * place->page_bytes;
    } else {
        place->key_page_bytes = KV_PAGE_TOKENS * cache_key_bytes(m->index_dim, cuda->options.kv);
        place->keys_at = *at + pages * place->page_bytes;
        *at += pages * (place->page_bytes + place->key_page_bytes);
    }
    place->near_at = *at;
    *at += (size_t)near_parts(cuda) * place->near_bytes;
}

int cuda_cache_plan(struct cuda *cuda, struct mo_error *error) {
    const struct model *m = cuda->model;
    cuda->row_bytes = cache_row_bytes(m->kv_lora, m->rope_dim, cuda->options.kv);
    cuda->far_bytes = cache_compressed_bytes(m->kv_lora, m->rope_dim, cuda->options.kv);
    cuda->near_pages = model_is_hybrid(m) ? (m->hybrid.window + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS + 1 : 0;
    cuda->cache_places = arena_alloc_array(cuda->arena, (size_t)cuda->part.n_layers, sizeof *cuda->cache_places);
    if (!cuda->cache_places) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the CUDA backend");
    cuda->cache_bytes = 0;
    for (int i = 0; i < cuda->part.n_layers; i++) place_layer(cuda, cuda->part.first_layer + i, &cuda->cache_bytes);
    return 0;
}

struct cache_view cuda_cache_of(const struct cuda *cuda, int layer) {
    const struct cache_place *place = &cuda->cache_places[layer - cuda->part.first_layer];
    uint8_t *cache = (uint8_t *)(uintptr_t)cuda->cache_at;
    return (struct cache_view){.pages = cache + place->pages_at,
                               .keys = cache + place->keys_at,
                               .near = cache + place->near_at,
                               .page_bytes = place->page_bytes,
                               .key_page_bytes = place->key_page_bytes,
                               .near_bytes = place->near_bytes};
}

int cuda_near_of(const struct cuda *cuda, int32_t page) {
    return cuda->backend.near ? cuda->backend.near[page] : page;
}

size_t cuda_page_bytes(const struct cuda *cuda) {
    size_t bytes = 0;
    for (int i = 0; i < cuda->part.n_layers; i++) {
        const int layer = cuda->part.first_layer + i;
        bytes +=
            kv_page_bytes(cuda->model, layer, cuda->options.kv) + kv_near_bytes(cuda->model, layer, cuda->options.kv);
    }
    return bytes;
}
