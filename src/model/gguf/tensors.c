/* A GGUF's tensors under the names and shapes of the published checkpoints, which weights.c knows.
 * Source of the names: llama.cpp's gguf-py (tensor_mapping of deepseek2), its converter's DeepseekV4Model, whose names antirez/ds4
 * has too. */
#include "model/gguf/gguf.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/progress.h"
#include "model/names.h"

/* How one of the file's tensors becomes ours. */
enum mapping {
    AS_IT_IS,
    STACKED, /* [experts][rows][cols]: a matrix for each expert */
    GATE_UP, /* [experts][gate's rows, then up's][cols] */
};

/* A stacked tensor of a few bytes an expert must not become more names than there is memory for: V3 has 45 thousand. */
enum { MAX_EXPERTS = 4096, MAX_LAYER = 1 << 20, MAX_LISTED = 1 << 20 };

static const struct row {
    const char *name; /* behind "blk.N." for what is in a layer */
    enum role role;
    const char *suffix;
    enum mapping mapping;
} rows[] = {
    {"token_embd.weight", ROLE_EMBED, ".weight", AS_IT_IS},
    {"output.weight", ROLE_HEAD, ".weight", AS_IT_IS},
    {"output_norm.weight", ROLE_FINAL_NORM, ".weight", AS_IT_IS},
    {"attn_norm.weight", ROLE_ATTN_NORM, ".weight", AS_IT_IS},
    {"ffn_norm.weight", ROLE_FFN_NORM, ".weight", AS_IT_IS},
    {"attn_q.weight", ROLE_Q, ".weight", AS_IT_IS},
    {"attn_q_a.weight", ROLE_Q_A, ".weight", AS_IT_IS},
    {"attn_q_a_norm.weight", ROLE_Q_A_NORM, ".weight", AS_IT_IS},
    {"attn_q_b.weight", ROLE_Q_B, ".weight", AS_IT_IS},
    {"attn_kv_a_mqa.weight", ROLE_KV_A, ".weight", AS_IT_IS},
    {"attn_kv_a_norm.weight", ROLE_KV_A_NORM, ".weight", AS_IT_IS},
    {"attn_kv_b.weight", ROLE_KV_B, ".weight", AS_IT_IS},
    {"attn_k_b.weight", ROLE_KV_B, SPLIT_K_B, AS_IT_IS},
    {"attn_v_b.weight", ROLE_KV_B, SPLIT_V_B, AS_IT_IS},
    {"attn_output.weight", ROLE_O, ".weight", AS_IT_IS},
    {"ffn_gate.weight", ROLE_DENSE_GATE, ".weight", AS_IT_IS},
    {"ffn_up.weight", ROLE_DENSE_UP, ".weight", AS_IT_IS},
    {"ffn_down.weight", ROLE_DENSE_DOWN, ".weight", AS_IT_IS},
    {"ffn_gate_inp.weight", ROLE_ROUTER, ".weight", AS_IT_IS},
    {"exp_probs_b.bias", ROLE_ROUTER_BIAS, "", AS_IT_IS},
    {"exp_probs_b.weight", ROLE_ROUTER_BIAS, "", AS_IT_IS},
    {"exp_probs_b", ROLE_ROUTER_BIAS, "", AS_IT_IS},
    {"ffn_gate_shexp.weight", ROLE_SHARED_GATE, ".weight", AS_IT_IS},
    {"ffn_up_shexp.weight", ROLE_SHARED_UP, ".weight", AS_IT_IS},
    {"ffn_down_shexp.weight", ROLE_SHARED_DOWN, ".weight", AS_IT_IS},
    {"ffn_gate_exps.weight", ROLE_EXPERT_GATE, ".weight", STACKED},
    {"ffn_up_exps.weight", ROLE_EXPERT_UP, ".weight", STACKED},
    {"ffn_down_exps.weight", ROLE_EXPERT_DOWN, ".weight", STACKED},
    {"ffn_gate_up_exps.weight", ROLE_EXPERT_GATE, ".weight", GATE_UP},
    {"output_hc_fn.weight", ROLE_HEAD_MIX, "", AS_IT_IS}, /* V4 from here on */
    {"output_hc_base.weight", ROLE_HEAD_MIX_BASE, "", AS_IT_IS},
    {"output_hc_scale.weight", ROLE_HEAD_MIX_SCALE, "", AS_IT_IS},
    {"hc_attn_fn.weight", ROLE_ATTN_MIX, "", AS_IT_IS},
    {"hc_attn_base.weight", ROLE_ATTN_MIX_BASE, "", AS_IT_IS},
    {"hc_attn_scale.weight", ROLE_ATTN_MIX_SCALE, "", AS_IT_IS},
    {"hc_ffn_fn.weight", ROLE_FFN_MIX, "", AS_IT_IS},
    {"hc_ffn_base.weight", ROLE_FFN_MIX_BASE, "", AS_IT_IS},
    {"hc_ffn_scale.weight", ROLE_FFN_MIX_SCALE, "", AS_IT_IS},
    {"attn_kv.weight", ROLE_KV_A, ".weight", AS_IT_IS},
    {"attn_output_a.weight", ROLE_O_A, ".weight", AS_IT_IS},
    {"attn_output_b.weight", ROLE_O, ".weight", AS_IT_IS},
    {"attn_sinks.weight", ROLE_SINKS, "", AS_IT_IS},
    {"attn_compressor_kv.weight", ROLE_COMPRESS_KV, ".weight", AS_IT_IS},
    {"attn_compressor_gate.weight", ROLE_COMPRESS_GATE, ".weight", AS_IT_IS},
    {"attn_compressor_ape.weight", ROLE_COMPRESS_BIAS, "", AS_IT_IS},
    {"attn_compressor_norm.weight", ROLE_COMPRESS_NORM, ".weight", AS_IT_IS},
    {"indexer.attn_q_b.weight", ROLE_INDEX_Q, ".weight", AS_IT_IS},
    {"indexer.proj.weight", ROLE_INDEX_WEIGHTS, ".weight", AS_IT_IS},
    {"indexer_compressor_kv.weight", ROLE_INDEX_COMPRESS_KV, ".weight", AS_IT_IS},
    {"indexer_compressor_gate.weight", ROLE_INDEX_COMPRESS_GATE, ".weight", AS_IT_IS},
    {"indexer_compressor_ape.weight", ROLE_INDEX_COMPRESS_BIAS, "", AS_IT_IS},
    {"indexer_compressor_norm.weight", ROLE_INDEX_COMPRESS_NORM, ".weight", AS_IT_IS},
    {"ffn_gate_tid2eid.weight", ROLE_ROUTER_TABLE, "", AS_IT_IS},
};

/* The list being made. */
struct lister {
    const struct checkpoint *checkpoint;
    enum naming naming;
    struct tensor *list; /* [n], room for `capacity` */
    int n, capacity;
    struct mo_error *error;
};

static const char *path_of(const struct lister *l, const struct gguf_tensor *tensor) {
    return l->checkpoint->shards[tensor->shard].path;
}

/* The row of a name, or NULL; *layer is -1 and *rest the name itself outside of the layers. */
static const struct row *find_row(enum naming naming, const char *name, int *layer, const char **rest) {
    *layer = -1;
    *rest = name;
    if (!strncmp(name, "blk.", 4)) {
        char *end;
        long number = strtol(name + 4, &end, 10);
        if (end == name + 4 || *end != '.' || number < 0 || number >= MAX_LAYER) return NULL;
        *layer = (int)number;
        *rest = end + 1;
    }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool is_found = names_is_in_layer(rows[i].role) == (*layer >= 0) && !strcmp(rows[i].name, *rest);
        if (is_found && names_has(naming, rows[i].role)) return &rows[i];
    }
    return NULL;
}

static int no_memory(const struct lister *l) {
    return mo_error_set(l->error, MO_E_NO_MEMORY, "%s: no memory for its tensors", l->checkpoint->path);
}

/* One more tensor of `from`'s type: shape [rows][cols], or with `from`'s own shape if rows is 0. */
static int add(struct lister *l, const struct gguf_tensor *from, const char *name, int64_t n_rows,
               const uint8_t *data) {
    if (l->n == MAX_LISTED) {
        return mo_error_set(l->error, MO_E_LIMIT, "%s: tensor %s: more than %d matrices with those of its experts",
                            path_of(l, from), from->name, MAX_LISTED);
    }
    if (l->n == l->capacity) {
        int capacity = l->capacity ? 2 * l->capacity : 1024;
        struct tensor *larger = realloc(l->list, (size_t)capacity * sizeof *larger);
        if (!larger) return no_memory(l);
        l->list = larger;
        l->capacity = capacity;
    }
    const struct gguf_tensor_type *type = gguf_type_of(from->type);
    struct tensor *tensor = &l->list[l->n++];
    *tensor = (struct tensor){.name = arena_strdup(l->checkpoint->arena, name),
                              .dtype = type->dtype,
                              .n_dims = from->n_dims,
                              .elements = from->elements,
                              .data = data,
                              .bytes = from->bytes,
                              .shard = from->shard};
    memcpy(tensor->shape, from->shape, sizeof tensor->shape);
    if (n_rows) {
        int64_t cols = from->shape[from->n_dims - 1];
        tensor->n_dims = 2;
        tensor->shape[0] = n_rows;
        tensor->shape[1] = cols;
        tensor->elements = n_rows * cols;
        tensor->bytes = (size_t)(tensor->elements / type->values) * (size_t)type->bytes;
    }
    return tensor->name ? 0 : no_memory(l);
}

static int check_experts(const struct lister *l, const struct gguf_tensor *tensor) {
    char key[64];
    int experts = 0;
    snprintf(key, sizeof key, "%s.expert_count", gguf_architecture(l->checkpoint->gguf));
    int code = gguf_get_int(l->checkpoint->gguf, key, JSON_OPTIONAL_KEY, 0, INT32_MAX, &experts, l->error);
    if (code || !experts || tensor->shape[0] == experts) return code;
    return mo_error_set(l->error, MO_E_CORRUPT, "%s: tensor %s: expected %d experts (key \"%s\"), found %lld",
                        path_of(l, tensor), tensor->name, experts, key, (long long)tensor->shape[0]);
}

static int add_experts(struct lister *l, const struct gguf_tensor *tensor, const struct row *row, int layer) {
    int parts = row->mapping == GATE_UP ? 2 : 1;
    int64_t experts = tensor->shape[0], n_rows = tensor->shape[1] / parts;
    char name[NAME_MAX_BYTES];
    if (tensor->n_dims != 3 || experts > MAX_EXPERTS || tensor->shape[1] % parts) {
        return mo_error_set(l->error, MO_E_CORRUPT,
                            "%s: tensor %s: expected the matrices of at most %d experts, one behind the other",
                            path_of(l, tensor), tensor->name, MAX_EXPERTS);
    }
    int code = check_experts(l, tensor);
    size_t bytes = tensor->bytes / (size_t)experts / (size_t)parts;
    const uint8_t *data = tensor->data;
    for (int i = 0; i < (int)experts * parts && !code; i++) {
        names_tensor(name, l->naming, row->role + (enum role)(i % parts), layer, i / parts, row->suffix);
        code = add(l, tensor, name, n_rows, data);
        data += bytes;
    }
    return code;
}

/* What has no row keeps its name, under ours for a layer: weights.c leaves prediction layers out and refuses the rest. llama.cpp
 * gives these models no table of frequencies, though a file may hold one. */
static const char *other_name(const char *rest, int layer, char name[2 * NAME_MAX_BYTES]) {
    bool frequencies = !strcmp(rest, "rope_freqs.weight") || !strcmp(rest, "attn_rot_embd.weight");
    if (frequencies) rest = "rotary_emb.inv_freq";
    if (layer >= 0) {
        snprintf(name, 2 * NAME_MAX_BYTES, "model.layers.%d.%s", layer, rest);
    } else {
        snprintf(name, 2 * NAME_MAX_BYTES, "%s%s", frequencies ? "model." : "", rest);
    }
    return name;
}

static int add_any(struct lister *l, const struct gguf_tensor *tensor) {
    char name[2 * NAME_MAX_BYTES];
    const char *rest;
    int layer;
    const struct row *row = find_row(l->naming, tensor->name, &layer, &rest);
    const struct gguf_tensor_type *type = gguf_type_of(tensor->type);
    if (type->dtype == DTYPES) {
        return mo_error_set(l->error, MO_E_UNSUPPORTED,
                            "%s: tensor %s: found %s, which is not read: take a file of Q8_0, Q2_K to Q6_K, Q4_0 to "
                            "Q5_1, IQ1 to IQ4, TQ or MXFP4 instead",
                            path_of(l, tensor), tensor->name, type->name);
    }
    if (!row) return add(l, tensor, other_name(rest, layer, name), 0, tensor->data);
    if (row->mapping != AS_IT_IS) return add_experts(l, tensor, row, layer);
    return add(l, tensor, names_tensor(name, l->naming, row->role, layer, 0, row->suffix), 0, tensor->data);
}

int gguf_list_tensors(const struct checkpoint *checkpoint, struct tensor **list, int *n, struct mo_error *error) {
    const struct gguf *gguf = checkpoint->gguf;
    bool is_hybrid = !strcmp(gguf_architecture(gguf), "deepseek4");
    struct lister lister = {
        .checkpoint = checkpoint, .naming = is_hybrid ? NAMES_HYBRID : NAMES_LATENT, .error = error};
    int code = 0;
    for (int i = 0; i < gguf->n_tensors && !code; i++) code = add_any(&lister, &gguf->tensors[i]);
    *list = lister.list;
    *n = lister.n;
    return code;
}

bool gguf_mat_format(enum dtype dtype, enum mat_format *format) {
    if (dtype >= DTYPE_Q4_0 && dtype < DTYPES) {
        *format = MAT_Q4_0 + (enum mat_format)(dtype - DTYPE_Q4_0);
        return true;
    }
    if (dtype != DTYPE_F32 && dtype != DTYPE_F16 && dtype != DTYPE_BF16) return false;
    *format = dtype == DTYPE_F32 ? MAT_F32 : dtype == DTYPE_F16 ? MAT_F16 : MAT_BF16;
    return true;
}

/* ---- is every value a number? ---- */

enum { VERIFY_TASKS = 256 };

/* A tensor: a task is some rows of it. */
struct verifier {
    const struct gguf_tensor *tensor;
    enum mat_format format;
    int64_t cols, n_rows, rows_a_task;
    float *rows; /* [threads][row_floats] */
    size_t row_floats;
    _Atomic int64_t bad_row; /* the first; n_rows: none */
};

/* The first of a row that is not finite; cols: none. */
static int64_t find_bad(const struct verifier *v, int64_t row, float *values) {
    size_t bytes = v->tensor->bytes / (size_t)v->n_rows;
    const struct mat mat = {
        .format = v->format, .rows = 1, .cols = (int)v->cols, .data = v->tensor->data + (size_t)row * bytes};
    int64_t k = 0;
    format_decode_rows(&mat, 0, 1, values);
    while (k < v->cols && isfinite(values[k])) k++;
    return k;
}

static void verify_rows(void *context, int index, int worker) {
    struct verifier *v = context;
    float *values = v->rows + (size_t)worker * v->row_floats;
    int64_t from = index * v->rows_a_task, to = from + v->rows_a_task;
    for (int64_t row = from; row < to && row < v->n_rows; row++) {
        if (find_bad(v, row, values) == v->cols) continue;
        int64_t first = atomic_load(&v->bad_row);
        while (row < first && !atomic_compare_exchange_weak(&v->bad_row, &first, row)) {
        }
        return;
    }
}

static int verify_tensor(struct verifier *v, const struct gguf_tensor *tensor, const struct checkpoint *checkpoint,
                         struct pool *pool, struct mo_error *error) {
    v->tensor = tensor;
    v->cols = tensor->shape[tensor->n_dims - 1];
    v->n_rows = tensor->elements / v->cols;
    v->rows_a_task = v->n_rows / VERIFY_TASKS + 1;
    atomic_store(&v->bad_row, v->n_rows);
    if (!gguf_mat_format(gguf_type_of(tensor->type)->dtype, &v->format)) return 0;
    pool_run(pool, VERIFY_TASKS, verify_rows, v);
    int64_t row = atomic_load(&v->bad_row);
    if (row == v->n_rows) return 0;
    int64_t k = find_bad(v, row, v->rows);
    return mo_error_set(error, MO_E_NUMERIC, "%s: tensor %s: value %lld of row %lld is %g",
                        checkpoint->shards[tensor->shard].path, tensor->name, (long long)k, (long long)row,
                        (double)v->rows[k]);
}

int gguf_verify(const struct checkpoint *checkpoint, struct pool *pool, struct mo_error *error) {
    const struct gguf *gguf = checkpoint->gguf;
    struct progress progress;
    struct verifier verifier = {0};
    int64_t widest = 0;
    double done = 0;
    int code = 0;
    for (int i = 0; i < gguf->n_tensors; i++) {
        int64_t cols = gguf->tensors[i].shape[gguf->tensors[i].n_dims - 1];
        widest = cols > widest ? cols : widest;
    }
    verifier.row_floats = (size_t)widest + 1;
    if (widest < INT32_MAX) verifier.rows = calloc((size_t)pool_threads(pool), verifier.row_floats * sizeof(float));
    if (!verifier.rows) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for rows", gguf->path);
    progress_begin(&progress, "verifying", "GB", 1e-9, (double)checkpoint->total_bytes);
    for (int i = 0; i < gguf->n_tensors && !code; i++) {
        code = verify_tensor(&verifier, &gguf->tensors[i], checkpoint, pool, error);
        progress_update(&progress, done += (double)gguf->tensors[i].bytes);
    }
    progress_end(&progress);
    free(verifier.rows);
    return code;
}
