/* Routing with as many experts as the published models have (the other tests' models have 16 at most): the choice beside the CPU's,
 * and the work lists beside plain sorting. A step's way, where the last block chooses and lists, and a prompt's. */
#include <math.h>
#include <string.h>
#include "backend/cpu/cpu.h"
#include "bare_card.h"

enum { HIDDEN = 16, STEP_ROWS = 8, PROMPT_ROWS = 70, TOKENS = 9, PICKED = 3 };

static const struct shape {
    enum gate_kind kind;
    int experts, top_k, groups, top_groups;
    bool norm;
    double scale;
    bool is_listed; /* a table says which, by token */
} shapes[] = {
    {GATE_SOFTMAX_GREEDY, 64, 6, 1, 1, false, 1, false},         /* V2-Lite */
    {GATE_SOFTMAX_GROUPED, 160, 6, 8, 3, false, 16, false},      /* V2 */
    {GATE_SIGMOID_GROUPED, 256, 8, 8, 4, true, 2.5, false},      /* V3 */
    {GATE_SOFTMAX_GREEDY, MAX_EXPERTS, 8, 1, 1, true, 1, false}, /* the most that there may be */
    {GATE_SIGMOID_GROUPED, MAX_EXPERTS, 4, MAX_GROUPS, 40, false, 1, false},
    {GATE_SQRT_SOFTPLUS, 256, 6, 1, 1, true, 1.5, true}, /* V4's first layers, and the others */
    {GATE_SQRT_SOFTPLUS, 256, 6, 1, 1, true, 1.5, false},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static struct cuda card;

static void *taken[32];
static int n_taken;
static void *take(size_t bytes) {
    return memset(taken[n_taken++] = bare_card_memory(&card, bytes), 0, bytes);
}

/* Logits that are well apart: a place in a shuffled row of numbers from -3 to 3. */
static float logit_of(const struct shape *s, int row, int expert) {
    return (float)((expert * 37 + row * 11) % s->experts) * 6 / (float)s->experts - 3;
}

static bool has_bias(const struct shape *s) {
    return !s->is_listed && (s->kind == GATE_SIGMOID_GROUPED || s->kind == GATE_SQRT_SOFTPLUS);
}

/* A token's experts; the third's are some of them twice. */
static int expert_of(const struct shape *s, int token, int slot) {
    return token == 2 ? (slot < 4 ? 100 + slot / 2 : 7) : (token * 31 + slot * 45) % s->experts;
}

static int token_of(int row) {
    return row * 5 % TOKENS;
}

/* Some of the tokens were picked in the step before. */
static void list_tokens(const struct shape *s, struct route_params *p) {
    int32_t *table = take((size_t)(TOKENS * s->top_k) * 4), *token = take((size_t)p->n * 4), *picked = take(PICKED * 4);
    for (int i = 0; i < TOKENS * s->top_k; i++) table[i] = expert_of(s, i / s->top_k, i % s->top_k);
    for (int i = 0; i < PICKED; i++) picked[i] = token_of(i);
    for (int row = 0; row < p->n; row++) token[row] = row < PICKED ? -1 - row : token_of(row);
    p->table = table;
    p->token = token;
    p->picked = picked;
}

static struct route_params open_params(const struct shape *s, int n, bool choose) {
    size_t pairs = (size_t)(n * s->top_k), experts = (size_t)s->experts;
    float *x = take((size_t)n * HIDDEN * 4), *gain = take(HIDDEN * 4), *router = take(experts * HIDDEN * 4);
    float *score = take((size_t)n * experts * 4), *bias = take(experts * 4);
    for (int i = 0; i < HIDDEN; i++) gain[i] = 1;
    for (int row = 0; row < n; row++) {
        x[row * HIDDEN + row % HIDDEN] = 4; /* a row's root mean square is 1 then */
        for (int e = 0; e < s->experts; e++) score[row * s->experts + e] = logit_of(s, row, e);
    }
    for (int e = 0; e < s->experts; e++) {
        bias[e] = (float)(e * 5 % 7) * 0.03f;
        for (int k = 0; k < HIDDEN && choose; k++) router[e * HIDDEN + k] = logit_of(s, k, e) / 4;
    }
    struct route_params p = {.x = x,
                             .gain = gain,
                             .router = router,
                             .bias = has_bias(s) ? bias : NULL,
                             .score = score,
                             .id = take(pairs * 4),
                             .weight = take(pairs * 4),
                             .at = take(pairs * 4),
                             .at_weight = take(pairs * 4),
                             .pair_row = take(pairs * 4),
                             .items = take((pairs + experts) * sizeof(struct expert_item)),
                             .n_items = take(4),
                             .arrived = take(4),
                             .fault = take(8),
                             .n = n,
                             .hidden = HIDDEN,
                             .experts = s->experts,
                             .top_k = s->top_k,
                             .groups = s->groups,
                             .top_groups = s->top_groups,
                             .gate_kind = (int)s->kind,
                             .norm_topk = s->norm,
                             .item_rows = choose ? 2 : 8,
                             .blocks = (s->experts + BLOCK_WARPS - 1) / BLOCK_WARPS * ((n + 7) / 8),
                             .choose = choose,
                             .routed_scale = (float)s->scale};
    if (s->is_listed) list_tokens(s, &p);
    return p;
}

static void check_choice(const struct shape *s, const struct route_params *p) {
    struct model model = {.experts = s->experts,
                          .top_k = s->top_k,
                          .groups = s->groups,
                          .top_groups = s->top_groups,
                          .gate_kind = s->kind,
                          .norm_topk = s->norm,
                          .routed_scale = s->scale};
    for (int row = 0; row < p->n; row++) {
        float score[MAX_EXPERTS], weight[MAX_TOP_K];
        int32_t id[MAX_TOP_K], listed[MAX_TOP_K];
        for (int e = 0; e < s->experts; e++) score[e] = logit_of(s, row, e);
        for (int j = 0; j < s->top_k; j++) listed[j] = expert_of(s, token_of(row), j);
        if (s->is_listed) {
            cpu_listed_experts(&model, listed, score, id, weight);
        } else {
            cpu_choose_experts(&model, p->bias, score, id, weight);
        }
        for (int j = 0; j < s->top_k; j++) {
            int at = row * s->top_k + j;
            if (p->id[at] != id[j] || !(fabsf(p->weight[at] - weight[j]) <= 1e-4f * weight[j])) {
                fail_msg("%d experts, row %d, slot %d: expected %d (%g), found %d (%g)", s->experts, row, j, id[j],
                         (double)weight[j], p->id[at], (double)p->weight[at]);
            }
        }
    }
}

/* Pairs sorted by expert, then row; items that cut them up; and each row's places in ascending order of experts. */
static void check_lists(const struct shape *s, const struct route_params *p) {
    int place = 0, items = 0, filled[PROMPT_ROWS] = {0};
    for (int e = 0; e < s->experts; e++) {
        int first = place;
        for (int i = 0; i < p->n * s->top_k; i++) {
            if (p->id[i] != e) continue;
            int row = i / s->top_k, at = row * s->top_k + filled[row]++;
            assert_int_equal(p->pair_row[place], row);
            assert_int_equal(p->at[at], place);
            assert_true(p->at_weight[at] == p->weight[i]);
            place++;
        }
        for (; first < place; first += p->item_rows, items++) {
            const struct expert_item *item = &p->items[items];
            assert_int_equal(item->expert, e);
            assert_int_equal(item->first, first);
            assert_int_equal(item->n, place - first < p->item_rows ? place - first : p->item_rows);
        }
    }
    assert_int_equal(*p->n_items, items);
    assert_int_equal(*p->arrived, 0);
}

static void check(const struct shape *s, int n, bool choose) {
    struct route_params p = open_params(s, n, choose);
    if (choose) {
        struct linear_params linear = {.route = p, .fault = p.fault};
        cuda_launch(&card, KERNEL_BF16_SKINNY, p.blocks, ROUTE_SHARED, &linear);
    } else {
        cuda_launch(&card, KERNEL_ROUTE_CHOOSE, (n + BLOCK_WARPS - 1) / BLOCK_WARPS, ROUTE_SHARED, &p);
        cuda_launch(&card, KERNEL_ROUTE_LIST, s->experts, ROUTE_SHARED, &p);
    }
    if (card.failure.code || card.driver.stream_wait(card.stream)) fail_msg("%s", card.failure.message);
    check_choice(s, &p);
    check_lists(s, &p);
    while (n_taken > 0) card.driver.memory_free((cuda_address)(uintptr_t)taken[--n_taken]);
}

static void test_steps(void **unused) {
    (void)unused;
    for (int i = 0; i < SHAPES; i++) {
        check(&shapes[i], 1, true);
        check(&shapes[i], STEP_ROWS, true);
    }
}

static void test_prompts(void **unused) {
    (void)unused;
    for (int i = 0; i < SHAPES; i++) check(&shapes[i], i % 2 ? 9 : PROMPT_ROWS, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_prompts)};
    bare_card_open(&card, "route");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cuda_card_close(&card.driver, &card.card);
    cuda_driver_close(&card.driver);
    return failed;
}
