#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "model/gguf/gguf.h"
#include "model/pack.h"
#include "model/weights_priv.h"

static const char *path_of(const struct binder *b, const struct tensor *tensor) {
    return b->checkpoint->shards[tensor->shard].path;
}

const struct tensor *weights_find(const struct binder *b, enum role role, const char *suffix) {
    char name[NAME_MAX_BYTES];
    const struct tensor *tensor =
        checkpoint_find(b->checkpoint, names_tensor(name, model_naming(b->model), role, b->layer, b->expert, suffix));
    if (tensor) b->used[tensor - b->checkpoint->tensors] = true;
    return tensor;
}

int weights_refuse(const struct binder *b, int code, const struct tensor *tensor, const char *format, ...) {
    char reason[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    return mo_error_set(b->error, code, "%s: tensor %s: %s", path_of(b, tensor), tensor->name, reason);
}

int weights_missing(const struct binder *b, enum role role, const char *suffix, int64_t rows, int64_t cols) {
    char name[NAME_MAX_BYTES], shape[64];
    names_tensor(name, model_naming(b->model), role, b->layer, b->expert, suffix);
    snprintf(shape, sizeof shape, cols ? "[%lld, %lld]" : "[%lld]", (long long)rows, (long long)cols);
    return mo_error_set(b->error, MO_E_CORRUPT, "%s: tensor %s is missing (expected shape %s)",
                        b->checkpoint->shards[0].path, name, shape);
}

int weights_check_shape(const struct binder *b, const struct tensor *tensor, int64_t rows, int64_t cols) {
    bool same = tensor->n_dims == (cols ? 2 : 1) && tensor->shape[0] == rows && (!cols || tensor->shape[1] == cols);
    if (same) return 0;
    char expected[64], found[TENSOR_SHAPE_BYTES];
    snprintf(expected, sizeof expected, cols ? "[%lld, %lld]" : "[%lld]", (long long)rows, (long long)cols);
    return weights_refuse(b, MO_E_CORRUPT, tensor, "expected shape %s (by config.json), found %s", expected,
                          tensor_shape_text(tensor, found));
}

int weights_check_alignment(const struct binder *b, const struct tensor *tensor) {
    if ((uintptr_t)tensor->data % dtype_bytes(tensor->dtype) == 0) return 0;
    return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "its data is not aligned to %zu bytes",
                          dtype_bytes(tensor->dtype));
}

static float widen(const struct tensor *tensor, int64_t i) {
    const uint8_t *at = (const uint8_t *)tensor->data + (size_t)i * dtype_bytes(tensor->dtype);
    uint16_t half;
    float single;
    if (tensor->dtype == DTYPE_F32) {
        memcpy(&single, at, sizeof single);
        return single;
    }
    memcpy(&half, at, sizeof half);
    return tensor->dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

int weights_check_finite(const struct binder *b, const struct tensor *tensor) {
    for (int64_t i = 0; i < tensor->elements; i++) {
        const float value = widen(tensor, i);
        if (isfinite(value)) continue;
        return weights_refuse(b, MO_E_NUMERIC, tensor, "value %lld is %g: expected finite numbers", (long long)i,
                              (double)value);
    }
    return 0;
}

/* A small tensor (norm, bias, scales) as fp32 in the arena, every value finite. */
int weights_copy_values(const struct binder *b, const struct tensor *tensor, const float **out) {
    if (tensor->dtype != DTYPE_F32 && tensor->dtype != DTYPE_F16 && tensor->dtype != DTYPE_BF16) {
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "expected F32, F16 or BF16, found %s",
                              dtype_name(tensor->dtype));
    }
    float *values = arena_alloc_array(b->arena, (size_t)tensor->elements, sizeof *values);
    if (!values) return weights_refuse(b, MO_E_NO_MEMORY, tensor, "no memory for its values");
    for (int64_t i = 0; i < tensor->elements; i++) values[i] = widen(tensor, i);
    *out = values;
    return weights_check_finite(b, tensor);
}

int weights_bind_vector(const struct binder *b, enum role role, const char *suffix, int n, const float **out) {
    const struct tensor *tensor = weights_find(b, role, suffix);
    if (!tensor) return weights_missing(b, role, suffix, n, 0);
    int code = weights_check_shape(b, tensor, n, 0);
    return code ? code : weights_copy_values(b, tensor, out);
}

static int bind_plain(const struct binder *b, enum role role, const struct tensor *tensor, struct mat *mat) {
    mat->data = tensor->data;
    switch (tensor->dtype) {
    case DTYPE_F32:
        mat->format = MAT_F32;
        break;
    case DTYPE_F16:
        mat->format = MAT_F16;
        break;
    case DTYPE_BF16:
        mat->format = MAT_BF16;
        break;
    case DTYPE_F8_E4M3:
        return weights_bind_fp8(b, role, tensor, mat);
    default:
        if (gguf_mat_format(tensor->dtype, &mat->format)) return 0;
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "expected F32, F16, BF16, F8_E4M3 or I8 (FP4), found %s",
                              dtype_name(tensor->dtype));
    }
    return 0;
}

/* Our own INT4 and INT8: U8 [panels][blocks][bytes of a block], and these bytes name the format. The scales are not looked at:
 * that would touch every page of the file (`info --verify` does). */
static int bind_blocks(const struct binder *b, const struct tensor *tensor, struct mat *mat) {
    char found[TENSOR_SHAPE_BYTES];
    int64_t panels = (mat->rows + BLOCK_ROWS - 1) / BLOCK_ROWS, blocks = (mat->cols + BLOCK_COLS - 1) / BLOCK_COLS;
    if (b->model->quant != QUANT_MOEBIUS) {
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor,
                              "found U8, but config.json has no quantization_config of ours");
    }
    bool shaped = tensor->n_dims == 3 && tensor->shape[0] == panels && tensor->shape[1] == blocks;
    if (!shaped || block_format_of((size_t)tensor->shape[2], &mat->format, &mat->group_size)) {
        return weights_refuse(
            b, MO_E_CORRUPT, tensor,
            "expected blocks of [%lld, %lld, bytes of an INT4 or INT8 block] (by config.json), found %s",
            (long long)panels, (long long)blocks, tensor_shape_text(tensor, found));
    }
    mat->data = tensor->data;
    return 0;
}

int weights_bind_matrix(const struct binder *b, enum role role, int rows, int cols, struct mat *mat) {
    *mat = (struct mat){.rows = rows, .cols = cols};
    const struct tensor *words = weights_find_words(b, role);
    if (words) return weights_bind_words(b, role, words, mat);
    const struct tensor *tensor = weights_find(b, role, names_suffix(role));
    if (!tensor) return weights_missing(b, role, names_suffix(role), rows, cols);
    if (tensor->dtype == DTYPE_U8) return bind_blocks(b, tensor, mat);
    if (tensor->dtype == DTYPE_I8 && b->model->quant == QUANT_INT8) return weights_bind_int8(b, role, tensor, mat);
    if (tensor->dtype == DTYPE_I8 || tensor->dtype == DTYPE_F4) return weights_bind_fp4(b, role, tensor, mat);
    int code = weights_check_shape(b, tensor, rows, cols);
    if (!code) code = weights_check_alignment(b, tensor);
    return code ? code : bind_plain(b, role, tensor, mat);
}

/* Of a GGUF in two parts, as llama.cpp wants it, or whole. */
static int bind_kv_b(struct binder *b, struct mat *mat) {
    const struct model *m = b->model;
    const struct tensor *k = weights_find(b, ROLE_KV_B, SPLIT_K_B), *v = weights_find(b, ROLE_KV_B, SPLIT_V_B);
    bool split = k && v && !weights_find(b, ROLE_KV_B, ".weight");
    if (!split) return weights_bind_matrix(b, ROLE_KV_B, m->heads * (m->nope_dim + m->v_dim), m->kv_lora, mat);
    int code = weights_check_alignment(b, k);
    if (!code) code = weights_check_alignment(b, v);
    if (!code && !b->pool) code = pool_create(&b->pool, b->threads, b->error);
    return code ? code : gguf_join_kv_b(m, k, v, path_of(b, k), b->pool, b->arena, mat, b->error);
}

static int bind_mlp(const struct binder *b, enum role gate, int width, struct mlp *mlp) {
    int hidden = b->model->hidden;
    int code = weights_bind_matrix(b, gate, width, hidden, &mlp->gate);
    if (!code) code = weights_bind_matrix(b, gate + 1, width, hidden, &mlp->up);
    if (!code) code = weights_bind_matrix(b, gate + 2, hidden, width, &mlp->down);
    return code;
}

static int bind_indexer(struct binder *b, struct indexer *indexer) {
    const struct model *m = b->model;
    if (!m->index_topk) return 0;
    int code = weights_bind_matrix(b, ROLE_INDEX_Q, model_index_q_dim(m), m->q_lora, &indexer->q);
    if (!code) code = weights_bind_matrix(b, ROLE_INDEX_K, m->index_dim, m->hidden, &indexer->k);
    if (!code) code = weights_bind_matrix(b, ROLE_INDEX_WEIGHTS, m->index_heads, m->hidden, &indexer->weights);
    if (!code) code = weights_bind_vector(b, ROLE_INDEX_K_NORM, ".weight", m->index_dim, &indexer->k_norm);
    if (!code) code = weights_bind_vector(b, ROLE_INDEX_K_BIAS, "", m->index_dim, &indexer->k_bias);
    return code;
}

static int bind_attention(struct binder *b, struct layer *layer) {
    const struct model *m = b->model;
    int q_out = m->heads * model_q_head_dim(m), hidden = m->hidden, code;
    if (m->q_kind == Q_DIRECT) {
        code = weights_bind_matrix(b, ROLE_Q, q_out, hidden, &layer->q);
    } else {
        code = weights_bind_matrix(b, ROLE_Q_A, m->q_lora, hidden, &layer->q_a);
        if (!code) code = weights_bind_vector(b, ROLE_Q_A_NORM, ".weight", m->q_lora, &layer->q_a_norm);
        if (!code) code = weights_bind_matrix(b, ROLE_Q_B, q_out, m->q_lora, &layer->q_b);
    }
    if (!code) code = weights_bind_matrix(b, ROLE_KV_A, model_latent_dim(m), hidden, &layer->kv_a);
    if (!code) code = weights_bind_vector(b, ROLE_KV_A_NORM, ".weight", m->kv_lora, &layer->kv_a_norm);
    if (!code) code = bind_kv_b(b, &layer->kv_b);
    if (!code) code = weights_bind_matrix(b, ROLE_O, hidden, m->heads * m->v_dim, &layer->o);
    return code ? code : bind_indexer(b, &layer->indexer);
}

static int bind_router(struct binder *b, struct layer *layer) {
    const struct model *m = b->model;
    int code = weights_bind_matrix(b, ROLE_ROUTER, m->experts, m->hidden, &layer->router);
    if (code || m->gate_kind == GATE_SOFTMAX_GREEDY || m->gate_kind == GATE_SOFTMAX_GROUPED) return code;
    if (model_layer_is_hashed(m, b->layer)) return weights_bind_hybrid_table(b, layer);
    return weights_bind_vector(b, ROLE_ROUTER_BIAS, "", m->experts, &layer->router_bias);
}

static int bind_experts(struct binder *b, struct layer *layer) {
    const struct model *m = b->model;
    int code = bind_router(b, layer);
    if (!code && m->shared_experts) {
        code = bind_mlp(b, ROLE_SHARED_GATE, m->shared_experts * m->expert_width, &layer->shared);
    }
    if (code) return code;
    layer->experts = arena_alloc_array(b->arena, (size_t)m->experts, sizeof *layer->experts);
    if (!layer->experts) return mo_error_set(b->error, MO_E_NO_MEMORY, "no memory for %d experts", m->experts);
    for (int i = 0; i < m->experts && !code; i++) {
        b->expert = i;
        code = bind_mlp(b, ROLE_EXPERT_GATE, m->expert_width, &layer->experts[i]);
    }
    return code;
}

static int bind_layer(struct binder *b, int index, struct layer *layer) {
    const struct model *m = b->model;
    b->layer = index;
    int code = weights_bind_vector(b, ROLE_ATTN_NORM, ".weight", m->hidden, &layer->attn_norm);
    if (!code) code = model_is_hybrid(m) ? weights_bind_hybrid_layer(b, layer) : bind_attention(b, layer);
    if (!code) code = weights_bind_vector(b, ROLE_FFN_NORM, ".weight", m->hidden, &layer->ffn_norm);
    if (code) return code;
    if (model_layer_is_dense(m, index)) return bind_mlp(b, ROLE_DENSE_GATE, m->dense_width, &layer->dense);
    return bind_experts(b, layer);
}

/* Left over and harmless: positions' frequencies, scales of quantised activations, prediction layers past the last. */
static bool is_left_out(const struct binder *b, const struct tensor *tensor) {
    int layer = names_layer(tensor->name), layers = b->model->layers;
    if (layer >= layers && layer < layers + b->model->mtp_layers) return true;
    if (b->model->tied_embedding && (!strcmp(tensor->name, "lm_head.weight") || !strcmp(tensor->name, "head.weight")))
        return true;
    if (b->checkpoint->is_packed && !strncmp(tensor->name, PACK_PREFIX, sizeof PACK_PREFIX - 1)) return true;
    return names_is_ignored(tensor->name);
}

static int check_leftovers(const struct binder *b) {
    for (int i = 0; i < b->checkpoint->n_tensors; i++) {
        const struct tensor *tensor = &b->checkpoint->tensors[i];
        if (b->used[i] || is_left_out(b, tensor)) continue;
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "unknown tensor: config.json's %s has no place for it",
                              b->model->architecture);
    }
    return 0;
}

static int bind_all(struct binder *b, struct weights *weights) {
    const struct model *m = b->model;
    weights->layers = arena_alloc_array(b->arena, (size_t)m->layers, sizeof *weights->layers);
    if (!weights->layers || !b->used)
        return mo_error_set(b->error, MO_E_NO_MEMORY, "no memory for %d layers", m->layers);
    int code = weights_bind_matrix(b, ROLE_EMBED, m->vocab, m->hidden, &weights->embed);
    for (int i = 0; i < m->layers && !code; i++) code = bind_layer(b, i, &weights->layers[i]);
    if (!code) code = weights_bind_vector(b, ROLE_FINAL_NORM, ".weight", m->hidden, &weights->final_norm);
    if (m->tied_embedding) {
        weights->head = weights->embed;
    } else if (!code) {
        code = weights_bind_matrix(b, ROLE_HEAD, m->vocab, m->hidden, &weights->head);
    }
    if (!code && model_is_hybrid(m) && !model_is_csa2(m)) code = weights_bind_hybrid_head(b, weights);
    if (!code) code = check_leftovers(b);
    return code;
}

int weights_bind(struct weights *weights, const struct model *model, const struct checkpoint *checkpoint, int threads,
                 struct mo_error *error) {
    *weights = (struct weights){.arena = arena_create()};
    if (!weights->arena) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the weights");
    struct binder binder = {
        .model = model,
        .checkpoint = checkpoint,
        .arena = weights->arena,
        .used = calloc((size_t)checkpoint->n_tensors, sizeof(bool)),
        .threads = threads,
        .error = error,
    };
    int code = bind_all(&binder, weights);
    free(binder.used);
    pool_destroy(binder.pool);
    if (code) weights_free(weights);
    return code;
}

struct mat *weights_matrix(const struct weights *weights, enum role role, int index, int expert) {
    if (role == ROLE_EMBED) return (struct mat *)&weights->embed;
    if (role == ROLE_HEAD) return (struct mat *)&weights->head;
    if (role == ROLE_HEAD_MIX) return (struct mat *)&weights->head_mixer.mix;
    struct layer *layer = &weights->layers[index];
    switch (role) {
    case ROLE_Q:
        return &layer->q;
    case ROLE_Q_A:
        return &layer->q_a;
    case ROLE_Q_B:
        return &layer->q_b;
    case ROLE_KV_A:
        return &layer->kv_a;
    case ROLE_KV_B:
        return &layer->kv_b;
    case ROLE_O:
        return &layer->o;
    case ROLE_INDEX_Q:
        return &layer->indexer.q;
    case ROLE_INDEX_K:
        return &layer->indexer.k;
    case ROLE_INDEX_WEIGHTS:
        return &layer->indexer.weights;
    case ROLE_ROUTER:
        return &layer->router;
    case ROLE_O_A:
        return &layer->o_a;
    case ROLE_COMPRESS_KV:
        return &layer->compressor.kv;
    case ROLE_COMPRESS_GATE:
        return &layer->compressor.gate;
    case ROLE_INDEX_COMPRESS_KV:
        return &layer->index_compressor.kv;
    case ROLE_INDEX_COMPRESS_GATE:
        return &layer->index_compressor.gate;
    case ROLE_ATTN_MIX:
        return &layer->attn_mixer.mix;
    case ROLE_FFN_MIX:
        return &layer->ffn_mixer.mix;
    case ROLE_ENGRAM_TABLE:
        return &layer->engram.table;
    case ROLE_ENGRAM_KV:
        return &layer->engram.kv;
    default:
        break;
    }
    enum role gate = role >= ROLE_EXPERT_GATE   ? ROLE_EXPERT_GATE
                     : role >= ROLE_SHARED_GATE ? ROLE_SHARED_GATE
                                                : ROLE_DENSE_GATE;
    struct mlp *mlp = gate == ROLE_EXPERT_GATE   ? &layer->experts[expert]
                      : gate == ROLE_SHARED_GATE ? &layer->shared
                                                 : &layer->dense;
    assert(role >= gate && role <= gate + 2 && "the role is a matrix");
    return role == gate ? &mlp->gate : role == gate + 1 ? &mlp->up : &mlp->down;
}

const float **weights_vector(struct weights *weights, enum role role, int index) {
    if (role == ROLE_FINAL_NORM) return &weights->final_norm;
    if (role == ROLE_HEAD_MIX_BASE) return &weights->head_mixer.base;
    if (role == ROLE_HEAD_MIX_SCALE) return &weights->head_mixer.scale;
    struct layer *layer = &weights->layers[index];
    switch (role) {
    case ROLE_ATTN_NORM:
        return &layer->attn_norm;
    case ROLE_FFN_NORM:
        return &layer->ffn_norm;
    case ROLE_Q_A_NORM:
        return &layer->q_a_norm;
    case ROLE_KV_A_NORM:
        return &layer->kv_a_norm;
    case ROLE_INDEX_K_NORM:
        return &layer->indexer.k_norm;
    case ROLE_INDEX_K_BIAS:
        return &layer->indexer.k_bias;
    case ROLE_ROUTER_BIAS:
        return &layer->router_bias;
    case ROLE_SINKS:
        return &layer->sinks;
    case ROLE_COMPRESS_BIAS:
        return &layer->compressor.bias;
    case ROLE_COMPRESS_NORM:
        return &layer->compressor.norm;
    case ROLE_INDEX_COMPRESS_BIAS:
        return &layer->index_compressor.bias;
    case ROLE_INDEX_COMPRESS_NORM:
        return &layer->index_compressor.norm;
    case ROLE_ATTN_MIX_BASE:
        return &layer->attn_mixer.base;
    case ROLE_ATTN_MIX_SCALE:
        return &layer->attn_mixer.scale;
    case ROLE_FFN_MIX_BASE:
        return &layer->ffn_mixer.base;
    case ROLE_FFN_MIX_SCALE:
        return &layer->ffn_mixer.scale;
    case ROLE_ENGRAM_Q_WEIGHT:
        return &layer->engram.q_weight;
    case ROLE_ENGRAM_K_WEIGHT:
        return &layer->engram.k_weight;
    default:
        assert(0 && "the role is a vector");
        return NULL;
    }
}

void weights_end_later(struct weights *weights) {
    if (weights->later) weights->later->close(weights->later);
    weights->later = NULL;
}

void weights_free(struct weights *weights) {
    weights_end_later(weights);
    if (weights->made) munmap(weights->made, weights->made_bytes);
    arena_destroy(weights->arena);
    *weights = (struct weights){0};
}

int64_t weights_file_bytes(const struct checkpoint *checkpoint, const struct model *model) {
    int64_t bytes = checkpoint->total_bytes;
    for (int i = 0; i < checkpoint->n_tensors; i++) {
        const struct tensor *tensor = &checkpoint->tensors[i];
        if (names_is_left_out(tensor->name, model->layers) || names_is_table(tensor->name))
            bytes -= (int64_t)tensor->bytes;
    }
    return bytes;
}
