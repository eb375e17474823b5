/* model/weights_hybrid.c - binds what only DeepSeek-V4 and V4.1 have. */
#include <math.h>
#include <string.h>
#include "model/gguf/gguf.h"
#include "model/weights_priv.h"

/* llama.cpp's quantizer takes this table for a matrix. */
static int decode_table(const struct binder *b, const struct tensor *tensor, struct mat mat, const float **out) {
    float *values = arena_alloc_array(b->arena, (size_t)tensor->elements, sizeof *values);
    if (!values) return weights_refuse(b, MO_E_NO_MEMORY, tensor, "no memory for its values");
    format_decode_rows(&mat, 0, mat.rows, values);
    for (int64_t i = 0; i < tensor->elements; i++) {
        if (isfinite(values[i])) continue;
        return weights_refuse(b, MO_E_NUMERIC, tensor, "value %lld is %g: expected finite numbers", (long long)i,
                              (double)values[i]);
    }
    *out = values;
    return 0;
}

/* A table of fp32, [rows][cols] in the published files, in ours one row. */
static int bind_table(const struct binder *b, enum role role, int rows, int cols, const float **out) {
    const struct tensor *tensor = weights_find(b, role, "");
    if (!tensor) return weights_missing(b, role, "", rows, cols);
    bool is_flat = tensor->n_dims == 1 && tensor->shape[0] == (int64_t)rows * cols;
    int code = is_flat ? 0 : weights_check_shape(b, tensor, rows, cols);
    struct mat mat = {.rows = rows, .cols = cols, .data = tensor->data};
    bool has_format = !is_flat && gguf_mat_format(tensor->dtype, &mat.format);
    if (!code && has_format && gguf_is_blocks(mat.format)) return decode_table(b, tensor, mat, out);
    return code ? code : weights_copy_values(b, tensor, out);
}

/* `kv` is the first of the four roles of a compressor. V4.1 has no biases, and a row of one token no gate. */
static int bind_compressor(const struct binder *b, enum role kv, int dim, struct compressor *compressor) {
    const int ratio = b->model->hybrid.ratio[b->layer], width = model_compress_dim(ratio, dim);
    int code = weights_bind_matrix(b, kv, width, b->model->hidden, &compressor->kv);
    if (!code && ratio > 1) code = weights_bind_matrix(b, kv + 1, width, b->model->hidden, &compressor->gate);
    if (!code && !model_is_csa2(b->model)) code = bind_table(b, kv + 2, ratio, width, &compressor->bias);
    return code ? code : weights_bind_vector(b, kv + 3, ".weight", dim, &compressor->norm);
}

/* `mix` is the first of the three roles of a mixer. */
static int bind_mixer(const struct binder *b, enum role mix, int rows, int scales, struct mixer *mixer) {
    const struct model *m = b->model;
    int code = weights_bind_matrix(b, mix, rows, m->hybrid.streams * m->hidden, &mixer->mix);
    if (!code) code = weights_bind_vector(b, mix + 1, "", rows, &mixer->base);
    return code ? code : weights_bind_vector(b, mix + 2, "", scales, &mixer->scale);
}

static int bind_indexer(const struct binder *b, struct layer *layer) {
    const struct hybrid_model *h = &b->model->hybrid;
    int code = weights_bind_matrix(b, ROLE_INDEX_Q, h->index_heads * h->index_dim, b->model->q_lora, &layer->indexer.q);
    if (!code)
        code = weights_bind_matrix(b, ROLE_INDEX_WEIGHTS, h->index_heads, b->model->hidden, &layer->indexer.weights);
    if (code || !model_makes_rows(b->model, b->layer)) return code;
    if (!model_is_csa2(b->model))
        return bind_compressor(b, ROLE_INDEX_COMPRESS_KV, h->index_dim, &layer->index_compressor);
    code = weights_bind_matrix(b, ROLE_INDEX_K, h->index_dim, model_latent_dim(b->model), &layer->indexer.k);
    return code ? code : weights_bind_vector(b, ROLE_INDEX_K_NORM, ".weight", h->index_dim, &layer->indexer.k_norm);
}

static int bind_engram(const struct binder *b, struct engram *out) {
    const struct model *m = b->model;
    const struct engram_model *e = &m->hybrid.engram;
    const int rows = e->rows[model_engram_of(m, b->layer)], streams = m->hybrid.streams;
    const struct tensor *table = weights_find(b, ROLE_ENGRAM_TABLE, ".weight");
    if (!table) return weights_missing(b, ROLE_ENGRAM_TABLE, ".weight", rows, e->dim);
    int code = weights_check_shape(b, table, rows, e->dim);
    out->table = (struct mat){.rows = rows, .cols = e->dim};
    if (!code && table->dtype == DTYPE_F8_E4M3) {
        code = weights_bind_fp8_rows(b, ROLE_ENGRAM_TABLE, table, &out->table);
    } else if (!code) {
        code = weights_bind_matrix(b, ROLE_ENGRAM_TABLE, rows, e->dim, &out->table);
    }
    const int width = (streams + 1) * m->hidden;
    if (!code) code = weights_bind_matrix(b, ROLE_ENGRAM_KV, width, engram_columns(e) * e->dim, &out->kv);
    if (!code) code = bind_table(b, ROLE_ENGRAM_Q_WEIGHT, streams, m->hidden, &out->q_weight);
    return code ? code : bind_table(b, ROLE_ENGRAM_K_WEIGHT, streams, m->hidden, &out->k_weight);
}

static int bind_attention(const struct binder *b, struct layer *layer) {
    const struct model *m = b->model;
    const struct hybrid_model *h = &m->hybrid;
    const int attended = m->heads * m->v_dim, latent = model_latent_dim(m);
    int code = weights_bind_matrix(b, ROLE_Q_A, m->q_lora, m->hidden, &layer->q_a);
    if (!code) code = weights_bind_vector(b, ROLE_Q_A_NORM, ".weight", m->q_lora, &layer->q_a_norm);
    if (!code) code = weights_bind_matrix(b, ROLE_Q_B, attended, m->q_lora, &layer->q_b);
    if (!code) code = weights_bind_matrix(b, ROLE_KV_A, latent, m->hidden, &layer->kv_a);
    if (!code) code = weights_bind_vector(b, ROLE_KV_A_NORM, ".weight", latent, &layer->kv_a_norm);
    if (!code) code = weights_bind_matrix(b, ROLE_O_A, h->o_groups * h->o_lora, attended / h->o_groups, &layer->o_a);
    if (!code) code = weights_bind_matrix(b, ROLE_O, m->hidden, h->o_groups * h->o_lora, &layer->o);
    return code ? code : weights_bind_vector(b, ROLE_SINKS, "", m->heads, &layer->sinks);
}

int weights_bind_hybrid_layer(struct binder *b, struct layer *layer) {
    const struct model *m = b->model;
    const int mix = model_mix_dim(m);
    int code = bind_attention(b, layer);
    if (!code && model_makes_rows(m, b->layer))
        code = bind_compressor(b, ROLE_COMPRESS_KV, model_latent_dim(m), &layer->compressor);
    if (!code && model_layer_indexes(m, b->layer)) code = bind_indexer(b, layer);
    if (!code && model_engram_of(m, b->layer) >= 0) code = bind_engram(b, &layer->engram);
    if (!code) code = bind_mixer(b, ROLE_ATTN_MIX, mix, 3, &layer->attn_mixer);
    return code ? code : bind_mixer(b, ROLE_FFN_MIX, mix, 3, &layer->ffn_mixer);
}

int weights_bind_hybrid_head(struct binder *b, struct weights *weights) {
    return bind_mixer(b, ROLE_HEAD_MIX, b->model->hybrid.streams, 1, &weights->head_mixer);
}

static int64_t table_entry(const struct tensor *tensor, int64_t i) {
    int64_t wide;
    int32_t narrow;
    if (tensor->dtype == DTYPE_I64) {
        memcpy(&wide, (const uint8_t *)tensor->data + (size_t)i * sizeof wide, sizeof wide);
        return wide;
    }
    memcpy(&narrow, (const uint8_t *)tensor->data + (size_t)i * sizeof narrow, sizeof narrow);
    return narrow;
}

int weights_bind_hybrid_table(struct binder *b, struct layer *layer) {
    const struct model *m = b->model;
    const struct tensor *tensor = weights_find(b, ROLE_ROUTER_TABLE, "");
    if (!tensor) return weights_missing(b, ROLE_ROUTER_TABLE, "", m->vocab, m->top_k);
    int code = weights_check_shape(b, tensor, m->vocab, m->top_k);
    if (code) return code;
    if (tensor->dtype != DTYPE_I64 && tensor->dtype != DTYPE_I32)
        return weights_refuse(b, MO_E_UNSUPPORTED, tensor, "expected I64 or I32, found %s", dtype_name(tensor->dtype));
    int32_t *table = arena_alloc_array(b->arena, (size_t)tensor->elements, sizeof *table);
    if (!table) return weights_refuse(b, MO_E_NO_MEMORY, tensor, "no memory for its values");
    for (int64_t i = 0; i < tensor->elements; i++) {
        int64_t expert = table_entry(tensor, i);
        if (expert < 0 || expert >= m->experts) {
            return weights_refuse(b, MO_E_CORRUPT, tensor, "value %lld is %lld: expected experts from 0 to %d",
                                  (long long)i, (long long)expert, m->experts - 1);
        }
        table[i] = (int32_t)expert;
    }
    layer->router_table = table;
    return 0;
}
