#include "grammar/mask.h"

#include <stdlib.h>

int masks_init(struct masks *masks, const struct vocabulary *vocabulary, struct mo_error *error) {
    *masks = (struct masks){.vocabulary = vocabulary};
    masks->path = calloc((size_t)vocabulary->longest + 1, sizeof *masks->path);
    return masks->path ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a grammar's masks");
}

void masks_free(struct masks *masks) {
    for (int i = 0; i < masks->n; i++) free(masks->items[i]);
    free(masks->items);
    free(masks->path);
    *masks = (struct masks){0};
}

size_t masks_bytes(const struct masks *masks) {
    return (size_t)masks->n * vocabulary_words(masks->vocabulary) * sizeof(uint64_t);
}

static void walk(const struct masks *masks, struct automaton *automaton, int32_t state, uint64_t *mask) {
    const struct vocabulary *v = masks->vocabulary;
    int32_t *path = masks->path;
    path[0] = state;
    for (int i = 0; i < v->n_nodes;) {
        const struct vocabulary_node *node = &v->nodes[i];
        int32_t next = automaton_step(automaton, path[node->depth - 1], node->byte);
        if (next == AUTOMATON_DEAD) {
            i = node->end;
            continue;
        }
        path[node->depth] = next;
        if (node->token >= 0) mask[node->token >> 6] |= UINT64_C(1) << (node->token & 63);
        i++;
    }
}

static bool is_empty(const struct masks *masks, const uint64_t *mask) {
    uint64_t any = 0;
    for (size_t i = 0; i < vocabulary_words(masks->vocabulary); i++) any |= mask[i];
    return !any;
}

static uint64_t *add(struct masks *masks) {
    if (masks->n == masks->capacity) {
        int capacity = masks->capacity * 2 + 16;
        uint64_t **grown = realloc(masks->items, (size_t)capacity * sizeof *grown);
        if (!grown) return NULL;
        masks->items = grown;
        masks->capacity = capacity;
    }
    uint64_t *mask = calloc(vocabulary_words(masks->vocabulary), sizeof *mask);
    if (mask) masks->items[masks->n++] = mask;
    return mask;
}

int masks_get(struct masks *masks, struct automaton *automaton, int32_t state, const uint64_t **out,
              struct mo_error *error) {
    automaton_begin(automaton, true);
    int32_t near = automaton_near(automaton, state);
    int code = automaton_check(automaton, error);
    if (code) return code;
    if (automaton->states[near].mask < 0) {
        uint64_t *mask = add(masks);
        if (!mask) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a grammar's masks");
        walk(masks, automaton, near, mask);
        code = automaton_check(automaton, error);
        if (code) return code; /* the half mask stays behind: it is no state's */
        if (is_empty(masks, mask) && !automaton->states[near].may_end) {
            return mo_error_set(error, MO_E_UNSUPPORTED, "the grammar needs a text that this model has no tokens for");
        }
        automaton->states[near].mask = masks->n - 1;
    }
    *out = masks->items[automaton->states[near].mask];
    return 0;
}
