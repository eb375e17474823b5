#include "grammar/automaton.h"

#include <stdlib.h>
#include <string.h>

enum { ROW_STEPS = 64 }; /* what a new row counts as */

/* The array with room for one more item; without memory as it was. */
static void *reserve(struct automaton *a, void *items, int *capacity, int n, size_t size) {
    if (n < *capacity) return items;
    int wanted = n < 32 ? 64 : n * 2;
    void *grown = realloc(items, (size_t)wanted * size);
    if (!grown) {
        a->no_memory = true;
        return items;
    }
    *capacity = wanted;
    return grown;
}
/* Whether there is room. */
#define RESERVE(a, items, capacity, n)                                                                                 \
    ((a)->items = reserve(a, (a)->items, &(a)->capacity, n, sizeof *(a)->items), (n) < (a)->capacity)

static bool is_stopped(const struct automaton *a) {
    return a->no_memory || a->n_steps > a->steps_max;
}

static uint32_t hash_add(uint32_t hash, int32_t value) {
    hash = (hash ^ (uint32_t)value) * 0x9E3779B1u;
    return hash ^ hash >> 15;
}

/* --- frames -------------------------------------------------------------------------------------- */

static uint32_t frame_hash(struct step_item item) {
    return hash_add(hash_add(hash_add(hash_add(1, item.node), item.need), item.left), item.next);
}

static uint32_t state_hash(const int32_t *frames, int n) {
    uint32_t hash = 2;
    for (int i = 0; i < n; i++) hash = hash_add(hash, frames[i]);
    return hash;
}

/* Twice the heads when there are more entries than heads; `hashes` are worked out again. */
static bool table_grow(struct automaton *a, struct table *table, int n_entries) {
    if ((uint32_t)n_entries < table->n_heads) return true;
    uint32_t n = table->n_heads ? table->n_heads * 2 : 256;
    int32_t *heads = malloc(n * sizeof *heads);
    if (!heads) {
        a->no_memory = true;
        return false;
    }
    memset(heads, 0xff, n * sizeof *heads);
    free(table->heads);
    *table = (struct table){heads, n};
    bool of_frames = table == &a->frame_table;
    for (int i = 0; i < n_entries; i++) {
        struct frame *f = of_frames ? &a->frames[i] : NULL;
        struct state *s = of_frames ? NULL : &a->states[i];
        uint32_t hash = f ? frame_hash((struct step_item){f->node, f->need, f->left, f->next})
                          : state_hash(a->members + s->first, s->n);
        int32_t *head = &heads[hash & (n - 1)];
        *(f ? &f->chain : &s->chain) = *head;
        *head = i;
    }
    return true;
}

/* The item with counters cut down: a token never comes to the end of NODES_REPEAT_MAX rounds. */
static struct step_item near_item(const struct automaton *a, struct step_item item) {
    if (item.node >= 0 && nodes_at(a->nodes, item.node)->kind == NODE_REPEAT) {
        if (item.need > AUTOMATON_NEAR) item.need = NODES_REPEAT_MAX;
        if (item.left > AUTOMATON_NEAR) item.left = AUTOMATON_NEAR;
    }
    item.next = a->frames[item.next].near;
    return item;
}

static bool same_item(struct step_item a, struct step_item b) {
    return a.node == b.node && a.need == b.need && a.left == b.left && a.next == b.next;
}

static int32_t frame_find(const struct automaton *a, struct step_item item) {
    int32_t i = a->frame_table.heads[frame_hash(item) & (a->frame_table.n_heads - 1)];
    for (; i >= 0; i = a->frames[i].chain) {
        const struct frame *f = &a->frames[i];
        if (same_item(item, (struct step_item){f->node, f->need, f->left, f->next})) return i;
    }
    return -1;
}

/* The frame's number; FRAME_END, which does no harm, when there is no memory. */
static int32_t frame_add(struct automaton *a, struct step_item item, int32_t near) {
    if (!RESERVE(a, frames, frames_capacity, a->n_frames)) return FRAME_END;
    if (!table_grow(a, &a->frame_table, a->n_frames)) return FRAME_END;
    int32_t *head = &a->frame_table.heads[frame_hash(item) & (a->frame_table.n_heads - 1)];
    int32_t i = a->n_frames++;
    if (near < 0) near = i;
    int32_t depth = item.node < 0 ? 0 : a->frames[item.next].depth + 1;
    a->frames[i] = (struct frame){item.node, item.need, item.left, item.next, near, depth, *head, 0, 0};
    *head = i;
    a->n_steps++;
    return i;
}

static int32_t frame_of(struct automaton *a, struct step_item item) {
    int32_t found = frame_find(a, item);
    if (found >= 0) return found;
    struct step_item cut = near_item(a, item);
    if (same_item(cut, item)) return frame_add(a, item, -1);
    int32_t near = frame_find(a, cut);
    if (near < 0) near = frame_add(a, cut, -1);
    return frame_add(a, item, near);
}

/* --- from a byte to the frames behind it --------------------------------------------------------- */

static void push(struct automaton *a, struct step_item item) {
    if (!RESERVE(a, work, work_capacity, a->n_work)) return;
    a->work[a->n_work++] = item;
}

/* A node that nothing of was read yet. */
static struct step_item fresh(const struct automaton *a, int32_t node, int32_t next) {
    const struct node *n = nodes_at(a->nodes, node);
    bool repeats = n->kind == NODE_REPEAT;
    return (struct step_item){node, repeats ? n->min : 0, repeats ? n->max : 0, next};
}

static void set_add(struct automaton *a, int32_t frame) {
    if (a->frames[frame].listed == a->set_number) return;
    a->frames[frame].listed = a->set_number;
    if (RESERVE(a, set, set_capacity, a->n_set)) a->set[a->n_set++] = frame;
}

/* What came before it is read: the frame is next. */
static void resume(struct automaton *a, int32_t frame) {
    struct frame *f = &a->frames[frame];
    if (f->resumed == a->set_number) return; /* every way there leads on alike */
    f->resumed = a->set_number;
    if (f->node < 0)
        set_add(a, frame);
    else
        push(a, (struct step_item){f->node, f->need, f->left, f->next});
}

static void follow_repeat(struct automaton *a, struct step_item item, int32_t body) {
    if (item.need == 0) resume(a, item.next);
    if (item.left == 0) return;
    struct step_item again = item;
    if (again.need > 0) again.need--;
    if (again.left > 0) again.left--;
    push(a, fresh(a, body, frame_of(a, again)));
}

/* Takes the pushed items to the frames that read a byte, which join the set. */
static void follow(struct automaton *a) {
    while (a->n_work > 0 && !is_stopped(a)) {
        struct step_item item = a->work[--a->n_work];
        const struct node *node = nodes_at(a->nodes, item.node);
        a->n_steps++;
        if (!node->possible) continue;
        switch (node->kind) {
        case NODE_EMPTY:
            resume(a, item.next);
            break;
        case NODE_BYTES:
        case NODE_LITERAL:
            set_add(a, frame_of(a, item));
            break;
        case NODE_CAT:
            push(a, fresh(a, node->a, frame_of(a, fresh(a, node->b, item.next))));
            break;
        case NODE_ALT:
            push(a, fresh(a, node->b, item.next));
            push(a, fresh(a, node->a, item.next));
            break;
        case NODE_REPEAT:
            follow_repeat(a, item, node->a);
            break;
        case NODE_RULE:
            push(a, fresh(a, nodes_rule_node(a->nodes, node->a), item.next));
            break;
        case NODE_NEVER:
            break;
        }
    }
    a->n_work = 0;
}

/* --- states -------------------------------------------------------------------------------------- */

static void set_begin(struct automaton *a) {
    a->n_set = 0;
    a->set_number++;
}

static int compare(const void *left, const void *right) {
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    return (a > b) - (a < b);
}

/* The bytes that a frame can read next. */
static void add_live(const struct automaton *a, const struct frame *frame, struct byte_set *live) {
    if (frame->node < 0) return;
    const struct node *node = nodes_at(a->nodes, frame->node);
    if (node->kind == NODE_LITERAL) {
        byte_set_add(live, ((const uint8_t *)a->nodes->bytes.items)[node->a + frame->need]);
    } else {
        const struct byte_set *set = (const struct byte_set *)a->nodes->set.items + node->a;
        for (int i = 0; i < 4; i++) live->bits[i] |= set->bits[i];
    }
}

static int32_t state_add(struct automaton *a) {
    if (!RESERVE(a, states, states_capacity, a->n_states)) return AUTOMATON_DEAD;
    if (!table_grow(a, &a->state_table, a->n_states)) return AUTOMATON_DEAD;
    struct state state = {.first = a->n_members, .n = a->n_set, .near = AUTOMATON_UNKNOWN, .row = -1, .mask = -1};
    for (int i = 0; i < a->n_set; i++) {
        if (!RESERVE(a, members, members_capacity, a->n_members)) return AUTOMATON_DEAD;
        a->members[a->n_members++] = a->set[i];
        add_live(a, &a->frames[a->set[i]], &state.live);
    }
    state.may_end = a->set[0] == FRAME_END; /* ascending */
    int32_t *head = &a->state_table.heads[state_hash(a->set, a->n_set) & (a->state_table.n_heads - 1)];
    state.chain = *head;
    *head = a->n_states;
    a->states[a->n_states] = state;
    return a->n_states++;
}

/* The state of the set that was made. */
static int32_t set_state(struct automaton *a) {
    a->n_steps += a->n_set;
    if (a->n_set == 0 || is_stopped(a)) return AUTOMATON_DEAD;
    qsort(a->set, (size_t)a->n_set, sizeof *a->set, compare);
    uint32_t n_heads = a->state_table.n_heads;
    int32_t i = n_heads ? a->state_table.heads[state_hash(a->set, a->n_set) & (n_heads - 1)] : -1;
    for (; i >= 0; i = a->states[i].chain) {
        const struct state *s = &a->states[i];
        if (s->n == a->n_set && !memcmp(a->members + s->first, a->set, (size_t)s->n * sizeof *a->set)) return i;
    }
    return state_add(a);
}

static void read_byte(struct automaton *a, int32_t frame, uint8_t byte) {
    struct frame f = a->frames[frame];
    if (f.node < 0) return;
    const struct node *node = nodes_at(a->nodes, f.node);
    a->n_steps++;
    if (node->kind == NODE_BYTES) {
        if (byte_set_has((const struct byte_set *)a->nodes->set.items + node->a, byte)) resume(a, f.next);
    } else if (((const uint8_t *)a->nodes->bytes.items)[node->a + f.need] == byte) {
        if (f.need + 1 == node->b)
            resume(a, f.next);
        else
            set_add(a, frame_of(a, (struct step_item){f.node, f.need + 1, f.left, f.next}));
    }
}

static void add_row(struct automaton *a, int32_t state) {
    if (!RESERVE(a, rows, rows_capacity, a->n_rows)) return;
    for (int byte = 0; byte < 256; byte++) {
        bool is_live = byte_set_has(&a->states[state].live, (uint8_t)byte);
        a->rows[a->n_rows][byte] = is_live ? AUTOMATON_UNKNOWN : AUTOMATON_DEAD;
    }
    a->states[state].row = a->n_rows++;
    a->n_steps += ROW_STEPS;
}

int32_t automaton_make_step(struct automaton *a, int32_t state, uint8_t byte) {
    if (is_stopped(a) || !byte_set_has(&a->states[state].live, byte)) return AUTOMATON_DEAD;
    if (a->keeps_rows && a->states[state].row < 0) add_row(a, state);
    set_begin(a);
    for (int i = 0; i < a->states[state].n; i++) read_byte(a, a->members[a->states[state].first + i], byte);
    follow(a);
    int32_t found = set_state(a);
    if (!is_stopped(a) && a->states[state].row >= 0) a->rows[a->states[state].row][byte] = found;
    return found;
}

int32_t automaton_near(struct automaton *a, int32_t state) {
    if (a->states[state].near != AUTOMATON_UNKNOWN) return a->states[state].near;
    set_begin(a);
    for (int i = 0; i < a->states[state].n; i++) {
        set_add(a, a->frames[a->members[a->states[state].first + i]].near);
    }
    int32_t near = set_state(a);
    if (near >= 0) a->states[state].near = near;
    return near;
}

/* The deepest frame that all of the state's have behind them. */
static int32_t common_frame(const struct automaton *a, int32_t state) {
    const struct frame *frames = a->frames;
    const int32_t *members = a->members + a->states[state].first;
    int32_t common = frames[members[0]].next;
    for (int i = 1; i < a->states[state].n; i++) {
        int32_t other = frames[members[i]].next;
        while (common != other) {
            if (frames[common].depth >= frames[other].depth)
                common = frames[common].next;
            else
                other = frames[other].next;
        }
    }
    return common;
}

static int32_t cut_frame(struct automaton *a, int32_t frame, int32_t common) {
    struct frame f = a->frames[frame];
    if (frame == common) return FRAME_OUT;
    return frame_of(a, (struct step_item){f.node, f.need, f.left, cut_frame(a, f.next, common)});
}

static int count_live(const struct state *state) {
    int n = 0;
    for (int i = 0; i < 4; i++) n += __builtin_popcountll(state->live.bits[i]);
    return n;
}

int32_t automaton_cut(struct automaton *a, int32_t state) {
    enum { LIVE_MIN = 64, DEPTH_MAX = 64 };
    if (count_live(&a->states[state]) < LIVE_MIN) return state;
    int32_t common = common_frame(a, state);
    if (common == FRAME_END || common == FRAME_OUT) return state;
    set_begin(a);
    for (int i = 0; i < a->states[state].n; i++) {
        int32_t frame = a->members[a->states[state].first + i];
        if (a->frames[frame].depth - a->frames[common].depth > DEPTH_MAX) return state;
        set_add(a, cut_frame(a, frame, common));
    }
    int32_t cut = set_state(a);
    return cut >= 0 ? cut : state;
}

/* --- life ---------------------------------------------------------------------------------------- */

int automaton_init(struct automaton *a, const struct nodes *nodes, struct mo_error *error) {
    *a = (struct automaton){.nodes = nodes};
    automaton_begin(a, true);
    frame_add(a, (struct step_item){.node = -1}, FRAME_END);
    frame_add(a, (struct step_item){.node = -2}, FRAME_OUT);
    if (!a->no_memory) {
        set_begin(a);
        push(a, fresh(a, nodes->root, FRAME_END));
        follow(a);
        set_state(a);
    }
    return automaton_check(a, error);
}

void automaton_free(struct automaton *a) {
    free(a->frames);
    free(a->states);
    free(a->members);
    free(a->rows);
    free(a->frame_table.heads);
    free(a->state_table.heads);
    free(a->work);
    free(a->set);
    *a = (struct automaton){0};
}

size_t automaton_bytes(const struct automaton *a) {
    return (size_t)a->n_frames * sizeof *a->frames + (size_t)a->n_states * sizeof *a->states +
           (size_t)a->n_members * sizeof *a->members + (size_t)a->n_rows * sizeof *a->rows;
}

void automaton_begin(struct automaton *a, bool for_mask) {
    a->n_steps = 0;
    a->steps_max = for_mask ? AUTOMATON_MASK_STEPS_MAX : AUTOMATON_TOKEN_STEPS_MAX;
    a->keeps_rows = for_mask;
}

int automaton_check(const struct automaton *a, struct mo_error *error) {
    if (a->no_memory) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a grammar's states");
    if (a->n_steps <= a->steps_max) return 0;
    return mo_error_set(error, MO_E_LIMIT,
                        "the grammar can be read in too many ways at once; make its repetitions and choices simpler");
}
