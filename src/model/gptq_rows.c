#include <assert.h>
#include <string.h>
#include "model/encode.h"
#include "model/encode_search.h"
#include "model/gptq_priv.h"

/* What a unit works in: MAKE_ROWS rows, turned, so that a row is a lane. */
struct unit {
    float *change;                /* [pitch][MAKE_ROWS] the weights, then what each has lost */
    float *target;                /* [GPTQ_BLOCK][MAKE_ROWS] what is rounded, of the block at hand */
    float *scale, *inverse, *row; /* [MAKE_ROWS], [MAKE_ROWS], [pitch] */
    int8_t *turned;               /* [GPTQ_BLOCK][MAKE_ROWS] q of the block */
    int8_t *q;                    /* [MAKE_ROWS][pitch] */
    uint16_t *scales;             /* [MAKE_ROWS][pitch / group] */
    size_t pitch;
    const struct gptq *gptq;
    const struct gptq_kern *kern;
    const struct encode_kern *search;
    const struct mat *to;
    int n; /* rows that there are */
};
_Static_assert((int)MAKE_ROWS == (int)GPTQ_BLOCK, "a unit is a square high");
enum { SMALLEST_GROUP = 32 };

static size_t pitch_of(int cols) {
    return (size_t)squares_across(cols) * GPTQ_BLOCK;
}

size_t gptq_scratch_bytes(int cols) {
    size_t pitch = pitch_of(cols);
    return (pitch * MAKE_ROWS + GPTQ_BLOCK * MAKE_ROWS + 2 * MAKE_ROWS + pitch) * sizeof(float) +
           GPTQ_BLOCK * MAKE_ROWS + pitch * MAKE_ROWS + pitch / SMALLEST_GROUP * MAKE_ROWS * sizeof(uint16_t);
}

static void lay_out(struct unit *u, void *scratch) {
    size_t pitch = u->pitch = pitch_of(u->to->cols);
    u->change = scratch;
    u->target = u->change + pitch * MAKE_ROWS;
    u->scale = u->target + GPTQ_BLOCK * MAKE_ROWS;
    u->inverse = u->scale + MAKE_ROWS;
    u->row = u->inverse + MAKE_ROWS;
    u->scales = (uint16_t *)(void *)(u->row + pitch);
    u->turned = (int8_t *)(u->scales + pitch / SMALLEST_GROUP * MAKE_ROWS);
    u->q = u->turned + GPTQ_BLOCK * MAKE_ROWS;
}

/* Decodes the rows from r0 on; what is past the matrix is 0. Returns the first row that is not finite, or -1. */
static int load(const struct unit *u, const struct mat *from, int r0, struct make_error *sum) {
    size_t cols = (size_t)from->cols;
    memset(u->change, 0, u->pitch * MAKE_ROWS * sizeof *u->change);
    for (int r = 0; r < u->n; r++) {
        float nothing = 0, total = 0; /* NaN as soon as a value is not finite */
        format_decode_rows(from, r0 + r, r0 + r + 1, u->row);
        for (size_t k = 0; k < cols; k++) {
            nothing += u->row[k] * 0;
            total += u->row[k] * u->row[k];
            u->change[k * MAKE_ROWS + (size_t)r] = u->row[k];
        }
        if (nothing != 0) return r0 + r;
        sum->total += (double)total;
    }
    return -1;
}

/* The scales of the group that begins at column `first` of the block from column k0 on. */
static void find_scales(const struct unit *u, size_t k0, size_t first) {
    size_t n = (size_t)u->to->group_size, groups = u->pitch / n;
    float x[GPTQ_BLOCK];
    memset(u->scale, 0, MAKE_ROWS * sizeof *u->scale);
    memset(u->inverse, 0, MAKE_ROWS * sizeof *u->inverse);
    for (int r = 0; r < MAKE_ROWS; r++) {
        for (size_t i = 0; i < n; i++) x[i] = u->target[(first + i) * MAKE_ROWS + (size_t)r];
        const float *weight = u->gptq->weight + k0 + first;
        float scale = r < u->n ? encode_scale(u->search, x, weight, (int)n, u->to->format == MAT_INT4) : 0;
        u->scale[r] = scale;
        u->inverse[r] = scale == 0 ? 0 : 1 / scale;
        u->scales[(size_t)r * groups + (k0 + first) / n] = f32_to_f16(scale);
    }
}

/* One block: its columns in order, each of which changes what the others are to be. */
static void round_block(const struct unit *u, int block) {
    size_t k0 = (size_t)block * GPTQ_BLOCK, stride = squares_stride(block), pitch = u->pitch;
    const float *feedback = u->gptq->feedback + squares_before(block);
    bool is_int4 = u->to->format == MAT_INT4;
    memcpy(u->target, u->change + k0 * MAKE_ROWS, GPTQ_BLOCK * MAKE_ROWS * sizeof *u->target);
    u->kern->add(u->target, MAKE_ROWS, feedback, stride, u->change, MAKE_ROWS, GPTQ_BLOCK, (int)k0);
    for (size_t j = 0; j < GPTQ_BLOCK; j++) {
        if (j % (size_t)u->to->group_size == 0) find_scales(u, k0, j);
        float *change = u->change + (k0 + j) * MAKE_ROWS, *rest = u->target + (j + 1) * MAKE_ROWS;
        u->kern->column(&(struct gptq_column){.target = u->target + j * MAKE_ROWS,
                                              .scale = u->scale,
                                              .inverse = u->inverse,
                                              .low = is_int4 ? -8 : -127,
                                              .high = is_int4 ? 7 : 127,
                                              .change = change,
                                              .q = u->turned + j * MAKE_ROWS});
        u->kern->add_outer(rest, feedback + (j + 1) * stride + k0 + j, stride, change, (int)(GPTQ_BLOCK - 1 - j));
    }
    for (size_t r = 0; r < MAKE_ROWS; r++) {
        for (size_t j = 0; j < GPTQ_BLOCK; j++) u->q[r * pitch + k0 + j] = u->turned[j * MAKE_ROWS + r];
    }
}

static void pack(const struct unit *u, int r0) {
    size_t groups = u->pitch / (size_t)u->to->group_size, panel_bytes = block_panel_bytes(u->to);
    for (int r = 0; r < u->n; r += BLOCK_ROWS) {
        uint8_t *panel = (uint8_t *)(uintptr_t)u->to->data + (size_t)((r0 + r) / BLOCK_ROWS) * panel_bytes;
        block_pack_panel(u->to, u->q + (size_t)r * u->pitch, u->scales + (size_t)r * groups, panel);
    }
}

int gptq_rows(const struct mat *from, const struct mat *to, const struct gptq *gptq, int unit, void *scratch,
              struct make_error *sum) {
    int r0 = unit * MAKE_ROWS, n = to->rows - r0 < MAKE_ROWS ? to->rows - r0 : MAKE_ROWS;
    struct unit u = {.gptq = gptq, .kern = gptq_kern_get(), .search = encode_kern_get(), .to = to, .n = n};
    assert(mat_is_integer(to->format) && gptq->cols == to->cols);
    lay_out(&u, scratch);
    int bad = load(&u, from, r0, sum);
    if (bad >= 0) return bad;
    for (int block = 0; block < gptq->across; block++) round_block(&u, block);
    pack(&u, r0);
    for (size_t k = 0; k < u.pitch; k++) { /* lanes past the matrix hold nothing */
        float error = 0;
        for (int r = 0; r < n; r++) error += u.change[k * MAKE_ROWS + (size_t)r] * u.change[k * MAKE_ROWS + (size_t)r];
        sum->error += (double)error;
    }
    return -1;
}
