/* backend/cuda/upload.c - weights from the mapped files to the card: the host copies raw bytes into one of two pinned
 * buffers while the other is on its way, and kernels put them in order on the card, beside the copies. So no matrix is ever held twice in host
 * memory, and the processor does nothing but read. A matrix that is made later (weights->later) is made when its turn comes: no more
 * than one of them is in host memory.
 *
 * The same walk over all matrices first only counts (cuda->weights_at is 0), then brings them. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/cuda/upload.h"
#include "base/clock.h"

enum { SLICE_BYTES = 32 << 20, SLICE_ROWS = 32, BUFFER_ALIGN = 256, SLICE_SLACK = 2 * BUFFER_ALIGN };

static size_t align_up(size_t n) {
    return (n + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN;
}

static size_t blocks_row_bytes(const struct mat *mat) {
    int values = 0;
    size_t bytes = 0;
    bool is_blocks = gguf_block(mat->format, &values, &bytes);
    assert(is_blocks);
    return is_blocks ? (size_t)(mat->cols / values) * bytes : 0;
}

/* Bytes of `rows` rows from a multiple of 32 on. */
static size_t row_bytes(const struct mat *mat, int rows) {
    size_t count = (size_t)rows * (size_t)mat->cols;
    switch (mat->format) {
    case MAT_F32:
        return count * 4;
    case MAT_F16:
    case MAT_BF16:
        return count * 2;
    case MAT_FP8:
        return count;
    case MAT_FP4:
    case MAT_INT4_AWQ:
    case MAT_INT4_GPTQ:
    case MAT_INT4_PACKED:
        return count / 2;
    case MAT_INT4:
    case MAT_INT8:
    case MAT_INT8_ROWS: /* which is sent as INT8 */
        return (size_t)((rows + BLOCK_ROWS - 1) / BLOCK_ROWS) * block_panel_bytes(mat);
    default:
        return (size_t)rows * blocks_row_bytes(mat);
    }
}

/* The scales that lie beside the values of so many rows. Of FP8 and words those of the whole matrix travel with every slice. */
static size_t scale_bytes(const struct mat *mat, int rows) {
    if (mat->format == MAT_FP4) return (size_t)rows * (size_t)(mat->cols / FP4_GROUP);
    if (mat->format == MAT_FP8) {
        return (size_t)((mat->rows + mat->scale_rows - 1) / mat->scale_rows) * (size_t)mat->scale_stride *
               sizeof(float);
    }
    if (!mat_is_words(mat->format)) return 0;
    return (size_t)((mat->cols + mat->group_size - 1) / mat->group_size) * (size_t)mat->rows * 2;
}

static size_t zeros_bytes(const struct mat *mat) {
    return mat_is_words(mat->format) ? scale_bytes(mat, mat->rows) / 4 : 0;
}

static size_t slice_bytes(const struct mat *mat, int rows) {
    return align_up(row_bytes(mat, rows)) + align_up(scale_bytes(mat, rows)) + align_up(zeros_bytes(mat));
}

/* Rows of a slice: whole where the order of the bytes forbids cutting. */
static int slice_rows(const struct upload *u, const struct mat *mat, bool whole) {
    if (whole || mat_is_words(mat->format)) return mat->rows;
    const bool by_row = mat->format == MAT_FP4;
    size_t panel = row_bytes(mat, SLICE_ROWS) + (by_row ? scale_bytes(mat, SLICE_ROWS) : 0);
    size_t room = u->buffer_bytes - (by_row ? 0 : align_up(scale_bytes(mat, mat->rows))) - SLICE_SLACK;
    size_t rows = room / panel * SLICE_ROWS;
    return rows < (size_t)mat->rows ? (int)rows : mat->rows;
}

size_t upload_buffer_bytes(const struct mat *mat) {
    const size_t whole = slice_bytes(mat, mat->rows) + SLICE_SLACK, least = slice_bytes(mat, SLICE_ROWS) + SLICE_SLACK;
    if (whole <= SLICE_BYTES || mat_is_words(mat->format)) return align_up(whole);
    return least > SLICE_BYTES ? align_up(least) : SLICE_BYTES;
}

static void grow(struct upload *u, size_t bytes) {
    if (bytes > u->buffer_bytes) u->buffer_bytes = align_up(bytes);
}

static int check(const struct upload *u, int result, const char *what) {
    return cuda_check(&u->cuda->driver, result, u->error, "GPU %d: %s", u->cuda->card.index, what);
}

/* Rows [r0, r0 + rows) of `mat` on their way to the card; `raw` says where. */
static int send_slice(struct upload *u, const struct mat *mat, int r0, int rows, struct raw_matrix *raw,
                      struct buffer **used) {
    const struct cuda_driver *d = &u->cuda->driver;
    struct buffer *b = &u->buffers[u->next];
    size_t data = row_bytes(mat, rows), scales = scale_bytes(mat, rows), zeros = zeros_bytes(mat);
    size_t scales_at = align_up(data), zeros_at = scales_at + align_up(scales);
    const uint8_t *from = (const uint8_t *)mat->data + (mat->format == MAT_INT4_AWQ ? 0 : row_bytes(mat, r0));
    const void *scale = mat->format == MAT_FP8   ? (const void *)mat->scale
                        : mat->format == MAT_FP4 ? (const void *)fp4_scales_at(mat, r0)
                                                 : mat->scales16;
    int code = b->in_flight ? check(u, d->event_wait(b->done), "waiting for weights to arrive") : 0;
    if (code) return code;
    assert(zeros_at + zeros <= u->buffer_bytes);
    upload_copy(u, b->host, from, data);
    if (scales) memcpy(b->host + scales_at, scale, scales);
    if (zeros) memcpy(b->host + zeros_at, mat->zeros, zeros);
    b->in_flight = true;
    u->next = (u->next + 1) % u->n_buffers;
    *used = b;
    *raw = (struct raw_matrix){.data = (const uint8_t *)(uintptr_t)b->card,
                               .scale = (const uint8_t *)(uintptr_t)(b->card + scales_at),
                               .zeros = (const uint32_t *)(uintptr_t)(b->card + zeros_at),
                               .format = (int32_t)upload_raw_format(mat),
                               .rows = rows,
                               .cols = mat->cols,
                               .row0 = r0,
                               .all_rows = mat->rows,
                               .scale_rows = mat->scale_rows,
                               .scale_cols = mat->scale_cols,
                               .scale_stride = mat->scale_stride,
                               .group = mat->group_size};
    u->done_bytes += data;
    progress_update(&u->progress, (double)u->done_bytes);
    code = check(u, d->copy_in(b->card, b->host, zeros_at + zeros, u->way), "sending weights");
    if (!code) code = check(u, d->event_record(b->arrived, u->way), "sending weights");
    return code ? code : check(u, d->stream_after(u->cuda->stream, b->arrived, 0), "sending weights");
}

static int finish_slice(struct upload *u, struct buffer *b) {
    if (u->cuda->failure.code) {
        *u->error = u->cuda->failure;
        return u->error->code;
    }
    return check(u, u->cuda->driver.event_record(b->done, u->cuda->stream), "sending weights");
}

static void name_matrix(struct upload *u, const char *what) {
    if (u->layer < 0) {
        snprintf(u->what, sizeof u->what, "%s", what);
    } else if (u->expert < 0) {
        snprintf(u->what, sizeof u->what, "layer %d, %s", u->layer, what);
    } else {
        snprintf(u->what, sizeof u->what, "layer %d, expert %d, %s", u->layer, u->expert, what);
    }
}

/* The first matrix in a format that the card has no kernels for. */
static void note_refused(struct upload *u, enum mat_format format, const char *what) {
    if (u->refused != MAT_FORMATS) return;
    u->refused = format;
    name_matrix(u, what);
}

/* Counts a matrix; returns true when it is only counted. */
static bool note(struct upload *u, const struct mat *mat, const char *what, bool whole) {
    if (u->counting && !upload_knows(mat->format)) {
        note_refused(u, mat->format, what);
        return true;
    }
    if (u->counting) {
        u->total_bytes += row_bytes(mat, mat->rows);
        bool cut = !whole && !mat_is_words(mat->format);
        grow(u, cut ? slice_bytes(mat, SLICE_ROWS) + (size_t)SLICE_SLACK : slice_bytes(mat, mat->rows));
        return true;
    }
    if (u->n++ == u->wanted) name_matrix(u, what);
    return u->wanted != UINT32_MAX; /* a third walk, to find a name */
}

/* Launches the two kernels that bring a slice into tiles. */
static void repack(struct upload *u, struct repack_params *p) {
    size_t threads = (size_t)p->groups * (size_t)p->n_tiles * 32;
    size_t tiles = threads * (size_t)p->to.slabs, scales = threads * (size_t)p->to.scale_groups;
    cuda_launch(u->cuda, KERNEL_REPACK_TILES, (int)((tiles + BLOCK_THREADS - 1) / BLOCK_THREADS), 0, p);
    cuda_launch(u->cuda, KERNEL_REPACK_SCALES, (int)((scales + BLOCK_THREADS - 1) / BLOCK_THREADS), 0, p);
}

/* The matrix with its bytes: itself, or what is made of it now, in `room` until the next one. */
static int fetch(struct upload *u, const struct mat **mat, struct mat *room, const char *what) {
    if ((*mat)->data && !mat_must_turn(*mat)) return 0;
    if ((*mat)->data) {
        name_matrix(u, what);
        return (*mat)->format == MAT_INT8_ROWS ? upload_as_int8(u, mat, room) : upload_as_awq(u, mat, room, u->what);
    }
    const struct mat *wanted = *mat;
    *mat = room;
    return u->weights->later->make(u->weights->later, wanted, room, u->error);
}

/* Which half of the tiles a matrix fills (params.h), and of which of the matrices behind one another. */
struct target {
    const struct weight *w;
    int halves, index;
};

static int send_matrix(struct upload *u, const struct mat *mat, struct target to, const char *what) {
    struct mat room;
    if (note(u, mat, what, false)) return 0;
    int tile_rows = to.halves == 3 ? TILE_ROWS : TILE_ROWS / 2, step = slice_rows(u, mat, false);
    if (upload_is_random(u, mat)) return to.halves == 2 ? 0 : upload_random_tiles(u, mat, to.w, to.index, tile_rows);
    int code = fetch(u, &mat, &room, what);
    for (int r = 0; r < mat->rows && !code; r += step) {
        int rows = mat->rows - r < step ? mat->rows - r : step;
        struct repack_params p = {.to = to.w->m, .format = (int32_t)to.w->format, .halves = to.halves, .groups = 1};
        struct buffer *buffer;
        p.to.data += (size_t)to.index * p.to.data_step;
        p.to.scale += (size_t)to.index * p.to.scale_step;
        p.first_tile = r / tile_rows;
        p.n_tiles = (rows + tile_rows - 1) / tile_rows;
        p.fault = (uint32_t *)(uintptr_t)u->fault;
        p.number = u->n - 1;
        code = send_slice(u, mat, r, rows, &p.from, &buffer);
        if (!code) repack(u, &p);
        if (!code) code = finish_slice(u, buffer);
    }
    return code;
}

/* Room for n matrices like `mat`, one after another. */
static void place(struct upload *u, struct weight *w, const struct mat *mat, int tile_rows, int n) {
    upload_place(&u->region, w, upload_layout_of(mat), &(struct upload_shape){mat->rows, mat->cols, tile_rows, n});
}

int upload_matrix(struct upload *u, struct weight *w, const struct mat *mat, const char *what) {
    place(u, w, mat, TILE_ROWS, 1);
    return send_matrix(u, mat, (struct target){w, 3, 0}, what);
}

static const struct upload_layout as_bf16 = {WEIGHT_BF16, CODE_NONE, 31};

/* Gate and up in shared tiles; two formats become bf16. */
static void place_gate_up(struct device_region *region, struct weight *w, const struct mlp *mlp, int n) {
    const struct mat *gate = &mlp->gate;
    upload_place(region, w, upload_same_layout(gate, &mlp->up) ? upload_layout_of(gate) : as_bf16,
                 &(struct upload_shape){gate->rows, gate->cols, TILE_ROWS / 2, n});
}

int upload_two(struct upload *u, struct weight *w, const struct mat *first, const struct mat *second,
               const char *what) {
    const struct upload_layout layout = upload_same_layout(first, second) ? upload_layout_of(first) : as_bf16;
    upload_place(&u->region, w, layout, &(struct upload_shape){first->rows, first->cols, TILE_ROWS, 2});
    int code = send_matrix(u, first, (struct target){w, 3, 0}, what);
    return code ? code : send_matrix(u, second, (struct target){w, 3, 1}, what);
}

int upload_expert(struct upload *u, const struct mlp *mlp, const struct weight *gate_up, const struct weight *down,
                  int i) {
    int code = send_matrix(u, &mlp->gate, (struct target){gate_up, 1, i}, "gate");
    if (!code) code = send_matrix(u, &mlp->up, (struct target){gate_up, 2, i}, "up");
    if (!code) code = send_matrix(u, &mlp->down, (struct target){down, 3, i}, "down");
    return code;
}

static int bring_mlp(struct upload *u, const struct mlp *mlp, struct weight *gate_up, struct weight *down) {
    place_gate_up(&u->region, gate_up, mlp, 1);
    place(u, down, &mlp->down, TILE_ROWS, 1);
    return upload_expert(u, mlp, gate_up, down, 0);
}

int upload_count_alike(const struct layer *layer, int experts) {
    const struct mlp *first = &layer->experts[0];
    for (int e = 1; e < experts; e++) {
        const struct mlp *mlp = &layer->experts[e];
        if (!upload_same_layout(&first->gate, &mlp->gate) || !upload_same_layout(&first->up, &mlp->up) ||
            !upload_same_layout(&first->down, &mlp->down))
            return e;
    }
    return experts;
}

void upload_place_experts(struct device_region *region, const struct mlp *first, int n, struct weight *gate_up,
                          struct weight *down) {
    const struct mat *d = &first->down;
    place_gate_up(region, gate_up, first, n);
    upload_place(region, down, upload_layout_of(d), &(struct upload_shape){d->rows, d->cols, TILE_ROWS, n});
}

static int bring_experts(struct upload *u, const struct layer *layer, struct device_layer *out) {
    int n = u->cuda->model->experts, alike = upload_count_alike(layer, n), code = 0;
    if (alike < n) {
        return mo_error_set(
            u->error, MO_E_UNSUPPORTED,
            "layer %d: expert %d has other weight formats than expert 0; the GPU kernels want one for all", u->layer,
            alike);
    }
    upload_place_experts(&u->region, &layer->experts[0], n, &out->expert_gate_up, &out->expert_down);
    for (u->expert = 0; u->expert < n && !code; u->expert++) {
        code = upload_expert(u, &layer->experts[u->expert], &out->expert_gate_up, &out->expert_down, u->expert);
    }
    u->expert = -1;
    return code;
}

static int random_kv_b(struct upload *u, const struct mat *kv_b, const struct device_layer *out) {
    int code = 0;
    for (int head = 0; head < u->cuda->model->heads && !code; head++) {
        code = upload_random_tiles(u, kv_b, &out->key, head, TILE_ROWS);
        if (!code) code = upload_random_tiles(u, kv_b, &out->value, head, TILE_ROWS);
    }
    return code;
}

/* kv_b as two sets of matrices, one a head: W_UK turned, so that queries can be absorbed, and W_UV. Both bf16. */
static int bring_kv_b(struct upload *u, const struct mat *kv_b, struct device_layer *out) {
    const struct model *m = u->cuda->model;
    struct repack_params p = {
        .format = WEIGHT_BF16, .halves = 3, .groups = m->heads, .group_rows = m->nope_dim + m->v_dim};
    struct buffer *buffer;
    upload_place(&u->region, &out->key, as_bf16, &(struct upload_shape){m->kv_lora, m->nope_dim, TILE_ROWS, m->heads});
    upload_place(&u->region, &out->value, as_bf16, &(struct upload_shape){m->v_dim, m->kv_lora, TILE_ROWS, m->heads});
    struct mat room;
    if (note(u, kv_b, "kv_b", true)) return 0;
    if (upload_is_random(u, kv_b)) return random_kv_b(u, kv_b, out);
    p.fault = (uint32_t *)(uintptr_t)u->fault;
    p.number = u->n - 1;
    int code = fetch(u, &kv_b, &room, "kv_b");
    if (!code) code = send_slice(u, kv_b, 0, kv_b->rows, &p.from, &buffer);
    if (code) return code;
    p.to = out->key.m;
    p.n_tiles = p.to.row_tiles;
    p.transposed = 1;
    repack(u, &p);
    p.to = out->value.m;
    p.n_tiles = p.to.row_tiles;
    p.transposed = 0;
    p.row_offset = m->nope_dim;
    repack(u, &p);
    return finish_slice(u, buffer);
}

int upload_rows(struct upload *u, const struct mat *mat, const void **out, enum repack_target target,
                const char *what) {
    bool bf16 = target == REPACK_ROWS_BF16;
    size_t row = target == REPACK_ROWS_BLOCKS ? blocks_row_bytes(mat) : (size_t)mat->cols * (bf16 ? 2 : 4);
    uint8_t *at = device_take(&u->region, (size_t)mat->rows * row);
    *out = at;
    struct mat room;
    if (note(u, mat, what, false)) return 0;
    if (upload_is_random(u, mat)) return upload_random_rows(u, mat, at, target);
    int step = slice_rows(u, mat, false), code = fetch(u, &mat, &room, what);
    for (int r = 0; r < mat->rows && !code; r += step) {
        struct repack_params p = {.to = {.data = at}, .target = (int32_t)target};
        struct buffer *buffer;
        int rows = mat->rows - r < step ? mat->rows - r : step;
        p.fault = (uint32_t *)(uintptr_t)u->fault;
        p.number = u->n - 1;
        code = send_slice(u, mat, r, rows, &p.from, &buffer);
        if (!code) cuda_launch(u->cuda, KERNEL_REPACK_ROWS, rows, 0, &p);
        if (!code) code = finish_slice(u, buffer);
    }
    return code;
}

int upload_vector(struct upload *u, const float *values, int n, const float **out) {
    const void *at;
    int code = upload_bytes(u, values, (size_t)n * sizeof *values, &at);
    *out = at;
    return code;
}

int upload_bytes(struct upload *u, const void *from, size_t bytes, const void **out) {
    void *at = device_take(&u->region, bytes);
    *out = from ? at : NULL;
    if (u->counting || !from || u->wanted != UINT32_MAX) return 0;
    return check(u, u->cuda->driver.copy_in((cuda_address)(uintptr_t)at, from, bytes, u->cuda->stream),
                 "sending a norm");
}

/* V3.2's. */
static int bring_indexer(struct upload *u, const struct indexer *indexer, struct device_layer *out) {
    const int dim = u->cuda->model->index_dim;
    int code = upload_matrix(u, &out->index_q, &indexer->q, "indexer's q");
    if (!code) code = upload_matrix(u, &out->index_k, &indexer->k, "indexer's k");
    if (!code) code = upload_matrix(u, &out->index_weights, &indexer->weights, "indexer's weights");
    if (!code) code = upload_vector(u, indexer->k_norm, dim, &out->index_k_norm);
    return code ? code : upload_vector(u, indexer->k_bias, dim, &out->index_k_bias);
}

static int bring_attention(struct upload *u, const struct layer *layer, struct device_layer *out) {
    const struct model *m = u->cuda->model;
    bool low_rank = m->q_kind == Q_LOW_RANK;
    if (model_is_hybrid(m)) return upload_hybrid_attention(u, layer, out);
    int code = upload_vector(u, layer->attn_norm, m->hidden, &out->attn_norm);
    if (!code) code = upload_vector(u, layer->kv_a_norm, m->kv_lora, &out->kv_a_norm);
    if (!code && low_rank) code = upload_vector(u, layer->q_a_norm, m->q_lora, &out->q_a_norm);
    if (!code) code = upload_matrix(u, &out->q, low_rank ? &layer->q_a : &layer->q, low_rank ? "q_a" : "q");
    if (!code && low_rank) code = upload_matrix(u, &out->q_b, &layer->q_b, "q_b");
    if (!code) code = upload_matrix(u, &out->kv_a, &layer->kv_a, "kv_a");
    if (!code) code = bring_kv_b(u, &layer->kv_b, out);
    if (!code) code = upload_matrix(u, &out->o, &layer->o, "o");
    return code || !m->index_topk ? code : bring_indexer(u, &layer->indexer, out);
}

static int bring_layer(struct upload *u, const struct layer *layer, struct device_layer *out) {
    const struct model *m = u->cuda->model;
    int code = bring_attention(u, layer, out);
    if (!code && model_is_hybrid(m)) code = upload_mixer(u, &layer->ffn_mixer, &out->ffn_mixer, "ffn mixer");
    if (!code) code = upload_vector(u, layer->ffn_norm, m->hidden, &out->ffn_norm);
    if (code) return code;
    if (model_layer_is_dense(m, u->layer)) return bring_mlp(u, &layer->dense, &out->gate_up, &out->down);
    if (m->shared_experts) code = bring_mlp(u, &layer->shared, &out->shared_gate_up, &out->shared_down);
    const bool is_on_cpu = cuda_is_on_cpu(u->cuda, u->layer);
    if (code || (is_on_cpu && !u->cuda->link.rows)) return code;
    out->router_is_bf16 = layer->router.format == MAT_BF16;
    code = upload_rows(u, &layer->router, &out->router, out->router_is_bf16 ? REPACK_ROWS_BF16 : REPACK_ROWS_F32,
                       "router");
    if (!code) code = upload_vector(u, layer->router_bias, m->experts, &out->router_bias);
    if (!code && layer->router_table) code = upload_hybrid_table(u, layer, out);
    return code || is_on_cpu ? code : bring_experts(u, layer, out);
}

static int bring_embedding(struct upload *u, const struct mat *embed, struct device_weights *out) {
    bool f32 = embed->format == MAT_F32, blocks = gguf_is_blocks(embed->format) && upload_knows(embed->format);
    out->embed_format = f32 ? RAW_F32 : blocks ? (int)upload_raw_format(embed) : RAW_BF16;
    return upload_rows(u, embed, &out->embed,
                       f32      ? REPACK_ROWS_F32
                       : blocks ? REPACK_ROWS_BLOCKS
                                : REPACK_ROWS_BF16,
                       "embed_tokens");
}

static int bring_head(struct upload *u, const struct weights *weights, struct device_weights *out) {
    int code = upload_vector(u, weights->final_norm, u->cuda->model->hidden, &out->final_norm);
    return code ? code : upload_matrix(u, &out->head, &weights->head, "lm_head");
}

/* The one walk. */
static int bring_all(struct upload *u, const struct weights *weights) {
    const struct cuda *cuda = u->cuda;
    struct device_weights *out = &u->cuda->weights;
    u->region = (struct device_region){.base = cuda->weights_at};
    u->n = 0;
    u->layer = u->expert = -1;
    int code = cuda_has_embedding(cuda) ? bring_embedding(u, &weights->embed, out) : 0;
    if (!code && cuda_has_head(cuda)) code = bring_head(u, weights, out);
    if (!code && model_is_hybrid(cuda->model) && !model_is_csa2(cuda->model))
        code = upload_mixer(u, &weights->head_mixer, &out->head_mixer, "head mixer");
    for (u->layer = cuda->part.first_layer; u->layer < cuda_end_layer(cuda) && !code; u->layer++) {
        code = bring_layer(u, &weights->layers[u->layer], &out->layers[u->layer]);
    }
    return code;
}

int upload_way_open(struct upload *u, int n, uint8_t *host, cuda_address card) {
    const struct cuda_driver *d = &u->cuda->driver;
    int code = check(u, d->stream_create(&u->way, 1), "a stream for weights");
    u->n_buffers = n;
    for (int i = 0; i < n && !code; i++) {
        struct buffer *b = &u->buffers[i];
        b->host = host + (size_t)i * u->buffer_bytes;
        b->card = card + (size_t)i * u->buffer_bytes;
        code = check(u, d->event_create(&b->arrived, 2), "an event"); /* 2: no timing */
        if (!code) code = check(u, d->event_create(&b->done, 2), "an event");
    }
    return code;
}

void upload_way_close(struct upload *u) {
    const struct cuda_driver *d = &u->cuda->driver;
    d->stream_wait(u->cuda->stream);
    if (u->way) d->stream_wait(u->way);
    for (int i = 0; i < u->n_buffers; i++) {
        if (u->buffers[i].arrived) d->event_destroy(u->buffers[i].arrived);
        if (u->buffers[i].done) d->event_destroy(u->buffers[i].done);
    }
    if (u->way) d->stream_destroy(u->way);
}

/* What the load alone needs. */
struct load_memory {
    void *host;
    cuda_address card;
};

static int open_buffers(struct upload *u, struct load_memory *memory) {
    const struct cuda_driver *d = &u->cuda->driver;
    const size_t bytes = UPLOAD_BUFFERS * u->buffer_bytes;
    int code = check(u, d->memory_take(&u->fault, sizeof(uint32_t)), "memory to bring the weights in");
    if (!code) code = check(u, d->pinned_take(&memory->host, bytes, 0), "pinned memory to bring the weights in");
    if (!code) code = check(u, d->memory_take(&memory->card, bytes), "memory to bring the weights in");
    if (!code) code = upload_way_open(u, UPLOAD_BUFFERS, memory->host, memory->card);
    if (!code) code = check(u, d->fill(u->fault, 0xff, sizeof(uint32_t), u->cuda->stream), "clearing a word");
    return code;
}

static void close_buffers(struct upload *u, const struct load_memory *memory) {
    const struct cuda_driver *d = &u->cuda->driver;
    upload_way_close(u);
    if (memory->host) d->pinned_free(memory->host);
    if (memory->card) d->memory_free(memory->card);
    if (u->fault) d->memory_free(u->fault);
}

/* Waits for the last slice, and looks whether a weight was not a number. */
static int finish(struct upload *u, const struct weights *weights) {
    const struct cuda_driver *d = &u->cuda->driver;
    uint32_t bad = UINT32_MAX;
    int code = check(u, d->copy_out(&bad, u->fault, sizeof bad, u->cuda->stream), "bringing the weights in");
    if (!code) code = check(u, d->stream_wait(u->cuda->stream), "bringing the weights in");
    if (code || bad == UINT32_MAX) return code;
    u->wanted = bad;
    bring_all(u, weights);
    return mo_error_set(u->error, MO_E_NUMERIC, "%s: a weight is NaN or infinite", u->what);
}

static int refuse_format(struct upload *u) {
    return mo_error_set(u->error, MO_E_UNSUPPORTED,
                        "%s: there are no GPU kernels for %s; --quantization int4 makes it a format that has some "
                        "(--device cpu takes it as it is)",
                        u->what, mat_format_name(u->refused));
}

int cuda_upload(struct cuda *cuda, const struct weights *weights, struct mo_error *error) {
    struct mo_error ignored;
    struct upload u = {.cuda = cuda,
                       .weights = weights,
                       .counting = true,
                       .buffer_bytes = SLICE_BYTES,
                       .wanted = UINT32_MAX,
                       .refused = MAT_FORMATS,
                       .error = error ? error : &ignored};
    cuda_address weights_at = cuda->weights_at;
    if (!cuda->weights.layers) {
        cuda->weights.layers =
            arena_alloc_array(cuda->arena, (size_t)cuda->model->layers, sizeof *cuda->weights.layers);
    }
    if (!cuda->weights.layers)
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d layers", cuda->model->layers);
    cuda->weights_at = 0;
    int code = bring_all(&u, weights);
    cuda->weights_at = weights_at;
    cuda->weights_bytes = u.region.used;
    if (!code && u.refused != MAT_FORMATS) code = refuse_format(&u);
    if (code || !weights_at) return code;
    struct load_memory memory = {0};
    u.counting = false;
    cuda->stage = "load";
    double start = clock_now_s();
    bool random = upload_is_random(&u, &weights->head);
    progress_begin(&u.progress, random ? "making weights on the GPU" : "bringing weights to the GPU", "GB", 1e-9,
                   (double)u.total_bytes);
    code = random ? 0 : upload_copy_open(&u);
    if (!code) code = open_buffers(&u, &memory);
    if (!code) code = bring_all(&u, weights);
    if (!code) code = finish(&u, weights);
    close_buffers(&u, &memory);
    upload_copy_close(&u);
    upload_words_close(&u);
    progress_end(&u.progress);
    cuda->load = (struct cuda_load){.generated = random, .bytes = (double)u.done_bytes, .s = clock_now_s() - start};
    return code;
}
