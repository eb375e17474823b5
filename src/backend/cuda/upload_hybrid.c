/* backend/cuda/upload_hybrid.c - weights that only V4 and V4.1 have: compressors, the indexer, the grouped projection, hyper-connections. */
#include "backend/cuda/upload.h"

/* Rows of values and of gates at once: they read the same. */
static int bring_compressor(struct upload *u, const struct compressor *from, int dim, struct weight *w,
                            const float **bias, const float **norm) {
    const int ratio = u->cuda->model->hybrid.ratio[u->layer], width = model_compress_dim(ratio, dim);
    int code = ratio == 1 ? upload_matrix(u, w, &from->kv, "compressor")
                          : upload_two(u, w, &from->kv, &from->gate, "compressor");
    if (!code) code = upload_vector(u, from->bias, from->bias ? ratio * width : 0, bias);
    return code ? code : upload_vector(u, from->norm, dim, norm);
}

static int bring_compressors(struct upload *u, const struct layer *layer, struct device_layer *out) {
    const struct model *m = u->cuda->model;
    const int ratio = model_makes_rows(m, u->layer);
    int code = ratio ? bring_compressor(u, &layer->compressor, model_latent_dim(m), &out->compress, &out->compress_bias,
                                        &out->compress_norm)
                     : 0;
    if (!code && ratio && model_is_csa2(m)) code = upload_matrix(u, &out->index_k, &layer->indexer.k, "indexer's k");
    if (!code && ratio && model_is_csa2(m))
        code = upload_vector(u, layer->indexer.k_norm, m->hybrid.index_dim, &out->index_k_norm);
    if (!code && ratio == RATIO_SPARSE)
        code = bring_compressor(u, &layer->index_compressor, m->hybrid.index_dim, &out->index_compress,
                                &out->index_compress_bias, &out->index_compress_norm);
    if (code || !model_layer_indexes(m, u->layer)) return code;
    code = upload_matrix(u, &out->index_q, &layer->indexer.q, "indexer's q");
    return code ? code : upload_matrix(u, &out->index_weights, &layer->indexer.weights, "indexer's weights");
}

/* Heads are projected in groups: a matrix for each, as o_lora is whole tiles of rows (cuda_check_model). */
static int bring_o_a(struct upload *u, const struct mat *o_a, struct weight *w) {
    const int groups = u->cuda->model->hybrid.o_groups;
    int code = upload_matrix(u, w, o_a, "o_a");
    w->m.rows /= groups;
    w->m.row_tiles /= groups;
    w->m.data_step /= (size_t)groups;
    w->m.scale_step /= (size_t)groups;
    return code;
}

/* But for the table, which stays where it is. */
static int bring_engram(struct upload *u, const struct engram *from, struct device_layer *out) {
    const int weights = (int)model_residual_dim(u->cuda->model);
    int code = upload_matrix(u, &out->engram_kv, &from->kv, "n-grams' keys and values");
    if (!code) code = upload_vector(u, from->q_weight, weights, &out->engram_q_weight);
    return code ? code : upload_vector(u, from->k_weight, weights, &out->engram_k_weight);
}

int upload_hybrid_attention(struct upload *u, const struct layer *layer, struct device_layer *out) {
    const struct model *m = u->cuda->model;
    int code = upload_vector(u, layer->attn_norm, m->hidden, &out->attn_norm);
    if (!code) code = upload_vector(u, layer->kv_a_norm, model_latent_dim(m), &out->kv_a_norm);
    if (!code) code = upload_vector(u, layer->q_a_norm, m->q_lora, &out->q_a_norm);
    if (!code) code = upload_vector(u, layer->sinks, m->heads, &out->sinks);
    if (!code) code = upload_matrix(u, &out->q, &layer->q_a, "q_a");
    if (!code) code = upload_matrix(u, &out->q_b, &layer->q_b, "q_b");
    if (!code) code = upload_matrix(u, &out->kv_a, &layer->kv_a, "kv_a");
    if (!code) code = bring_o_a(u, &layer->o_a, &out->o_a);
    if (!code) code = upload_matrix(u, &out->o, &layer->o, "o");
    if (!code) code = bring_compressors(u, layer, out);
    if (!code && model_engram_of(m, u->layer) >= 0) code = bring_engram(u, &layer->engram, out);
    return code ? code : upload_mixer(u, &layer->attn_mixer, &out->attn_mixer, "attention's mixer");
}

int upload_mixer(struct upload *u, const struct mixer *mixer, struct device_mixer *out, const char *what) {
    const void *mix;
    int scales = mixer->mix.rows == model_mix_dim(u->cuda->model) ? 3 : 1;
    int code = upload_rows(u, &mixer->mix, &mix, REPACK_ROWS_F32, what);
    out->mix = mix;
    if (!code) code = upload_vector(u, mixer->base, mixer->mix.rows, &out->base);
    return code ? code : upload_vector(u, mixer->scale, scales, &out->scale);
}

int upload_hybrid_table(struct upload *u, const struct layer *layer, struct device_layer *out) {
    const struct model *m = u->cuda->model;
    const void *table;
    int code =
        upload_bytes(u, layer->router_table, (size_t)m->vocab * (size_t)m->top_k * sizeof *layer->router_table, &table);
    out->router_table = table;
    return code;
}
