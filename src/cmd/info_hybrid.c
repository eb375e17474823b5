/* cmd/info_hybrid.c - what `moebius info` says of V4's and V4.1's layers. */
#include "cmd/info_hybrid.h"

#include <stdio.h>

static int count_ratio(const struct model *m, int ratio) {
    int n = 0;
    for (int i = 0; i < m->layers; i++) n += m->hybrid.ratio[i] == ratio;
    return n;
}

static int count_hashed(const struct model *m) {
    return m->hybrid.hash_layers < m->layers ? m->hybrid.hash_layers : m->layers;
}

/* Does a layer make compressed rows, or choose among them? */
static bool does(const struct model *m, int layer, bool makes) {
    return makes ? model_makes_rows(m, layer) : model_layer_indexes(m, layer);
}

static json_t *layers_json(const struct model *m, bool makes) {
    json_t *list = json_array();
    for (int i = 0; i < m->layers; i++) {
        if (does(m, i, makes)) json_array_append_new(list, json_integer(i));
    }
    return list;
}

/* What V4.1 has beyond V4. */
static json_t *csa2_json(const struct model *m) {
    const struct hybrid_model *h = &m->hybrid;
    json_t *tables = json_array(), *candidates = json_null();
    if (h->candidate_layer >= 0)
        candidates = json_pack("{si si si}", "layer", h->candidate_layer, "blocks", h->candidate_blocks, "rows",
                               h->candidate_rows);
    for (int i = 0; i < h->engram.n_layers; i++) {
        json_array_append_new(tables, json_pack("{si si si si}", "layer", h->engram.layer[i], "rows", h->engram.rows[i],
                                                "dim", h->engram.dim, "rows_per_token", engram_columns(&h->engram)));
    }
    return json_pack("{so so so so}", "makes_rows", layers_json(m, true), "chooses", layers_json(m, false),
                     "candidates", candidates, "tables", tables);
}

json_t *info_hybrid_json(const struct model *m) {
    const struct hybrid_model *h = &m->hybrid;
    json_t *ratios = json_array();
    for (int i = 0; i < m->layers; i++) json_array_append_new(ratios, json_integer(h->ratio[i]));
    json_t *json = json_pack("{si so si si sf}", "window", h->window, "ratios", ratios, "streams", h->streams,
                             "hash_layers", count_hashed(m), "swiglu_limit", h->swiglu_limit);
    if (model_is_csa2(m)) json_object_update_new(json, csa2_json(m));
    return json;
}

/* "2, 8 and 14" of layers with a ratio, behind `before` and "layer" or "layers". */
static void print_layers(const struct model *m, int ratio, bool makes, const char *before) {
    int left = 0;
    for (int i = 0; i < m->layers; i++) left += m->hybrid.ratio[i] == ratio && does(m, i, makes);
    printf("%s layer%s", before, left == 1 ? "" : "s");
    before = " ";
    for (int i = 0; i < m->layers; i++) {
        if (m->hybrid.ratio[i] != ratio || !does(m, i, makes)) continue;
        printf("%s%d", before, i);
        before = --left == 1 ? " and " : ", ";
    }
}

static void print_csa2(const struct model *m) {
    static const char *const names[] = {NULL, "a token", "two tokens"};
    const struct hybrid_model *h = &m->hybrid;
    printf("attention: the last %d tokens", h->window);
    for (int ratio = 2; ratio > 0; ratio--) {
        if (!count_ratio(m, ratio)) continue;
        printf("; in %d layer%s also rows of %s each", count_ratio(m, ratio), count_ratio(m, ratio) == 1 ? "" : "s",
               names[ratio]);
        print_layers(m, ratio, true, ", made in");
        print_layers(m, ratio, false, ", chosen in");
    }
    printf("\n");
    if (count_ratio(m, 0) < m->layers)
        printf("indexers: %d heads of %d choose %d rows", h->index_heads, h->index_dim, h->index_topk);
    if (h->candidate_layer >= 0)
        printf("; behind layer %d among its %d best blocks of %d", h->candidate_layer, h->candidate_blocks,
               h->candidate_rows);
    if (count_ratio(m, 0) < m->layers) printf("\n");
    for (int i = 0; i < h->engram.n_layers; i++) {
        printf("n-gram memory: layer %d adds %d rows a token of a table of %d rows of %d%s\n", h->engram.layer[i],
               engram_columns(&h->engram), h->engram.rows[i], h->engram.dim,
               m->synthetic ? " (synthetic models have small ones)" : "");
    }
}

static void print_csa(const struct model *m) {
    const struct hybrid_model *h = &m->hybrid;
    printf(
        "attention: the last %d tokens; in %d layers also rows of %d tokens each, of which an indexer of %d heads of "
        "%d chooses %d; in %d layers rows of %d tokens each, all of them\n",
        h->window, count_ratio(m, RATIO_SPARSE), RATIO_SPARSE, h->index_heads, h->index_dim, h->index_topk,
        count_ratio(m, RATIO_DENSE), RATIO_DENSE);
}

void info_hybrid_print(const struct model *m) {
    const struct hybrid_model *h = &m->hybrid;
    (model_is_csa2(m) ? print_csa2 : print_csa)(m);
    printf("residual: %d streams", h->streams);
    if (h->hash_layers) printf("; experts by token id in the first %d layers", count_hashed(m));
    if (h->swiglu_limit > 0) printf("; gates limited to %g", h->swiglu_limit);
    printf("\n");
}
