#include "model/encode.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include "model/encode_search.h"

/* Candidates for k in scale = largest value / k. Clipping the largest a little can pay, and so can leaving a step unused; with
 * four bits the negative side reaches one further, so both signs of the scale are tried. */
struct search {
    float low, high; /* of q */
    float from, step;
    int steps;
};
static const struct search search_int4_low = {-8, 7, 6.8f, 0.2f, 17};
static const struct search search_int4_high = {-8, 7, 6.2f, 0.2f, 13};
static const struct search search_int8 = {-127, 127, 125.0f, 0.4f, 7};
enum { E4M3_STEPS = 8, REFINEMENTS = 2, MAX_GROUP = 128 };
static const float E4M3_MAX = 448, F16_MAX = 65504, ROUND = 0x1.8p23f; /* adding ROUND leaves no fraction */

/* What a unit works in, for `pitch` columns (padded to blocks). */
struct workspace {
    float *rows;     /* [MAKE_ROWS][pitch], the weights; 0 past the matrix */
    float *w;        /* [pitch] importance */
    int8_t *q;       /* [BLOCK_ROWS][pitch] */
    uint16_t *scale; /* [BLOCK_ROWS][pitch / group] */
    size_t pitch;
    const struct encode_kern *kern;
};

static size_t pitch_of(int cols) {
    return ((size_t)cols + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
}

size_t encode_scratch_bytes(int cols) {
    size_t pitch = pitch_of(cols);
    return pitch * (MAKE_ROWS + 1) * sizeof(float) + pitch * BLOCK_ROWS + pitch / 32 * BLOCK_ROWS * sizeof(uint16_t);
}

static struct workspace lay_out(void *scratch, int cols) {
    struct workspace s = {.pitch = pitch_of(cols), .rows = scratch, .kern = encode_kern_get()};
    s.w = s.rows + s.pitch * MAKE_ROWS;
    s.q = (int8_t *)(s.w + s.pitch);
    s.scale = (uint16_t *)(void *)(s.q + s.pitch * BLOCK_ROWS);
    return s;
}

/* Decodes `n` rows from r0 on; the rest of the unit is 0. Returns the first row that is not finite, or -1. */
static int load_rows(const struct workspace *s, const struct mat *from, int r0, int n) {
    size_t cols = (size_t)from->cols;
    for (int r = 0; r < MAKE_ROWS; r++) {
        float *row = s->rows + (size_t)r * s->pitch;
        size_t known = r < n ? cols : 0;
        if (r < n) format_decode_rows(from, r0 + r, r0 + r + 1, row);
        memset(row + known, 0, (s->pitch - known) * sizeof *row);
        float nothing = 0; /* NaN as soon as a value is not finite */
        for (size_t k = 0; k < known; k++) nothing += row[k] * 0;
        if (nothing != 0) return r0 + r;
    }
    return -1;
}

static void load_importance(const struct workspace *s, const float *importance, int cols) {
    for (size_t k = 0; k < s->pitch; k++) s->w[k] = importance && k < (size_t)cols ? importance[k] : 1;
}

/* ---- INT4, INT8 ---- */

/* One group: what has been found so far. */
struct group {
    const struct encode_kern *kern;
    const float *x, *w;
    int n;
    float wx[MAX_GROUP];
    float largest;      /* the value farthest from 0, with its sign */
    float score, scale; /* of the best candidate: sum_xq^2 / sum_qq, and its best scale */
};

static float largest_of(const float *x, int n) {
    float largest = 0;
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    }
    return largest;
}

/* For given q, the best scale is sum(w x q) / sum(w q q), and it takes sum(w x q)^2 / sum(w q q) off the error. */
static void try_scales(struct group *g, const struct search *search, float sign) {
    for (int i = 0; i < search->steps; i++) {
        float inverse = sign * (search->from + search->step * (float)i) / g->largest, xq, qq;
        g->kern->integer(g->x, g->wx, g->w, g->n, inverse, search->low, search->high, &xq, &qq);
        if (!(qq > 0) || !(xq * xq / qq > g->score)) continue;
        g->score = xq * xq / qq;
        g->scale = xq / qq;
    }
}

/* As fp16 stores it; 0 stays possible, infinity does not. */
static float storable(float scale) {
    if (scale > F16_MAX) return F16_MAX;
    if (scale < -F16_MAX) return -F16_MAX;
    return f16_to_f32(f32_to_f16(scale));
}

/* With the stored scale the best q are others, and for these another scale is best: a few rounds. */
static float refine(const struct group *g, const struct search *search) {
    float best = 0, best_gain = 0, scale = g->scale;
    for (int i = 0; i <= REFINEMENTS; i++) {
        float stored = storable(scale), xq, qq;
        if (stored == 0 || isinf(1 / stored)) break;
        g->kern->integer(g->x, g->wx, g->w, g->n, 1 / stored, search->low, search->high, &xq, &qq);
        float gain = stored * (2 * xq - stored * qq); /* what it takes off the error */
        if (gain > best_gain) {
            best_gain = gain;
            best = stored;
        }
        if (!(qq > 0)) break;
        scale = xq / qq;
    }
    return best;
}

static void store_group(const struct group *g, const struct search *search, float scale, int8_t *q,
                        struct make_error *sum) {
    float inverse = scale == 0 ? 0 : 1 / scale, error = 0, total = 0;
    for (int i = 0; i < g->n; i++) {
        float t = g->x[i] * inverse;
        t = t < search->high ? t : search->high;
        t = t > search->low ? t : search->low;
        float value = (t + ROUND) - ROUND, d = g->x[i] - value * scale;
        q[i] = (int8_t)value;
        error += d * d;
        total += g->x[i] * g->x[i];
    }
    sum->error += (double)error;
    sum->total += (double)total;
}

static float find_scale(struct group *g, bool is_int4) {
    const struct search *low = is_int4 ? &search_int4_low : &search_int8;
    g->largest = largest_of(g->x, g->n);
    g->score = g->scale = 0;
    if (g->largest == 0) return 0;
    for (int i = 0; i < g->n; i++) g->wx[i] = g->w[i] * g->x[i];
    try_scales(g, low, is_int4 ? -1 : 1);
    if (is_int4) try_scales(g, &search_int4_high, 1);
    return refine(g, low);
}

float encode_scale(const struct encode_kern *kern, const float *x, const float *importance, int n, bool is_int4) {
    struct group g = {.kern = kern, .x = x, .w = importance, .n = n};
    return find_scale(&g, is_int4);
}

static void encode_group(struct group *g, bool is_int4, int8_t *q, uint16_t *scale, struct make_error *sum) {
    float found = find_scale(g, is_int4);
    *scale = f32_to_f16(found);
    store_group(g, is_int4 ? &search_int4_low : &search_int8, found, q, sum);
}

static void encode_panel(const struct workspace *s, const struct mat *to, int first_row, void *panel,
                         struct make_error *sum) {
    size_t groups = s->pitch / (size_t)to->group_size;
    struct group g = {.kern = s->kern, .n = to->group_size};
    for (int r = 0; r < BLOCK_ROWS; r++) {
        for (size_t i = 0; i < groups; i++) {
            size_t k = i * (size_t)to->group_size;
            g.x = s->rows + (size_t)(first_row + r) * s->pitch + k;
            g.w = s->w + k;
            encode_group(&g, to->format == MAT_INT4, s->q + (size_t)r * s->pitch + k, s->scale + (size_t)r * groups + i,
                         sum);
        }
    }
    block_pack_panel(to, s->q, s->scale, panel);
}

static void encode_panels(const struct workspace *s, const struct mat *to, int r0, int n, struct make_error *sum) {
    size_t panel_bytes = block_panel_bytes(to);
    for (int r = 0; r < n; r += BLOCK_ROWS) {
        uint8_t *panel = (uint8_t *)(uintptr_t)to->data + (size_t)((r0 + r) / BLOCK_ROWS) * panel_bytes;
        encode_panel(s, to, r, panel, sum);
    }
}

/* ---- FP8 ---- */

/* `size` rows and columns that have one scale, from (r0, k0) on; past the matrix they are 0 and cost nothing. */
static float find_fp8_scale(const struct workspace *s, int r0, size_t k0, int size) {
    float largest = 0, best = 1;
    double best_error = INFINITY;
    for (int r = r0; r < r0 + size; r++) {
        float value = fabsf(largest_of(s->rows + (size_t)r * s->pitch + k0, size));
        if (value > largest) largest = value;
    }
    if (largest / E4M3_MAX < 0x1p-126f) return 1; /* nothing there that fp32 could divide by */
    for (int i = 0; i < E4M3_STEPS; i++) {
        float scale = largest / E4M3_MAX * exp2f((float)i / E4M3_STEPS), inverse = 1 / scale;
        double error = 0;
        for (int r = r0; r < r0 + size; r++) {
            error += (double)s->kern->e4m3(s->rows + (size_t)r * s->pitch + k0, s->w + k0, size, inverse);
        }
        error *= (double)scale * (double)scale;
        if (error >= best_error) continue;
        best_error = error;
        best = scale;
    }
    return best;
}

/* Columns [k0, end) of some rows; `out` is where the first of them begins. */
static void store_fp8(const float *rows, size_t pitch, int n, size_t k0, size_t end, float scale, const struct mat *to,
                      uint8_t *out, struct make_error *sum) {
    const float inverse = 1 / scale;
    for (int r = 0; r < n; r++) {
        const float *row = rows + (size_t)r * pitch;
        float error = 0, total = 0;
        for (size_t k = k0; k < end; k++) {
            uint8_t code = f32_to_e4m3(row[k] * inverse);
            float d = row[k] - e4m3_to_f32(code) * scale;
            out[(size_t)r * (size_t)to->cols + k] = code;
            error += d * d;
            total += row[k] * row[k];
        }
        sum->error += (double)error;
        sum->total += (double)total;
    }
}

/* Rows [r, r + scale_rows) of the unit, which begins at row r0 of the matrix; n of them are there. */
static void encode_fp8_blocks(const struct workspace *s, const struct mat *to, int r0, int r, int n,
                              struct make_error *sum) {
    uint8_t *out = (uint8_t *)(uintptr_t)to->data + (size_t)(r0 + r) * (size_t)to->cols;
    float *scales = (float *)(uintptr_t)to->scale + (size_t)((r0 + r) / to->scale_rows) * (size_t)to->scale_stride;
    for (int block = 0; block < to->scale_stride; block++) {
        size_t k0 = (size_t)(block * to->scale_cols), end = k0 + (size_t)to->scale_cols;
        if (end > (size_t)to->cols) end = (size_t)to->cols;
        scales[block] = find_fp8_scale(s, r, k0, to->scale_cols);
        store_fp8(s->rows + (size_t)r * s->pitch, s->pitch, n, k0, end, scales[block], to, out, sum);
    }
}

static void encode_fp8(const struct workspace *s, const struct mat *to, int r0, int n, struct make_error *sum) {
    assert(to->scale_rows == to->scale_cols && MAKE_ROWS % to->scale_rows == 0);
    for (int r = 0; r < n; r += to->scale_rows)
        encode_fp8_blocks(s, to, r0, r, n - r < to->scale_rows ? n - r : to->scale_rows, sum);
}

/* ---- FP4 ---- */

/* With the scale 2^exponent: what is lost of 32 values, each counting w. In double: a square may be too small, or too large, for a
 * float, and all scales would look alike. */
static double fp4_error(const float *x, const float *w, int exponent) {
    const float scale = ldexpf(1, exponent), inverse = ldexpf(1, -exponent);
    double error = 0;
    for (int i = 0; i < FP4_GROUP; i++) {
        const double d = (double)(x[i] - (float)gguf_mxfp4_values[f32_to_e2m1(x[i] * inverse)] * 0.5f * scale);
        error += (double)w[i] * d * d;
    }
    return error;
}

/* The power of two with which the largest value is not cut off, or the ones beside it. As fp32 has them with their inverses. */
static int find_fp4_exponent(const float *x, const float *w) {
    const float largest = fabsf(largest_of(x, FP4_GROUP));
    double best_error = INFINITY;
    int best = 0, first;
    if (largest == 0) return 0;
    frexpf(largest / 6, &first); /* largest / 6 < 2^first */
    for (int exponent = first - 1; exponent <= first + 1; exponent++) {
        const int kept = exponent < -125 ? -125 : exponent > 125 ? 125 : exponent;
        const double error = fp4_error(x, w, kept);
        if (error >= best_error) continue;
        best_error = error;
        best = kept;
    }
    return best;
}

static void encode_fp4(const struct workspace *s, const struct mat *to, int r0, int n, struct make_error *sum) {
    static const float ones[FP4_GROUP] = {[0 ... FP4_GROUP - 1] = 1};
    for (int r = 0; r < n; r++) {
        uint8_t *out = (uint8_t *)(uintptr_t)fp4_row_at(to, r0 + r);
        uint8_t *scales = (uint8_t *)(uintptr_t)fp4_scales_at(to, r0 + r);
        for (int k = 0; k < to->cols; k += FP4_GROUP) {
            const float *x = s->rows + (size_t)r * s->pitch + k;
            const int exponent = find_fp4_exponent(x, s->w + k);
            const float inverse = ldexpf(1, -exponent);
            scales[k / FP4_GROUP] = (uint8_t)(exponent + 127);
            for (int i = 0; i < FP4_GROUP; i += 2)
                out[(k + i) / 2] = (uint8_t)(f32_to_e2m1(x[i] * inverse) | f32_to_e2m1(x[i + 1] * inverse) << 4);
            sum->error += fp4_error(x, ones, exponent);
            for (int i = 0; i < FP4_GROUP; i++) sum->total += (double)x[i] * (double)x[i];
        }
    }
}

/* ---- BF16 ---- */

static void encode_bf16(const struct workspace *s, const struct mat *to, int r0, int n, struct make_error *sum) {
    uint16_t *out = (uint16_t *)(uintptr_t)to->data + (size_t)r0 * (size_t)to->cols;
    for (int r = 0; r < n; r++) {
        const float *row = s->rows + (size_t)r * s->pitch;
        double error = 0, total = 0;
        for (size_t k = 0; k < (size_t)to->cols; k++) {
            uint16_t bits = f32_to_bf16(row[k]);
            double d = (double)row[k] - (double)bf16_to_f32(bits);
            out[(size_t)r * (size_t)to->cols + k] = bits;
            error += d * d;
            total += (double)row[k] * (double)row[k];
        }
        sum->error += error;
        sum->total += total;
    }
}

/* What is INT8 already keeps its integers. What its scales lose is not searched for. */
static void take_int8(const struct mat *from, const struct mat *to, int r0, int n, struct make_error *sum) {
    struct mat as_wanted = *from;
    as_wanted.group_size = to->group_size;
    for (int r = r0; r < r0 + n; r += BLOCK_ROWS) {
        uint8_t *panel = (uint8_t *)(uintptr_t)to->data + (size_t)(r / BLOCK_ROWS) * block_panel_bytes(to);
        mat_turn_panel(&as_wanted, r / BLOCK_ROWS, panel);
    }
    for (int r = r0; r < r0 + n; r++)
        for (int k = 0; k < to->cols; k++) {
            const float *scales = from->scale + (size_t)(r / from->scale_rows) * (size_t)from->scale_stride;
            const double scale = (double)scales[k / from->scale_cols],
                         lost = scale - (double)f16_to_f32(f32_to_f16((float)scale));
            const double q = ((const int8_t *)from->data)[(size_t)r * (size_t)from->cols + (size_t)k];
            sum->error += q * q * lost * lost;
            sum->total += q * q * scale * scale;
        }
}

int encode_rows(const struct mat *from, const struct mat *to, const float *importance, int unit, void *scratch,
                struct make_error *sum) {
    int r0 = unit * MAKE_ROWS, n = to->rows - r0 < MAKE_ROWS ? to->rows - r0 : MAKE_ROWS;
    if (from->format == MAT_INT8_ROWS && to->format == MAT_INT8) {
        take_int8(from, to, r0, n, sum);
        return -1;
    }
    struct workspace s = lay_out(scratch, to->cols);
    int bad = load_rows(&s, from, r0, n);
    if (bad >= 0) return bad;
    load_importance(&s, importance, to->cols);
    if (to->format == MAT_FP8) {
        encode_fp8(&s, to, r0, n, sum);
    } else if (to->format == MAT_FP4) {
        encode_fp4(&s, to, r0, n, sum);
    } else if (to->format == MAT_BF16) {
        encode_bf16(&s, to, r0, n, sum);
    } else {
        assert(mat_is_integer(to->format));
        encode_panels(&s, to, r0, n, sum);
    }
    return -1;
}
