#include "model/moments.h"

#include <stdlib.h>
#include "model/gptq_kern.h"

enum { WORTH_THREADS = 12 };

int squares_across(int cols) {
    return (cols + GPTQ_BLOCK - 1) / GPTQ_BLOCK;
}

size_t squares_before(int row) {
    return (size_t)row * (size_t)(row + 1) / 2 * GPTQ_BLOCK * GPTQ_BLOCK;
}

size_t squares_stride(int row) {
    return (size_t)(row + 1) * GPTQ_BLOCK;
}

struct square square_of(int index) {
    int row = 0;
    while (index > row) index -= ++row;
    return (struct square){row, index};
}

void squares_run(struct pool *pool, int n, pool_task *task, void *context) {
    if (n >= WORTH_THREADS) {
        pool_run(pool, n, task, context);
        return;
    }
    for (int i = 0; i < n; i++) task(context, i, 0);
}

size_t moments_bytes(int cols) {
    return squares_before(squares_across(cols)) * sizeof(float);
}

/* Some rows of inputs, as they are and turned, so that both factors of the product lie well. */
struct piece {
    struct moments *moments;
    const float *const *x;
    float *rows;   /* [n][pitch] */
    float *turned; /* [pitch][GPTQ_BLOCK] */
    size_t pitch;
    int n;
    const struct gptq_kern *kern;
};

static void copy_columns(void *context, int index, int worker) {
    const struct piece *p = context;
    (void)worker;
    for (int c = index * GPTQ_BLOCK; c < (index + 1) * GPTQ_BLOCK; c++) {
        for (int i = 0; i < p->n; i++) {
            float value = c < p->moments->cols ? p->x[i][c] : 0;
            p->rows[(size_t)i * p->pitch + (size_t)c] = value;
            p->turned[(size_t)c * GPTQ_BLOCK + (size_t)i] = value;
        }
    }
}

static void add_square(void *context, int index, int worker) {
    const struct piece *p = context;
    struct square at = square_of(index);
    (void)worker;
    float *out = p->moments->sums + squares_before(at.row) + (size_t)at.column * GPTQ_BLOCK;
    p->kern->add(out, squares_stride(at.row), p->turned + (size_t)at.row * GPTQ_BLOCK * GPTQ_BLOCK, GPTQ_BLOCK,
                 p->rows + (size_t)at.column * GPTQ_BLOCK, p->pitch, GPTQ_BLOCK, p->n);
}

int moments_add(struct moments *m, const float *const *x, int n, struct pool *pool, struct mo_error *error) {
    int across = squares_across(m->cols);
    struct piece p = {.moments = m, .pitch = (size_t)across * GPTQ_BLOCK, .kern = gptq_kern_get()};
    if (!m->sums) m->sums = calloc(1, moments_bytes(m->cols));
    p.rows = malloc(p.pitch * GPTQ_BLOCK * sizeof *p.rows);
    p.turned = malloc(p.pitch * GPTQ_BLOCK * sizeof *p.turned);
    int code = 0;
    if (!m->sums || !p.rows || !p.turned) {
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for the moments of %d inputs", m->cols);
    }
    for (int at = 0; at < n && !code; at += p.n) {
        p.x = x + at;
        p.n = n - at < GPTQ_BLOCK ? n - at : GPTQ_BLOCK;
        squares_run(pool, across, copy_columns, &p);
        squares_run(pool, across * (across + 1) / 2, add_square, &p);
    }
    m->rows += code ? 0 : n;
    free(p.rows);
    free(p.turned);
    return code;
}

void moments_free(struct moments *m) {
    free(m->sums);
    m->sums = NULL;
    m->rows = 0;
}
