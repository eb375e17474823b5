#include "model/gptq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "model/gptq_priv.h"

/* Added to the diagonal, of what is usual there: directions that the text does not know must not cost nothing. */
static const double DAMPING = 0.01;
/* An input counts for what is usual by so many times that at most: one of 10000 at a few tokens, as large models have them,
 * would make all others look like noise. But what is usual is at least this much of the mean. */
static const double MOST_COUNTED = 64, LEAST_USUAL = 1e-6;
/* Few rows know little: the diagonal as if so many rows more had all inputs alike, and correlations by half where there are as
 * many rows as inputs. */
static const double PRIOR_ROWS = 8;
enum { MOST_TRIES = 16 };

/* The triangle while it is made. */
struct triangle {
    const struct moments *moments;
    struct gptq *gptq;
    double *squares; /* H, then G from the last row of squares on */
    double *turned;  /* [across * GPTQ_BLOCK][GPTQ_BLOCK] minus the row of squares at hand, transposed */
    double *inverse; /* [GPTQ_BLOCK][GPTQ_BLOCK] of its square on the diagonal, transposed */
    double scale, keep;
    int row;
    const struct gptq_kern *kern;
};

size_t gptq_bytes(int cols) {
    return moments_bytes(cols) + (size_t)squares_across(cols) * GPTQ_BLOCK * sizeof(float);
}

static size_t turned_values(int across) {
    return (size_t)across * GPTQ_BLOCK * GPTQ_BLOCK;
}

size_t gptq_open_bytes(int cols) {
    return 2 * moments_bytes(cols) + (turned_values(squares_across(cols)) + GPTQ_BLOCK * GPTQ_BLOCK) * sizeof(double);
}

static const float *moment_row(const struct moments *m, int r) {
    int row = r / GPTQ_BLOCK;
    return m->sums + squares_before(row) + (size_t)(r % GPTQ_BLOCK) * squares_stride(row);
}

static double *triangle_row(const struct triangle *t, int r) {
    int row = r / GPTQ_BLOCK;
    return t->squares + squares_before(row) + (size_t)(r % GPTQ_BLOCK) * squares_stride(row);
}

/* One row of squares of H, usually 1 on the diagonal, damped. */
static void fill_row(void *context, int index, int worker) {
    const struct triangle *t = context;
    double rows = (double)t->moments->rows;
    (void)worker;
    for (int r = index * GPTQ_BLOCK; r < (index + 1) * GPTQ_BLOCK; r++) {
        const float *from = moment_row(t->moments, r);
        double *to = triangle_row(t, r);
        double own = (double)from[r] * t->scale;
        for (size_t i = 0; i < squares_stride(index); i++) to[i] = (double)from[i] * t->scale * t->keep;
        to[r] = r < t->moments->cols ? (own * rows + PRIOR_ROWS) / (rows + PRIOR_ROWS) + DAMPING : 1;
    }
}

/* A = G^T G for the square on the diagonal, in place, and its inverse, transposed. Returns -1 if A is not positive. */
static int factor_square(const struct triangle *t) {
    size_t stride = squares_stride(t->row);
    double *a = t->squares + squares_before(t->row) + (size_t)t->row * GPTQ_BLOCK, *inverse = t->inverse;
    for (int k = GPTQ_BLOCK - 1; k >= 0; k--) {
        double *row = a + (size_t)k * stride;
        if (!(row[k] > 0)) return -1;
        row[k] = sqrt(row[k]);
        for (int i = 0; i < k; i++) row[i] /= row[k];
        for (int j = 0; j < k; j++) {
            for (int i = 0; i <= j; i++) a[(size_t)j * stride + i] -= row[j] * row[i];
        }
    }
    memset(inverse, 0, sizeof(double) * GPTQ_BLOCK * GPTQ_BLOCK);
    for (int c = 0; c < GPTQ_BLOCK; c++) { /* column c of G's inverse, into row c */
        double *x = inverse + (size_t)c * GPTQ_BLOCK;
        for (int r = c; r < GPTQ_BLOCK; r++) {
            double sum = r == c;
            for (int i = c; i < r; i++) sum -= a[(size_t)r * stride + i] * x[i];
            x[r] = sum / a[(size_t)r * stride + r];
        }
    }
    return 0;
}

/* G = inverse^T A for one square to the left of it, and its negative turned. */
static void solve_square(void *context, int index, int worker) {
    const struct triangle *t = context;
    double solved[GPTQ_BLOCK * GPTQ_BLOCK] = {0};
    size_t stride = squares_stride(t->row);
    double *at = t->squares + squares_before(t->row) + (size_t)index * GPTQ_BLOCK;
    double *turned = t->turned + (size_t)index * GPTQ_BLOCK * GPTQ_BLOCK;
    (void)worker;
    t->kern->add_double(solved, GPTQ_BLOCK, t->inverse, GPTQ_BLOCK, at, stride, GPTQ_BLOCK, GPTQ_BLOCK);
    for (size_t k = 0; k < GPTQ_BLOCK; k++) {
        for (size_t i = 0; i < GPTQ_BLOCK; i++) {
            at[k * stride + i] = solved[k * GPTQ_BLOCK + i];
            turned[i * GPTQ_BLOCK + k] = -solved[k * GPTQ_BLOCK + i];
        }
    }
}

/* What the row of squares explains is taken off those above it. */
static void subtract_square(void *context, int index, int worker) {
    const struct triangle *t = context;
    struct square at = square_of(index);
    (void)worker;
    t->kern->add_double(t->squares + squares_before(at.row) + (size_t)at.column * GPTQ_BLOCK, squares_stride(at.row),
                        t->turned + (size_t)at.row * GPTQ_BLOCK * GPTQ_BLOCK, GPTQ_BLOCK,
                        t->squares + squares_before(t->row) + (size_t)at.column * GPTQ_BLOCK, squares_stride(t->row),
                        GPTQ_BLOCK, GPTQ_BLOCK);
}

static void keep_row(void *context, int index, int worker) {
    const struct triangle *t = context;
    struct gptq *g = t->gptq;
    (void)worker;
    for (int r = index * GPTQ_BLOCK; r < (index + 1) * GPTQ_BLOCK; r++) {
        const double *from = triangle_row(t, r);
        float *to = g->feedback + (from - t->squares);
        for (int i = 0; i < (int)squares_stride(index); i++) to[i] = i < r ? (float)(from[i] / from[r]) : 0;
        g->weight[r] = (float)(from[r] * from[r]);
    }
}

/* Returns -1 if H is not positive. */
static int factor(struct triangle *t, struct pool *pool) {
    int across = t->gptq->across;
    squares_run(pool, across, fill_row, t);
    for (t->row = across - 1; t->row >= 0; t->row--) {
        if (factor_square(t)) return -1;
        squares_run(pool, t->row, solve_square, t);
        squares_run(pool, t->row * (t->row + 1) / 2, subtract_square, t);
    }
    squares_run(pool, across, keep_row, t);
    return 0;
}

/* Sums are rounded, so that H of inputs that hardly differ may miss being positive by a little: then they are taken to hang
 * together less. */
static int factor_surely(struct triangle *t, struct pool *pool, struct mo_error *error) {
    for (int i = 0; i < MOST_TRIES; i++, t->keep *= 0.5) {
        if (factor(t, pool) == 0) return 0;
    }
    return mo_error_set(error, MO_E_NUMERIC, "the moments of its inputs are not positive");
}

/* The mean of the diagonal, without zeros and with what is far above it cut. */
static double usual_square(const struct moments *m, double mean) {
    double usual = mean, before;
    do {
        double sum = 0;
        int n = 0;
        for (int r = 0; r < m->cols; r++) {
            double value = (double)moment_row(m, r)[r];
            sum += value < MOST_COUNTED * usual ? value : MOST_COUNTED * usual;
            n += value > 0;
        }
        before = usual;
        usual = sum / n;
    } while (usual < 0.99 * before && usual > LEAST_USUAL * mean);
    return usual > LEAST_USUAL * mean ? usual : LEAST_USUAL * mean;
}

/* Fills in how H is scaled; returns 1 if there is nothing to go by. */
static int measure(struct triangle *t, struct mo_error *error) {
    const struct moments *m = t->moments;
    double sum = 0;
    if (!m->sums || m->rows == 0) return 1;
    for (int r = 0; r < m->cols; r++) sum += (double)moment_row(m, r)[r];
    if (!isfinite(sum)) {
        return mo_error_set(error, MO_E_NUMERIC, "the squares of its inputs add up to something not finite");
    }
    if (!(sum > 0)) return 1;
    t->scale = 1 / usual_square(m, sum / m->cols);
    t->keep = (double)m->rows / ((double)m->rows + m->cols + PRIOR_ROWS);
    return 0;
}

static int allocate(struct triangle *t, struct mo_error *error) {
    struct gptq *g = t->gptq;
    g->cols = t->moments->cols;
    g->across = squares_across(g->cols);
    size_t n = squares_before(g->across);
    g->feedback = malloc(n * sizeof *g->feedback);
    g->weight = malloc((size_t)g->across * GPTQ_BLOCK * sizeof *g->weight);
    t->squares = malloc(n * sizeof *t->squares);
    t->turned = malloc(turned_values(g->across) * sizeof *t->turned);
    t->inverse = malloc(GPTQ_BLOCK * GPTQ_BLOCK * sizeof *t->inverse);
    if (g->feedback && g->weight && t->squares && t->turned && t->inverse) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the moments of %d inputs, which take %.3f GB", g->cols,
                        (double)(gptq_bytes(g->cols) + gptq_open_bytes(g->cols)) * 1e-9);
}

int gptq_open(struct gptq **out, const struct moments *moments, struct pool *pool, struct mo_error *error) {
    struct triangle t = {.moments = moments, .kern = gptq_kern_get()};
    *out = NULL;
    int code = measure(&t, error);
    if (code) return code < 0 ? code : 0;
    t.gptq = calloc(1, sizeof *t.gptq);
    code = t.gptq ? allocate(&t, error) : mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    if (!code) code = factor_surely(&t, pool, error);
    free(t.squares);
    free(t.turned);
    free(t.inverse);
    if (code) {
        gptq_close(t.gptq);
        return code;
    }
    *out = t.gptq;
    return 0;
}

void gptq_close(struct gptq *g) {
    if (!g) return;
    free(g->feedback);
    free(g->weight);
    free(g);
}
