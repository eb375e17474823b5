/* model/config_csa2.c - what only V4.1's config.json has: which layers make compressed rows for the layers behind them (kv_source_layer_ids),
 * which choose among them (index_source_layer_ids), which narrows the later choices (candidate_source_layer_id), and n-gram memory. */
#include "model/config_priv.h"
#include "model/engram.h"

/* A list of layers in ascending order: those are marked. */
static int read_layers(const struct reader *r, const char *key, int layers, bool *marked) {
    const json_t *list = json_object_get(r->object, key);
    if (!json_is_array(list)) return refuse(r, key, "a list of layers", "none");
    json_int_t before = -1;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        const json_int_t layer = json_integer_value(item);
        if (!json_is_integer(item) || layer <= before || layer >= layers)
            return refuse(r, key, "layers in ascending order, below num_hidden_layers", "something else");
        marked[layer] = true;
        before = layer;
    }
    return 0;
}

/* Every layer with a ratio has a source of its rows, with the same ratio, at it or before it, and of its choice. */
static int follow_sources(const struct reader *r, struct model *model, const bool *makes, const bool *chooses) {
    struct hybrid_model *h = &model->hybrid;
    int rows_from = -1, choice_from = -1;
    for (int i = 0; i < model->layers; i++) {
        if ((makes[i] || chooses[i]) && !h->ratio[i])
            return refuse(r, makes[i] ? "kv_source_layer_ids" : "index_source_layer_ids", "layers with a ratio",
                          "one without");
        if (makes[i] && !chooses[i])
            return refuse(r, "index_source_layer_ids", "all of kv_source_layer_ids, whose keys they make", "not all");
        if (makes[i]) rows_from = i;
        if (chooses[i]) choice_from = i;
        if (!h->ratio[i]) continue;
        if (rows_from < 0 || h->ratio[rows_from] != h->ratio[i])
            return refuse(r, "kv_source_layer_ids", "a layer of the same ratio at each layer with a ratio or before it",
                          "none");
        h->rows_from[i] = (uint16_t)rows_from;
        h->choice_from[i] = (uint16_t)choice_from;
    }
    return 0;
}

/* Whoever chooses behind the candidates' layer chooses among the same rows. */
static int read_candidates(const struct reader *r, struct model *model, const bool *chooses) {
    struct hybrid_model *h = &model->hybrid;
    int code = may_int(r, "candidate_source_layer_id", -1, model->layers - 1, &h->candidate_layer);
    if (code || h->candidate_layer < 0) return code;
    code = need_int(r, "candidate_topk_blocks", 1, MAX_CONTEXT, &h->candidate_blocks);
    if (!code) code = need_int(r, "candidate_block_size", 1, MAX_CONTEXT, &h->candidate_rows);
    if (code) return code;
    if (!chooses[h->candidate_layer])
        return refuse(r, "candidate_source_layer_id", "one of index_source_layer_ids", "another layer");
    if ((int64_t)h->candidate_blocks * h->candidate_rows > MAX_CONTEXT)
        return refuse(r, "candidate_topk_blocks", "2^26 / candidate_block_size or less", "more");
    if ((int64_t)(h->candidate_blocks - 1) * h->candidate_rows < h->index_topk)
        return refuse(r, "candidate_topk_blocks", "index_topk / candidate_block_size + 1 or more", "less");
    for (int i = h->candidate_layer; i < model->layers; i++) {
        if (h->ratio[i] && h->rows_from[i] != h->rows_from[h->candidate_layer])
            return refuse(r, "kv_source_layer_ids", "none behind candidate_source_layer_id", "one");
    }
    return 0;
}

int config_read_sources(const struct reader *r, struct model *model) {
    bool makes[MODEL_MAX_LAYERS] = {false}, chooses[MODEL_MAX_LAYERS] = {false};
    int code = read_layers(r, "kv_source_layer_ids", model->layers, makes);
    if (!code) code = read_layers(r, "index_source_layer_ids", model->layers, chooses);
    if (!code) code = follow_sources(r, model, makes, chooses);
    return code ? code : read_candidates(r, model, chooses);
}

/* The tables must have a row for whatever a hash gives. */
static int check_engram_rows(const struct reader *r, const struct engram_model *e) {
    struct engram_hash hash;
    return engram_hash_init(&hash, e, r->error) ? mo_error_prefix(r->error, "%s", r->where) : 0;
}

static int read_engram_sizes(const struct reader *r, const struct model *model, struct engram_model *e) {
    int pad = 0;
    int code = need_int(r, "engram_max_ngram_size", 2, ENGRAM_MAX_TOKENS, &e->max_tokens);
    if (!code) code = need_int(r, "engram_n_heads", 1, MAX_HEADS, &e->heads);
    if (!code) code = need_int(r, "engram_head_dim", 1, ENGRAM_MAX_DIM, &e->dim);
    if (!code) code = need_int(r, "engram_vocab_size", 2, 1 << 30, &e->bucket);
    if (!code) code = need_int(r, "engram_compressed_vocab_size", 1, MAX_VOCAB, &e->folded_vocab);
    if (!code) code = need_int(r, "engram_pad_token_id", 0, model->vocab - 1, &pad);
    e->pad = pad;
    if (!code && engram_columns(e) > ENGRAM_MAX_COLUMNS)
        code = refuse(r, "engram_n_heads", "256 / (engram_max_ngram_size - 1) or less", "more");
    return code ? code : check_engram_rows(r, e);
}

int config_read_engram(const struct reader *r, struct model *model) {
    struct engram_model *e = &model->hybrid.engram;
    bool has[MODEL_MAX_LAYERS] = {false};
    if (!is_given(r, "engram_layer_ids")) return 0;
    int code = read_layers(r, "engram_layer_ids", model->layers, has);
    const json_t *rows = json_object_get(r->object, "engram_num_embeddings");
    for (int i = 0; i < model->layers && !code; i++) {
        if (!has[i]) continue;
        if (e->n_layers == ENGRAM_MAX_LAYERS) return refuse(r, "engram_layer_ids", "at most 8 layers", "more");
        const json_int_t n = json_integer_value(json_array_get(rows, (size_t)e->n_layers));
        if (n < 1 || n > INT32_MAX)
            return refuse(r, "engram_num_embeddings", "a number of rows for each layer of engram_layer_ids", "another");
        e->layer[e->n_layers] = i;
        e->rows[e->n_layers++] = (int)n;
    }
    return code || !e->n_layers ? code : read_engram_sizes(r, model, e);
}
