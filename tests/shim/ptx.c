/* tests/shim/ptx.c - the larger instructions of PTX, after its manual (ptx.h). */
#include "ptx.h"

#include <fenv.h>
#include <stdio.h>

enum { LANES = 32 };

void ptx_refuse(const struct ptx_place *place, int line, const char *what, uint64_t address, size_t bytes) {
    char text[256];
    snprintf(text, sizeof text, "%s, line %d of its PTX: %s: 0x%llx, %zu bytes", place->kernel, line, what,
             (unsigned long long)address, bytes);
    shim_give_up(text);
}

/* --- how global memory is used in a launch --------------------------------------------------------------------------- */

enum { PAGES = 1 << 16, PAGE_WORDS = 1024 };
static struct page {
    uint64_t number;
    int launch; /* what is here of another launch is as good as nothing */
    uint8_t uses[PAGE_WORDS];
} pages[PAGES];

static struct page *page_of(uint64_t number) {
    uint64_t first = number * UINT64_C(0x9e3779b97f4a7c15) >> 48;
    for (uint64_t i = 0; i < PAGES; i++) {
        struct page *page = &pages[(first + i) % PAGES];
        if (page->launch == shim_launches && page->number == number) return page;
        if (page->launch == shim_launches) continue;
        *page = (struct page){.number = number, .launch = shim_launches};
        return page;
    }
    shim_give_up("a launch that uses more memory than there is room to take notes of");
}

void ptx_note(const struct ptx_place *place, int line, uint64_t address, size_t bytes, enum ptx_use use) {
    struct page *page = page_of(address / (4 * PAGE_WORDS));
    for (uint64_t word = address / 4; word <= (address + bytes - 1) / 4; word++) {
        uint8_t *uses = &page->uses[word % PAGE_WORDS];
        *uses |= (uint8_t)use;
        if (*uses == (PTX_CONSTANT | PTX_STORED))
            ptx_refuse(place, line, "written, and read as what nobody writes, in one kernel", address, bytes);
    }
}

/* --- numbers -------------------------------------------------------------------------------------------------------- */

float ptx_fma_down(float a, float b, float c) {
    int mode = fegetround();
    fesetround(FE_DOWNWARD);
    volatile float x = a, y = b, z = c;
    volatile float sum = fmaf(x, y, z);
    fesetround(mode);
    return sum;
}

float ptx_add_to_zero(float a, float b) {
    int mode = fegetround();
    fesetround(FE_TOWARDZERO);
    volatile float x = a, y = b;
    volatile float sum = x + y;
    fesetround(mode);
    return sum;
}

/* What is approximate is off by as much as the manual allows (`ulps`), by chance, but always alike for the same value: nothing may
 * depend on it, and a row must keep its bits in any batch. */
static float off(float exact, float value, int ulps) {
    uint32_t bits = ptx_bits_b32(exact), size = bits & 0x7fffffff;
    uint32_t draw = (ptx_bits_b32(value) * 2654435761u ^ ptx_bits_b32(value) >> 15) * 2246822519u >> 16;
    if (size < 0x00800010 || size > 0x7f7ffff0) return exact;
    return ptx_as_f32(bits + (uint32_t)((int)(draw % (unsigned)(2 * ulps + 1)) - ulps));
}
static float flush(float value) {
    return fabsf(value) < 0x1p-126f ? copysignf(0, value) : value;
}
float ptx_div_approx(float a, float b) {
    if (fabsf(b) > 0x1p126f && fabsf(b) < INFINITY) return isinf(a) ? NAN : copysignf(0, a * b);
    return off(a / b, a + b, 2);
}
float ptx_rcp_approx_ftz(float a) {
    return flush(off(1 / flush(a), a, 1));
}
float ptx_rsqrt_approx(float a) {
    return off(1 / sqrtf(a), a, 1);
}
float ptx_ex2_approx_ftz(float a) {
    if (flush(a) == 0) return 1;
    return flush(off((float)exp2((double)a), a, 2));
}

/* f16: one bit of sign, five of exponent, ten more. */
float ptx_half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 31  ? (fraction ? NAN : INFINITY)
                  : exponent == 0 ? ldexp(fraction, -24)
                                  : ldexp(1024 + fraction, exponent - 25);
    return (float)(bits & 0x8000 ? -size : size);
}

/* `value` and something too small to be seen, of the sign of `rest`, to nearest even. */
static uint32_t round_bf16(double value, double rest) {
    if (value != value) return 0x7fff;
    uint64_t bits = ptx_bits_b64(value);
    if (rest != 0) { /* odd: so that no tie is seen where there is none */
        bits -= bits << 1 != 0 && (rest < 0) != (value < 0);
        bits |= 1;
    }
    double size = fabs(ptx_as_f64(bits));
    int exponent = 0;
    frexp(size, &exponent);
    double unit = ldexp(1, (exponent < -125 ? -125 : exponent) - 8);
    double rounded = nearbyint(size / unit) * unit; /* a power of two: nothing is lost but what is rounded */
    float out = rounded >= 0x1p128 ? INFINITY : (float)rounded;
    return ptx_bits_b32(out) >> 16 | (uint32_t)(bits >> 48 & 0x8000);
}
uint32_t ptx_bf16(float value) {
    return isinf(value) ? ptx_bits_b32(value) >> 16 : round_bf16((double)value, 0);
}

static double bf16_of(uint32_t pair, int half) {
    return (double)ptx_as_f32((half ? pair >> 16 : pair & 0xffff) << 16);
}
/* fma.rn.bf16x2: rounded once. A product is exact in fp64; what its sum loses is found by two more. */
static uint32_t fma_bf16(double a, double b, double c) {
    double product = a * b, sum = product + c;
    if (isinf(sum)) return sum > 0 ? 0x7f80 : 0xff80;
    double back = sum - product, rest = (product - (sum - back)) + (c - back);
    return round_bf16(sum, rest);
}
uint32_t ptx_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t half[2];
    for (int i = 0; i < 2; i++) half[i] = fma_bf16(bf16_of(a, i), bf16_of(b, i), bf16_of(c, i));
    return half[0] | half[1] << 16;
}

/* --- warps and blocks ------------------------------------------------------------------------------------------------ */

/* bar.sync: all threads of a warp execute the same bar.sync. Two places a thread, since one may be at the next barrier already, but
 * at none after it. */
void ptx_barrier(const struct ptx_place *place, int line) {
    static struct { int line[2], n, block; } threads[1024];
    if (threads[shim_thread].block != shim_blocks_begun) { /* the one before may have been left in the middle */
        threads[shim_thread].block = shim_blocks_begun;
        threads[shim_thread].n = 0;
    }
    int first = shim_thread / LANES * LANES, i = threads[shim_thread].n++ % 2;
    threads[shim_thread].line[i] = line;
    shim_barrier();
    if (threads[first].line[i] != line)
        ptx_refuse(place, line, "a warp's threads are at different barriers", (uint64_t)threads[first].line[i], 0);
}

static void meet(const struct ptx_place *place, int line, uint32_t members, struct shim_lane *lane) {
    if (members != 0xffffffff) ptx_refuse(place, line, "an operation of some of a warp's lanes", members, 0);
    lane->place = line;
    shim_warp(SHIM_MEETING, lane);
}

/* .aligned: all lanes execute the same instruction. */
static void meet_aligned(struct shim_lane *const *lane) {
    for (int l = 0; l < LANES; l++) {
        if (lane[l]->place != lane[0]->place) shim_give_up("lanes at different lines of PTX where it says .aligned");
    }
}

static void meet_barrier(struct shim_lane *const *lane) {
    (void)lane;
}
void ptx_warp_barrier(const struct ptx_place *place, int line, uint32_t members) {
    struct shim_lane lane = {.meeting = meet_barrier};
    meet(place, line, members, &lane);
}

/* shfl.sync. a[0]: b, the distance; a[1]: c, the end of a lane's segment, and which bits of its number name that. */
static void meet_shuffle(struct shim_lane *const *lane) {
    uint32_t given[LANES];
    for (int l = 0; l < LANES; l++) given[l] = lane[l]->value;
    for (int l = 0; l < LANES; l++) {
        int b = (int)(lane[l]->a[0] & 31), clamp = (int)(lane[l]->a[1] & 31), segment = (int)(lane[l]->a[1] >> 8 & 31);
        int end = (l & segment) | (clamp & ~segment), from = lane[l]->mask == PTX_UP ? l - b : l ^ b;
        if (lane[l]->mask != lane[0]->mask) shim_give_up("the lanes of a warp shuffle in different ways");
        lane[l]->value = given[(lane[l]->mask == PTX_UP ? from >= end : from <= end) ? from : l];
    }
}
uint32_t ptx_shuffle(const struct ptx_place *place, int line, enum ptx_shuffle mode, uint32_t a, uint32_t b, uint32_t c,
                     uint32_t members) {
    struct shim_lane lane = {.value = a, .a = {b, c}, .mask = (int)mode, .meeting = meet_shuffle};
    meet(place, line, members, &lane);
    return lane.value;
}

/* e4m3: one bit of sign, four of exponent (bias 7), three more; all of them one is the only value that is no number. */
static double e4m3_of(uint32_t word, int i) {
    uint32_t bits = word >> 8 * i & 0xff;
    int exponent = (int)(bits >> 3 & 15), fraction = (int)(bits & 7);
    double size = (bits & 0x7f) == 0x7f ? NAN : exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
    return bits & 0x80 ? -size : size;
}

/* mma, fragments of m16n8k16 (`per` 2) and m16n8k32 (4): of a, value i of `per` in each register lies in row g, or 8 further down in every second register, and the
 * columns of a lane go on `4 * per` further right in the last two; g is the lane's group of four, t its place there. */
static void multiply(struct shim_lane *const *lane, int per, double (*value)(uint32_t, int)) {
    double a[16][32], b[32][8];
    meet_aligned(lane);
    for (int l = 0; l < LANES; l++) {
        int g = l >> 2, t = l % 4;
        for (int i = 0; i < 4 * per; i++) {
            int row = i / per % 2 == 0 ? g : g + 8, col = t * per + i % per + (i >= 2 * per ? 4 * per : 0);
            a[row][col] = value(lane[l]->a[i / per], i % per);
        }
        for (int i = 0; i < 2 * per; i++) {
            int row = t * per + i % per + (i >= per ? 4 * per : 0);
            b[row][g] = value(lane[l]->b[i / per], i % per);
        }
    }
    for (int l = 0; l < LANES; l++) {
        for (int i = 0; i < 4; i++) {
            int row = (l >> 2) + (i < 2 ? 0 : 8), col = l % 4 * 2 + (i & 1);
            double sum = 0; /* in which order is not said, nor how exactly: here exactly, then rounded once */
            for (int k = 0; k < 8 * per; k++) sum += a[row][k] * b[k][col];
            lane[l]->c[i] = (float)(sum + (double)lane[l]->c[i]);
        }
    }
}
static void meet_mma_bf16(struct shim_lane *const *lane) {
    multiply(lane, 2, bf16_of);
}
static void meet_mma_e4m3(struct shim_lane *const *lane) {
    multiply(lane, 4, e4m3_of);
}
static struct shim_lane operands(const uint32_t *a, const uint32_t *b, const float *c) {
    struct shim_lane lane = {.b = {b[0], b[1]}};
    memcpy(lane.a, a, sizeof lane.a);
    memcpy(lane.c, c, sizeof lane.c);
    return lane;
}
void ptx_mma_bf16(const struct ptx_place *place, int line, float *d, const uint32_t *a, const uint32_t *b,
                  const float *c) {
    struct shim_lane lane = operands(a, b, c);
    lane.meeting = meet_mma_bf16;
    meet(place, line, 0xffffffff, &lane);
    memcpy(d, lane.c, sizeof lane.c);
}
void ptx_mma_e4m3(const struct ptx_place *place, int line, float *d, const uint32_t *a, const uint32_t *b,
                  const float *c) {
    struct shim_lane lane = operands(a, b, c);
    lane.meeting = meet_mma_e4m3;
    meet(place, line, 0xffffffff, &lane);
    memcpy(d, lane.c, sizeof lane.c);
}

/* ldmatrix: lanes 8 i to 8 i + 7 give the rows of matrix i; lane l gets values 2 (l % 4) and the next of row l / 4, turned: of
 * column l / 4. The lower value is in the lower half. */
static void meet_ldmatrix(struct shim_lane *const *lane) {
    meet_aligned(lane);
    for (int l = 0; l < LANES; l++) {
        for (int i = 0; i < 4; i++) {
            uint32_t word = 0;
            for (int half = 0; half < 2; half++) {
                int along = 2 * (l % 4) + half, across = l / 4;
                int row = lane[l]->mask ? along : across, col = lane[l]->mask ? across : along;
                uint16_t value;
                memcpy(&value, (const uint8_t *)lane[8 * i + row]->row + 2 * col, sizeof value);
                word |= (uint32_t)value << 16 * half;
            }
            lane[l]->a[i] = word;
        }
    }
}
void ptx_ldmatrix(const struct ptx_place *place, int line, bool turned, uint32_t *r, const void *row) {
    struct shim_lane lane = {.row = row, .mask = turned, .meeting = meet_ldmatrix};
    meet(place, line, 0xffffffff, &lane);
    memcpy(r, lane.a, sizeof lane.a);
}

/* movmatrix: what lane l holds of row l / 4 before, it holds of column l / 4 afterwards. */
static void meet_movmatrix(struct shim_lane *const *lane) {
    uint32_t given[LANES];
    meet_aligned(lane);
    for (int l = 0; l < LANES; l++) given[l] = lane[l]->value;
    for (int l = 0; l < LANES; l++) {
        int row = 2 * (l % 4), col = l / 4; /* of the first of its two new values */
        uint32_t first = given[4 * row + col / 2], second = given[4 * (row + 1) + col / 2];
        lane[l]->value = (first >> 16 * (col % 2) & 0xffff) | (second >> 16 * (col % 2) & 0xffff) << 16;
    }
}
uint32_t ptx_movmatrix(const struct ptx_place *place, int line, uint32_t a) {
    struct shim_lane lane = {.value = a, .meeting = meet_movmatrix};
    meet(place, line, 0xffffffff, &lane);
    return lane.value;
}
