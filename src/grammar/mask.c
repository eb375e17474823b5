#include "grammar/mask.h"

#include <stdlib.h>
#include <string.h>

int masks_init(struct masks *masks, const struct vocabulary *vocabulary, struct mo_error *error) {
    *masks = (struct masks){.vocabulary = vocabulary};
    masks->path = calloc((size_t)vocabulary->longest + 1, sizeof *masks->path);
    return masks->path ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a grammar's masks");
}

void masks_free(struct masks *masks) {
    for (int i = 0; i < masks->n; i++) {
        free(masks->items[i].bits);
        free(masks->items[i].outs);
    }
    free(masks->items);
    free(masks->path);
    *masks = (struct masks){0};
}

size_t masks_bytes(const struct masks *masks) {
    return (size_t)masks->n * vocabulary_words(masks->vocabulary) * sizeof(uint64_t) + masks->n_outs * sizeof(int32_t);
}

/* A new mask without tokens; NULL without memory. */
static struct mask *add(struct masks *masks) {
    if (masks->n == masks->capacity) {
        int capacity = masks->capacity * 2 + 16;
        struct mask *grown = realloc(masks->items, (size_t)capacity * sizeof *grown);
        if (!grown) return NULL;
        masks->items = grown;
        masks->capacity = capacity;
    }
    struct mask *mask = &masks->items[masks->n];
    *mask = (struct mask){.bits = calloc(vocabulary_words(masks->vocabulary), sizeof *mask->bits)};
    masks->n += mask->bits != NULL;
    return mask->bits ? mask : NULL;
}

static bool add_out(struct masks *masks, struct mask *mask, int32_t node) {
    if (mask->n_outs == mask->outs_capacity) {
        int capacity = mask->outs_capacity * 2 + 64;
        int32_t *grown = realloc(mask->outs, (size_t)capacity * sizeof *grown);
        if (!grown) return false;
        mask->outs = grown;
        mask->outs_capacity = capacity;
    }
    mask->outs[mask->n_outs++] = node;
    masks->n_outs++;
    return true;
}

/* Adds the tokens at the nodes [from, end) of the tree; path[] holds the states down to the first one's parent. */
static bool walk(struct masks *masks, struct automaton *automaton, int from, int end, struct mask *mask) {
    int32_t *path = masks->path;
    for (int i = from; i < end;) {
        const struct vocabulary_node *node = &masks->vocabulary->nodes[i];
        int32_t next = automaton_step(automaton, path[node->depth - 1], node->byte);
        bool is_out = next != AUTOMATON_DEAD && automaton_is_out(automaton, next);
        if (is_out && !add_out(masks, mask, i)) return false;
        if (is_out || next == AUTOMATON_DEAD) {
            i = node->end;
            continue;
        }
        path[node->depth] = next;
        if (node->token >= 0) mask->bits[node->token >> 6] |= UINT64_C(1) << (node->token & 63);
        i++;
    }
    return true;
}

/* The same for one node and what is below it. The bytes that lead to it are those of any token there. */
static void walk_below(struct masks *masks, struct automaton *automaton, int32_t state, int node, struct mask *mask) {
    const struct vocabulary *v = masks->vocabulary;
    int with_token = node, depth = v->nodes[node].depth;
    size_t size;
    while (v->nodes[with_token].token < 0) with_token++;
    const char *bytes = vocabulary_bytes(v, v->nodes[with_token].token, &size);
    masks->path[0] = state;
    for (int i = 0; i < depth - 1; i++) {
        masks->path[i + 1] = automaton_step(automaton, masks->path[i], (uint8_t)bytes[i]);
        if (masks->path[i + 1] == AUTOMATON_DEAD) return; /* the limit of steps: the caller sees that */
    }
    walk(masks, automaton, node, v->nodes[node].end, mask);
}

/* Makes the mask of a state that has none. */
static int make(struct masks *masks, struct automaton *automaton, int32_t state, struct mo_error *error) {
    int32_t cut = automaton_cut(automaton, state);
    int code = cut != state && automaton->states[cut].mask < 0 ? make(masks, automaton, cut, error) : 0;
    struct mask *mask = code ? NULL : add(masks);
    if (code) return code;
    bool made = mask != NULL;
    if (made && cut == state) {
        masks->path[0] = state;
        made = walk(masks, automaton, 0, masks->vocabulary->n_nodes, mask);
    } else if (made) {
        const struct mask *base = &masks->items[automaton->states[cut].mask];
        memcpy(mask->bits, base->bits, vocabulary_words(masks->vocabulary) * sizeof *mask->bits);
        for (int i = 0; i < base->n_outs; i++) walk_below(masks, automaton, state, base->outs[i], mask);
    }
    if (!made) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a grammar's masks");
    code = automaton_check(automaton, error);
    if (!code) automaton->states[state].mask = masks->n - 1; /* else a half mask stays behind, which is no state's */
    return code;
}

static bool is_empty(const struct masks *masks, const uint64_t *bits) {
    uint64_t any = 0;
    for (size_t i = 0; i < vocabulary_words(masks->vocabulary); i++) any |= bits[i];
    return !any;
}

int masks_get(struct masks *masks, struct automaton *automaton, int32_t state, const uint64_t **out,
              struct mo_error *error) {
    automaton_begin(automaton, true);
    int32_t near = automaton_near(automaton, state);
    int code = automaton_check(automaton, error);
    bool is_new = !code && automaton->states[near].mask < 0;
    if (is_new) code = make(masks, automaton, near, error);
    if (code) return code;
    *out = masks->items[automaton->states[near].mask].bits;
    if (is_new && is_empty(masks, *out) && !automaton->states[near].may_end) {
        automaton->states[near].mask = -1;
        return mo_error_set(error, MO_E_UNSUPPORTED, "the grammar needs a text that this model has no tokens for");
    }
    return 0;
}
