#include "model/slots.h"

/* Counts first, then fills: `slots` is NULL the first time. */
struct list {
    const struct model *model;
    struct slot *slots;
    int n, layer, expert;
};

static void add(struct list *list, enum role role, int rows, int cols) {
    if (list->slots) list->slots[list->n] = (struct slot){role, list->layer, list->expert, rows, cols};
    list->n++;
}

static void add_mlp(struct list *list, enum role gate, int width) {
    int hidden = list->model->hidden;
    add(list, gate, width, hidden);
    add(list, gate + 1, width, hidden);
    add(list, gate + 2, hidden, width);
}

static void add_indexer(struct list *list) {
    const struct model *m = list->model;
    add(list, ROLE_INDEX_Q, model_index_q_dim(m), m->q_lora);
    add(list, ROLE_INDEX_K, m->index_dim, m->hidden);
    add(list, ROLE_INDEX_WEIGHTS, m->index_heads, m->hidden);
    add(list, ROLE_INDEX_K_NORM, m->index_dim, 0);
    add(list, ROLE_INDEX_K_BIAS, m->index_dim, 0);
}

static void add_attention(struct list *list) {
    const struct model *m = list->model;
    int q_out = m->heads * model_q_head_dim(m);
    add(list, ROLE_ATTN_NORM, m->hidden, 0);
    if (m->q_kind == Q_DIRECT) {
        add(list, ROLE_Q, q_out, m->hidden);
    } else {
        add(list, ROLE_Q_A, m->q_lora, m->hidden);
        add(list, ROLE_Q_A_NORM, m->q_lora, 0);
        add(list, ROLE_Q_B, q_out, m->q_lora);
    }
    add(list, ROLE_KV_A, model_latent_dim(m), m->hidden);
    add(list, ROLE_KV_A_NORM, m->kv_lora, 0);
    add(list, ROLE_KV_B, m->heads * (m->nope_dim + m->v_dim), m->kv_lora);
    add(list, ROLE_O, m->hidden, m->heads * m->v_dim);
    if (m->index_topk) add_indexer(list);
    add(list, ROLE_FFN_NORM, m->hidden, 0);
}

static void add_experts(struct list *list) {
    const struct model *m = list->model;
    add(list, ROLE_ROUTER, m->experts, m->hidden);
    if (m->gate_kind == GATE_SIGMOID_GROUPED) add(list, ROLE_ROUTER_BIAS, m->experts, 0);
    if (m->shared_experts) add_mlp(list, ROLE_SHARED_GATE, m->shared_experts * m->expert_width);
    for (int i = 0; i < m->experts; i++) {
        list->expert = i;
        add_mlp(list, ROLE_EXPERT_GATE, m->expert_width);
    }
    list->expert = 0;
}

static void add_all(struct list *list) {
    const struct model *m = list->model;
    add(list, ROLE_EMBED, m->vocab, m->hidden);
    for (int i = 0; i < m->layers; i++) {
        list->layer = i;
        add_attention(list);
        if (model_layer_is_dense(m, i)) {
            add_mlp(list, ROLE_DENSE_GATE, m->dense_width);
        } else {
            add_experts(list);
        }
    }
    list->layer = 0;
    add(list, ROLE_FINAL_NORM, m->hidden, 0);
    if (!m->tied_embedding) add(list, ROLE_HEAD, m->vocab, m->hidden);
}

int slots_list(const struct model *model, struct arena *arena, struct slot **slots, int *n, struct mo_error *error) {
    struct list list = {.model = model};
    add_all(&list);
    *slots = arena_alloc_array(arena, (size_t)list.n, sizeof **slots);
    if (!*slots) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of %d tensors", list.n);
    list = (struct list){.model = model, .slots = *slots};
    add_all(&list);
    *n = list.n;
    return 0;
}
