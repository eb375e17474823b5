#include "selftest/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/numbers.h"
#include "check/random.h"

enum { PRODUCTS_MAX = 64 };

static const float unset = -12345.678f;

/* Memory from its start on; without memory it only counts. */
struct region {
    uint8_t *base;
    size_t used;
};

static void *take(struct region *region, size_t bytes) {
    void *at = region->base ? region->base + region->used : NULL;
    region->used += (bytes + 63) / 64 * 64;
    return at;
}

void self_fill(float *x, int n, uint64_t seed) {
    struct check_random random;
    random_seed(&random, seed);
    for (int i = 0; i < n; i++) x[i] = random_float(&random);
}

/* ---- what differs, and how that is told ---- */

static bool same_bits(float a, float b) {
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

void self_compare(struct self_difference *d, int row, const float *got, const float *want, int n) {
    for (int i = 0; i < n; i++) {
        if (same_bits(got[i], want[i])) continue;
        double error = fabs((double)got[i] - (double)want[i]);
        if (!d->differing++) {
            d->row = row;
            d->column = i;
            d->got = got[i];
            d->want = want[i];
        }
        if (!(error <= d->largest)) d->largest = error;
    }
    d->values += n;
}

int self_judge(struct self_kernels *k, const struct self_difference *d, const char *kernel, const char *where,
               const char *row) {
    char got[64];
    k->report->checks++;
    if (!d->differing) return 0;
    snprintf(got, sizeof got, "is %.9g", (double)d->got);
    if (d->got == unset) snprintf(got, sizeof got, "was never written");
    return mo_error_set(
        k->error, MO_E_INTERNAL,
        "level %s, kernel %s, %s: value %d of %s %d %s, expected the bits of plain C, %.9g; %d of %d values "
        "differ, the largest error is %.3g",
        k->kern->name, kernel, where, d->first_column + d->column, row, d->row, got, (double)d->want, d->differing,
        d->values, d->largest);
}

/* ---- which products ---- */

/* Which of a table's kernels multiplies. */
enum by { BY_GEMM, BY_GEMM_Q8, BY_GEMM_UNROUNDED };

struct product {
    const struct mat *w;
    enum role role;
    int layer, expert;
    enum by by;
};

struct products {
    struct product list[PRODUCTS_MAX];
    int n;
};

/* The same code over the same steps. */
static bool is_like(const struct mat *a, const struct mat *b) {
    return a->format == b->format && a->cols == b->cols && a->group_size == b->group_size &&
           a->scale_rows == b->scale_rows && a->scale_cols == b->scale_cols;
}

static void add(struct products *p, const struct self_kernels *k, enum role role, int layer, int expert) {
    const struct mat *w = weights_matrix(k->test->weights, role, layer, expert);
    const bool is_q8 = q8_group(w) && k->test->compute != COMPUTE_F32;
    const bool decides = role == ROLE_ROUTER || role == ROLE_ATTN_MIX || role == ROLE_FFN_MIX || role == ROLE_HEAD_MIX;
    const bool is_unrounded = decides && w->format == MAT_BF16 && k->kern->gemm_unrounded;
    const enum by by = is_q8 ? BY_GEMM_Q8 : is_unrounded ? BY_GEMM_UNROUNDED : BY_GEMM;
    if (!w->data || w->rows == 0 || p->n == PRODUCTS_MAX) return;
    for (int i = 0; i < p->n; i++) {
        if (p->list[i].by == by && is_like(p->list[i].w, w)) return;
    }
    p->list[p->n++] = (struct product){w, role, layer, expert, by};
}

static void add_layer(struct products *p, const struct self_kernels *k, int layer) {
    static const enum role every[] = {
        ROLE_Q,
        ROLE_Q_A,
        ROLE_Q_B,
        ROLE_KV_A,
        ROLE_KV_B,
        ROLE_O,
        ROLE_INDEX_Q,
        ROLE_INDEX_K,
        ROLE_INDEX_WEIGHTS,
        ROLE_O_A,
        ROLE_COMPRESS_KV,
        ROLE_COMPRESS_GATE,
        ROLE_INDEX_COMPRESS_KV,
        ROLE_INDEX_COMPRESS_GATE,
        ROLE_ATTN_MIX,
        ROLE_FFN_MIX,
        ROLE_ENGRAM_KV,
    };
    for (size_t i = 0; i < sizeof every / sizeof *every; i++) add(p, k, every[i], layer, 0);
    if (model_layer_is_dense(k->test->model, layer)) {
        for (int i = 0; i < 3; i++) add(p, k, (enum role)(ROLE_DENSE_GATE + i), layer, 0);
        return;
    }
    add(p, k, ROLE_ROUTER, layer, 0);
    for (int i = 0; i < 3; i++) add(p, k, (enum role)(ROLE_SHARED_GATE + i), layer, 0);
    for (int e = 0; e < k->test->model->experts; e++) {
        for (int i = 0; i < 3; i++) add(p, k, (enum role)(ROLE_EXPERT_GATE + i), layer, e);
    }
}

static void list_products(struct products *p, const struct self_kernels *k) {
    add(p, k, ROLE_HEAD, 0, 0);
    add(p, k, ROLE_HEAD_MIX, 0, 0);
    for (int layer = 0; layer < k->test->model->layers; layer++) add_layer(p, k, layer);
}

/* ---- one product ---- */

/* Rows [r0, w->rows), `most` of them at most, from a multiple of a panel on: so the end of the matrix takes part, and an offset. */
static int first_row(const struct mat *w, int most) {
    return w->rows <= most ? 0 : (w->rows - most + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS;
}

/* Some rows of a matrix times `n` tokens: token t is x[token[t]]. */
struct rows_job {
    const struct mat *w;
    int r0, r1, n;
    const int *token; /* [n] */
    enum by by;
    int base;   /* out[t] begins at this row */
    float *out; /* [n][SELF_ROWS] */
};

static void multiply(const struct self_kernels *k, const struct kern *kern, const struct rows_job *job) {
    const float *x[SELF_MANY];
    struct q8_row q[SELF_MANY];
    float *y[SELF_MANY];
    for (int t = 0; t < job->n; t++) {
        x[t] = k->x[job->token[t]];
        q[t] = k->q[job->token[t]];
        y[t] =
            (float *)((uintptr_t)(job->out + t * SELF_ROWS) - (uintptr_t)job->base * sizeof(float)); /* as at row 0 */
    }
    if (job->by == BY_GEMM_Q8) {
        kern->gemm_q8[job->w->format](job->w, job->r0, job->r1, q, job->n, y, NULL);
    } else {
        (job->by == BY_GEMM ? kern->gemm[job->w->format] : kern->gemm_unrounded)(job->w, job->r0, job->r1, x, job->n,
                                                                                 y);
    }
}

static int judge_product(struct self_kernels *k, const struct self_difference *d, const struct product *p, int tokens) {
    static const char *const names[] = {"gemm", "gemm_q8", "gemm_unrounded"};
    char name[NAME_MAX_BYTES], where[NAME_MAX_BYTES + 80];
    names_tensor(name, model_naming(k->test->model), p->role, p->layer, p->expert, "");
    snprintf(where, sizeof where, "%s of %s, the last rows by %d columns, %d token%s", mat_format_name(p->w->format),
             name, p->w->cols, tokens, tokens == 1 ? "" : "s");
    return self_judge(k, d, names[p->by], where, "token");
}

/* The kernel's rows of `w` from r0 on for a batch, against the plain ones, which begin at `base`. */
static int test_batch(struct self_kernels *k, const struct product *p, const struct mat *w, int r0, int base, int n) {
    static const int token[SELF_MANY] = {0, 1, 2, 0, 2, 2, 1, 0, 1, 1, 2, 0, 0, 2, 1, 2, 0, 1, 0, 0, 1, 2, 2};
    const int rows = w->rows - r0;
    struct self_difference d = {.first_column = r0};
    for (int i = 0; i < n * SELF_ROWS; i++) k->got[i] = unset;
    multiply(k, k->kern, &(struct rows_job){w, r0, w->rows, n, token, p->by, r0, k->got});
    for (int t = 0; t < n; t++) {
        self_compare(&d, t, k->got + t * SELF_ROWS, k->want + token[t] * SELF_ROWS + (r0 - base), rows);
    }
    return judge_product(k, &d, p, n);
}

static int padded(int cols) {
    return (cols + Q8_GROUP_MAX - 1) / Q8_GROUP_MAX * Q8_GROUP_MAX;
}

static void compare_one(struct self_difference *d, int row, int column, float got, float want) {
    const bool is_first = !d->differing;
    self_compare(d, row, &got, &want, 1);
    if (is_first && d->differing) d->column = column;
}

/* Makes the tokens' 8 bits for a matrix by plain C, and compares the kernel's own. */
static int quantize(struct self_kernels *k, const struct mat *w, int group) {
    struct self_difference d = {0};
    const int groups = padded(w->cols) / group;
    char where[80];
    for (int t = 0; t < SELF_TOKENS; t++) {
        k->plain.quantize(k->x[t], w->cols, group, &k->q[t]);
        k->kern->quantize(k->x[t], w->cols, group, &k->got_q);
        self_compare(&d, t, k->got_q.scale, k->q[t].scale, groups);
        for (int i = 0; i < padded(w->cols); i++) compare_one(&d, t, i, k->got_q.q[i], k->q[t].q[i]);
        for (int i = 0; i < groups; i++) compare_one(&d, t, i, (float)k->got_q.sum[i], (float)k->q[t].sum[i]);
    }
    snprintf(where, sizeof where, "%d values in groups of %d", w->cols, group);
    return self_judge(k, &d, "quantize", where, "token");
}

/* The rows from r1 on once more, turned: as they will be read after a while (model/turn.h). */
static int test_turned(struct self_kernels *k, const struct product *p, int r1, int base) {
    struct mat turned = *p->w;
    turned.rows -= r1;
    turned.turned = true;
    uint8_t *data = malloc(mat_bytes(&turned));
    if (!data) return mo_error_set(k->error, MO_E_NO_MEMORY, "no memory for some rows of a matrix");
    turned.data = data;
    const int panels = (turned.rows + TURN_ROWS - 1) / TURN_ROWS;
    for (int i = 0; i < panels; i++) {
        mat_turn_panel(p->w, r1 / TURN_ROWS + i, data + mat_bytes(&turned) / (size_t)panels * (size_t)i);
    }
    int code = test_batch(k, p, &turned, 0, base - r1, 1);
    if (!code) code = test_batch(k, p, &turned, 0, base - r1, SELF_FEW);
    if (!code) code = test_batch(k, p, &turned, 0, base - r1, SELF_MANY);
    free(data);
    return code;
}

static bool is_plain(const struct self_kernels *k, const struct product *p) {
    const enum mat_format format = p->w->format;
    if (p->by == BY_GEMM_Q8) return k->kern->gemm_q8[format] == k->plain.gemm_q8[format];
    if (p->by == BY_GEMM_UNROUNDED) return k->kern->gemm_unrounded == k->plain.gemm_unrounded;
    return k->kern->gemm[format] == k->plain.gemm[format];
}

static int test_product(struct self_kernels *k, const struct product *p, bool *format_seen) {
    static const int tokens[SELF_TOKENS] = {0, 1, 2};
    const struct mat *w = p->w;
    const int r0 = first_row(w, *format_seen ? SELF_ROWS_MANY : SELF_ROWS), r1 = first_row(w, SELF_ROWS_MANY);
    if (is_plain(k, p)) return 0;
    int code = p->by == BY_GEMM_Q8 ? quantize(k, w, q8_group(w)) : 0;
    if (code) return code;
    if (r0 < r1) multiply(k, &k->plain, &(struct rows_job){w, r0, r1, 1, tokens, p->by, r0, k->want});
    multiply(k, &k->plain, &(struct rows_job){w, r1, w->rows, SELF_TOKENS, tokens, p->by, r0, k->want});
    code = test_batch(k, p, w, r0, r0, 1);
    if (!code) code = test_batch(k, p, w, r1, r0, SELF_FEW);
    if (!code) code = test_batch(k, p, w, r1, r0, SELF_MANY);
    if (!code && mat_can_turn(w->format) && !w->turned) code = test_turned(k, p, r1, r0);
    *format_seen = true;
    return code;
}

static int test_products(struct self_kernels *k) {
    struct products products = {.n = 0};
    bool seen[MAT_FORMATS] = {false};
    int code = 0;
    list_products(&products, k);
    for (int i = 0; i < products.n && !code; i++) {
        code = test_product(k, &products.list[i], &seen[products.list[i].w->format]);
    }
    return code;
}

/* ---- memory ---- */

/* Inputs of the widest matrix. */
static int widest(const struct model *m) {
    int width = larger(m->hidden, larger(m->q_lora, model_latent_dim(m)));
    width = larger(width, larger(m->heads * m->v_dim, m->dense_layers ? m->dense_width : 0));
    width = larger(width, larger(model_streams(m) * m->hidden, m->hybrid.o_groups * m->hybrid.o_lora));
    if (m->hybrid.engram.n_layers) width = larger(width, engram_columns(&m->hybrid.engram) * m->hybrid.engram.dim);
    return larger(width, larger(m->shared_experts, 1) * m->expert_width);
}

static struct q8_row take_q8(struct region *region, int cols) {
    const size_t n = (size_t)padded(cols), groups = n / Q8_GROUP_MIN;
    struct q8_row row = {.q = take(region, n)};
    row.scale = take(region, groups * sizeof *row.scale);
    row.sum = take(region, groups * sizeof *row.sum);
    return row;
}

static void take_memory(struct self_kernels *k, struct region *region, const struct model *m) {
    const size_t wide = (size_t)widest(m) * sizeof(float), latent = (size_t)model_latent_dim(m);
    const size_t many = (size_t)larger(SELF_MANY * SELF_ROWS, SELF_QUERIES * m->kv_lora) * sizeof(float);
    const size_t row = (size_t)larger(m->hidden, SELF_KEYS * model_latent_dim(m)) * sizeof(float);
    const size_t score = (size_t)SELF_QUERIES * KV_PAGE_TOKENS * sizeof(float);
    for (int t = 0; t < SELF_TOKENS; t++) {
        k->x[t] = take(region, wide);
        k->q[t] = take_q8(region, widest(m));
    }
    k->got_q = take_q8(region, widest(m));
    k->got = take(region, many);
    k->want = take(region, many);
    k->got_row = take(region, row);
    k->want_row = take(region, row);
    k->query = take(region, SELF_QUERIES * latent * sizeof(float));
    k->got_score = take(region, score);
    k->want_score = take(region, score);
    k->query16 = take(region, SELF_QUERIES * latent * sizeof(uint16_t));
    k->key16 = take(region, SELF_KEYS * latent * sizeof(uint16_t));
    k->got16 = take(region, SELF_KEYS * latent * sizeof(uint16_t));
    k->cache = take(region, SELF_KEYS * (kv_row_bytes(m, KV_F32) + KV_ROW_ALIGN)); /* no format takes more */
}

size_t selftest_kernels_bytes(const struct model *model) {
    struct self_kernels k;
    struct region region = {0};
    take_memory(&k, &region, model);
    return region.used;
}

int selftest_kernels(const struct selftest *test, const struct kern *kern, struct selftest_report *report,
                     struct mo_error *error) {
    struct self_kernels k = {.test = test, .kern = kern, .report = report, .error = error};
    struct region region = {.base = aligned_alloc(64, selftest_kernels_bytes(test->model))};
    if (!region.base) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the self-test");
    take_memory(&k, &region, test->model);
    kern_init_plain(&k.plain, kern);
    for (int t = 0; t < SELF_TOKENS; t++) self_fill(k.x[t], widest(test->model), (uint64_t)t + 1);
    int code = test_products(&k);
    if (!code) code = self_test_rows(&k);
    free(region.base);
    return code;
}
