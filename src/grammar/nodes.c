#include "grammar/nodes.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NODES_HEADS = 1 << 13 };

int32_t nodes_fail(struct nodes *nodes, int code, const char *format, ...) {
    if (nodes->code) return NODES_EMPTY;
    char message[sizeof nodes->error->message];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    nodes->code = mo_error_set(nodes->error, code, "%s", message);
    return NODES_EMPTY;
}

/* Room for `n` more items of `size` bytes: their place, or NULL with an error. */
static void *array_add(struct nodes *nodes, struct nodes_array *array, int n, size_t size, int limit) {
    if (nodes->code) return NULL;
    if (n > limit - array->n) {
        nodes->is_full = true;
        nodes_fail(nodes, MO_E_INVALID, "it is too large (more than %d parts)", limit);
        return NULL;
    }
    if (array->n + n > array->capacity) {
        int capacity = (array->n + n) * 2 < 64 ? 64 : (array->n + n) * 2;
        void *grown = realloc(array->items, (size_t)capacity * size);
        if (!grown) {
            nodes->is_full = true;
            nodes_fail(nodes, MO_E_NO_MEMORY, "out of memory for a grammar");
            return NULL;
        }
        array->items = grown;
        array->capacity = capacity;
    }
    void *place = (char *)array->items + (size_t)array->n * size;
    array->n += n;
    return place;
}

/* What a BYTES or a LITERAL node stands for: its bytes, and their number. */
static const void *content_of(const struct nodes *nodes, const struct node *node, size_t *size) {
    bool is_set = node->kind == NODE_BYTES;
    *size = is_set ? sizeof(struct byte_set) : node->kind == NODE_LITERAL ? (size_t)node->b : 0;
    if (is_set) return (const struct byte_set *)nodes->set.items + node->a;
    return *size ? (const uint8_t *)nodes->bytes.items + node->a : NULL;
}

static bool is_same(const struct nodes *nodes, const struct node *x, const struct node *y) {
    size_t size_x, size_y;
    const void *content_x = content_of(nodes, x, &size_x), *content_y = content_of(nodes, y, &size_y);
    if (x->kind != y->kind || size_x != size_y) return false;
    if (content_x) return memcmp(content_x, content_y, size_x) == 0;
    return x->a == y->a && x->b == y->b && x->min == y->min && x->max == y->max;
}

static uint32_t hash_of(const struct nodes *nodes, const struct node *node) {
    size_t size;
    const int32_t fields[] = {node->a, node->b, node->min, node->max};
    const void *content = content_of(nodes, node, &size);
    if (!content) content = fields, size = sizeof fields;
    uint32_t hash = node->kind;
    for (size_t i = 0; i < size; i++) hash = (hash ^ ((const uint8_t *)content)[i]) * 0x01000193u;
    return (hash ^ hash >> 15) % NODES_HEADS;
}

/* The node, or the one like it that is there. */
static int32_t add(struct nodes *nodes, struct node node) {
    int32_t *head = &nodes->heads[hash_of(nodes, &node)];
    for (int32_t i = *head; i >= 0; i = nodes_at(nodes, i)->chain) {
        if (is_same(nodes, &node, nodes_at(nodes, i))) return i;
    }
    struct node *place = array_add(nodes, &nodes->node, 1, sizeof node, NODES_MAX);
    if (!place) return NODES_EMPTY;
    node.chain = *head;
    *place = node;
    return *head = nodes->node.n - 1;
}

int nodes_init(struct nodes *nodes, struct mo_error *error) {
    *nodes = (struct nodes){.error = error, .heads = malloc(NODES_HEADS * sizeof(int32_t))};
    if (!nodes->heads) {
        nodes_fail(nodes, MO_E_NO_MEMORY, "out of memory for a grammar");
        return nodes->code;
    }
    memset(nodes->heads, 0xff, NODES_HEADS * sizeof *nodes->heads);
    add(nodes, (struct node){.kind = NODE_EMPTY});
    add(nodes, (struct node){.kind = NODE_NEVER});
    return nodes->code;
}

void nodes_free(struct nodes *nodes) {
    free(nodes->node.items);
    free(nodes->set.items);
    free(nodes->bytes.items);
    free(nodes->rule.items);
    free(nodes->heads);
    *nodes = (struct nodes){0};
}

int32_t nodes_bytes(struct nodes *nodes, const struct byte_set *set) {
    struct byte_set *place = array_add(nodes, &nodes->set, 1, sizeof *set, NODES_MAX);
    if (!place) return NODES_EMPTY;
    *place = *set;
    int32_t node = add(nodes, (struct node){.kind = NODE_BYTES, .a = nodes->set.n - 1});
    if (nodes_at(nodes, node)->a != nodes->set.n - 1) nodes->set.n--; /* it was there */
    return node;
}

int32_t nodes_literal(struct nodes *nodes, const char *bytes, size_t size) {
    if (size == 0) return NODES_EMPTY;
    nodes->is_full = nodes->is_full || size > NODES_BYTES_MAX;
    if (size > NODES_BYTES_MAX) return nodes_fail(nodes, MO_E_INVALID, "it is too large: a text of %zu bytes", size);
    uint8_t *place = array_add(nodes, &nodes->bytes, (int)size, 1, NODES_BYTES_MAX);
    if (!place) return NODES_EMPTY;
    memcpy(place, bytes, size);
    int begin = nodes->bytes.n - (int)size;
    int32_t node = add(nodes, (struct node){.kind = NODE_LITERAL, .a = begin, .b = (int)size});
    if (nodes_at(nodes, node)->a != begin) nodes->bytes.n = begin; /* it was there */
    return node;
}

int32_t nodes_text(struct nodes *nodes, const char *text) {
    return nodes_literal(nodes, text, strlen(text));
}

int32_t nodes_cat(struct nodes *nodes, int32_t a, int32_t b) {
    if (a == NODES_NEVER || b == NODES_NEVER) return NODES_NEVER;
    if (a == NODES_EMPTY) return b;
    if (b == NODES_EMPTY) return a;
    if (nodes->code) return NODES_EMPTY;
    return add(nodes, (struct node){.kind = NODE_CAT, .a = a, .b = b});
}

int32_t nodes_alt(struct nodes *nodes, int32_t a, int32_t b) {
    if (a == NODES_NEVER || a == b) return b;
    if (b == NODES_NEVER) return a;
    if (nodes->code) return NODES_EMPTY;
    return add(nodes, (struct node){.kind = NODE_ALT, .a = a, .b = b});
}

int32_t nodes_repeat(struct nodes *nodes, int32_t a, int min, int max) {
    assert(min >= 0 && min <= NODES_REPEAT_MAX && max <= NODES_REPEAT_MAX && (max < 0 || min <= max));
    if (a == NODES_EMPTY || max == 0) return NODES_EMPTY;
    if (a == NODES_NEVER) return min == 0 ? NODES_EMPTY : NODES_NEVER;
    if (min == 1 && max == 1) return a;
    if (nodes->code) return NODES_EMPTY;
    return add(nodes, (struct node){.kind = NODE_REPEAT, .a = a, .min = min, .max = max});
}

int32_t nodes_optional(struct nodes *nodes, int32_t a) {
    return nodes_repeat(nodes, a, 0, 1);
}

int32_t nodes_rule(struct nodes *nodes, int *rule) {
    int32_t *place = array_add(nodes, &nodes->rule, 1, sizeof *place, NODES_MAX);
    if (!place) return NODES_EMPTY;
    *place = -1;
    *rule = nodes->rule.n - 1;
    return add(nodes, (struct node){.kind = NODE_RULE, .a = *rule});
}

void nodes_rule_set(struct nodes *nodes, int rule, int32_t node) {
    if (!nodes->code) ((int32_t *)nodes->rule.items)[rule] = node;
}

/* --- what is nullable, what is possible ---------------------------------------------------------- */

static bool is_nullable(const struct nodes *nodes, const struct node *node) {
    switch (node->kind) {
    case NODE_EMPTY:
        return true;
    case NODE_CAT:
        return nodes_at(nodes, node->a)->nullable && nodes_at(nodes, node->b)->nullable;
    case NODE_ALT:
        return nodes_at(nodes, node->a)->nullable || nodes_at(nodes, node->b)->nullable;
    case NODE_REPEAT:
        return node->min == 0 || nodes_at(nodes, node->a)->nullable;
    case NODE_RULE:
        return nodes_at(nodes, nodes_rule_node(nodes, node->a))->nullable;
    default:
        return false;
    }
}

static bool is_possible(const struct nodes *nodes, const struct node *node) {
    switch (node->kind) {
    case NODE_NEVER:
        return false;
    case NODE_CAT:
        return nodes_at(nodes, node->a)->possible && nodes_at(nodes, node->b)->possible;
    case NODE_ALT:
        return nodes_at(nodes, node->a)->possible || nodes_at(nodes, node->b)->possible;
    case NODE_REPEAT:
        return node->min == 0 || nodes_at(nodes, node->a)->possible;
    case NODE_RULE:
        return nodes_at(nodes, nodes_rule_node(nodes, node->a))->possible;
    default:
        return true;
    }
}

/* Both only ever become true, so going over all nodes until nothing changes ends. Most graphs need two rounds, rules that
 * stand in an unlucky order one each: that is what the limit is for. */
static void settle(struct nodes *nodes) {
    enum { ROUNDS_MAX = 1000 };
    bool changed = true;
    for (int round = 0; changed && round < ROUNDS_MAX; round++) {
        changed = false;
        for (int i = 0; i < nodes->node.n; i++) {
            struct node *node = nodes_at(nodes, i);
            bool nullable = is_nullable(nodes, node), possible = is_possible(nodes, node);
            changed = changed || nullable != node->nullable || possible != node->possible;
            node->nullable = nullable;
            node->possible = possible;
        }
    }
    if (changed) nodes_fail(nodes, MO_E_INVALID, "it is too large: rules nest deeper than %d", ROUNDS_MAX);
    for (int i = 0; i < nodes->node.n; i++) { /* so many times, or more with nothing in them: the same texts */
        struct node *node = nodes_at(nodes, i);
        if (node->kind == NODE_REPEAT && nodes_at(nodes, node->a)->nullable) node->min = 0;
    }
}

/* --- left recursion ------------------------------------------------------------------------------ */

/* The nodes that can be met before a byte is read: the k-th, or -1. */
static int32_t left_child(const struct nodes *nodes, const struct node *node, int k) {
    switch (node->kind) {
    case NODE_CAT:
        if (k == 0) return node->a;
        return k == 1 && nodes_at(nodes, node->a)->nullable ? node->b : -1;
    case NODE_ALT:
        return k == 0 ? node->a : k == 1 ? node->b : -1;
    case NODE_REPEAT:
        return k == 0 ? node->a : -1;
    case NODE_RULE:
        return k == 0 ? nodes_rule_node(nodes, node->a) : -1;
    default:
        return -1;
    }
}

struct visit {
    int32_t node;
    int child;
};

/* Depth first, without the machine's stack: a node met again while it is open begins with itself. */
static bool begins_with_itself(const struct nodes *nodes, int32_t first, uint8_t *color, struct visit *stack) {
    enum { NEW, OPEN, DONE };
    int n = 0;
    if (color[first] != NEW) return false;
    stack[n++] = (struct visit){first, 0};
    color[first] = OPEN;
    while (n > 0) {
        struct visit *top = &stack[n - 1];
        int32_t child = left_child(nodes, nodes_at(nodes, top->node), top->child++);
        if (child < 0) {
            color[top->node] = DONE;
            n--;
        } else if (color[child] == OPEN) {
            return true;
        } else if (color[child] == NEW) {
            color[child] = OPEN;
            stack[n++] = (struct visit){child, 0};
        }
    }
    return false;
}

static void check_recursion(struct nodes *nodes) {
    unsigned n = (unsigned)nodes->node.n;
    uint8_t *color = calloc(n, 1);
    struct visit *stack = calloc(n, sizeof *stack);
    if (!color || !stack) nodes_fail(nodes, MO_E_NO_MEMORY, "out of memory for a grammar");
    for (int i = 0; i < nodes->node.n && !nodes->code; i++) {
        if (begins_with_itself(nodes, i, color, stack)) {
            nodes_fail(nodes, MO_E_UNSUPPORTED, "a rule begins with itself (left recursion): put something before it");
        }
    }
    free(color);
    free(stack);
}

int nodes_finish(struct nodes *nodes, int32_t root) {
    nodes->root = root;
    for (int i = 0; i < nodes->rule.n && !nodes->code; i++) assert(nodes_rule_node(nodes, i) >= 0);
    if (!nodes->code) settle(nodes);
    if (!nodes->code) check_recursion(nodes);
    if (!nodes->code && !nodes_at(nodes, root)->possible) nodes_fail(nodes, MO_E_INVALID, "no text can satisfy it");
    return nodes->code;
}
