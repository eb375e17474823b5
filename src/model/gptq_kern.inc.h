/* model/gptq_kern.inc.h - the loops of gptq_kern.h, once for each level: LEVEL is its name, TARGET the compiler's attribute, WIDTH
 * the bytes of its vectors, which are the compiler's own, so that the text is the same. Only gptq_kern.c includes it. */

#define GLUE2(a, b) a##_##b
#define GLUE(a, b) GLUE2(a, b)
#define NAME(name) GLUE(name, LEVEL)
#define FLOATS NAME(floats)
#define DOUBLES NAME(doubles)
#define MASKS NAME(masks)
#define BYTES NAME(bytes)
#define AT(type, p) (*(type *)(void *)(uintptr_t)(p))
enum { NAME(N_FLOATS) = WIDTH / 4, NAME(N_DOUBLES) = WIDTH / 8 };

typedef float FLOATS __attribute__((vector_size(WIDTH), aligned(4)));
typedef double DOUBLES __attribute__((vector_size(WIDTH), aligned(8)));
typedef int32_t MASKS __attribute__((vector_size(WIDTH), aligned(4)));
typedef int8_t BYTES __attribute__((vector_size(WIDTH / 4), aligned(1)));

/* Four rows by two vectors stay in registers while k runs; as many rows of b as the first cache holds serve all rows of a. */
#define DEFINE_ADD(name, real, vector, lanes)                                                                          \
    TARGET static void name(real *out, size_t out_stride, const real *a, size_t a_stride, const real *b,               \
                            size_t b_stride, int m, int k) {                                                           \
        for (int at = 0; at < k; at += GPTQ_PART, a += GPTQ_PART, b += GPTQ_PART * b_stride) {                         \
            int part = k - at < GPTQ_PART ? k - at : GPTQ_PART;                                                        \
            for (int column = 0; column < GPTQ_BLOCK; column += 2 * lanes) {                                           \
                for (int row = 0; row < m; row += 4) {                                                                 \
                    real *o = out + (size_t)row * out_stride + column;                                                 \
                    const real *x = a + (size_t)row * a_stride, *y = b + column;                                       \
                    vector s0 = {0}, s1 = s0, s2 = s0, s3 = s0, t0 = s0, t1 = s0, t2 = s0, t3 = s0;                    \
                    for (int i = 0; i < part; i++, x++, y += b_stride) {                                               \
                        vector v = AT(vector, y), w = AT(vector, y + lanes);                                           \
                        s0 += v * x[0], t0 += w * x[0];                                                                \
                        s1 += v * x[a_stride], t1 += w * x[a_stride];                                                  \
                        s2 += v * x[2 * a_stride], t2 += w * x[2 * a_stride];                                          \
                        s3 += v * x[3 * a_stride], t3 += w * x[3 * a_stride];                                          \
                    }                                                                                                  \
                    AT(vector, o) += s0, AT(vector, o + lanes) += t0;                                                  \
                    AT(vector, o + out_stride) += s1, AT(vector, o + out_stride + lanes) += t1;                        \
                    AT(vector, o + 2 * out_stride) += s2, AT(vector, o + 2 * out_stride + lanes) += t2;                \
                    AT(vector, o + 3 * out_stride) += s3, AT(vector, o + 3 * out_stride + lanes) += t3;                \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
DEFINE_ADD(NAME(add), float, FLOATS, NAME(N_FLOATS))
DEFINE_ADD(NAME(add_double), double, DOUBLES, NAME(N_DOUBLES))

TARGET static void NAME(column)(const struct gptq_column *c) {
    const FLOATS round = (FLOATS){0} + 0x1.8p23f; /* adding it leaves no fraction */
    const FLOATS low = (FLOATS){0} + c->low, high = (FLOATS){0} + c->high;
    for (int r = 0; r < GPTQ_BLOCK; r += NAME(N_FLOATS)) {
        FLOATS t = AT(FLOATS, c->target + r) * AT(FLOATS, c->inverse + r);
        MASKS is_less = t<high, is_more = t> low;
        t = (FLOATS)(((MASKS)t & is_less) | ((MASKS)high & ~is_less));
        t = (FLOATS)(((MASKS)t & is_more) | ((MASKS)low & ~is_more));
        t = (t + round) - round;
        AT(FLOATS, c->change + r) -= t * AT(FLOATS, c->scale + r);
        AT(BYTES, c->q + r) = __builtin_convertvector(t, BYTES);
    }
}

TARGET static void NAME(add_outer)(float *out, const float *a, size_t a_stride, const float *b, int m) {
    for (int part = 0; part < GPTQ_BLOCK; part += 2 * NAME(N_FLOATS)) {
        FLOATS v = AT(FLOATS, b + part), w = AT(FLOATS, b + part + NAME(N_FLOATS));
        float *o = out + part;
        for (int i = 0; i < m; i++, o += GPTQ_BLOCK) {
            AT(FLOATS, o) += v * a[(size_t)i * a_stride];
            AT(FLOATS, o + NAME(N_FLOATS)) += w * a[(size_t)i * a_stride];
        }
    }
}

static const struct gptq_kern NAME(kern) = {NAME(add), NAME(add_double), NAME(column), NAME(add_outer)};

#undef GLUE2
#undef GLUE
#undef NAME
#undef FLOATS
#undef DOUBLES
#undef MASKS
#undef BYTES
#undef AT
#undef DEFINE_ADD
#undef LEVEL
#undef TARGET
#undef WIDTH
