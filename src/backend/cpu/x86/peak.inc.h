/* backend/cpu/x86/peak.inc.h - what the level's instructions can do at most, for `bench` to give shares of: products in
 * registers, enough of them in flight to hide their latency, and reading memory in order. Included after the vector
 * words. */

enum { PEAK_SUMS = 12, READ_AHEAD_BYTES = 1024 };

/* What the compiler knows of the sums ends here: equal ones would be computed once, and unused ones not at all. */
#define HIDE(SUM)                                                                                                      \
    UNROLL                                                                                                             \
    for (int i = 0; i < PEAK_SUMS; i++) __asm__ volatile("" : "+v"(SUM[i]));

/* Operations done (a product and a sum are two). */
static double int8_peak(int rounds) {
    ivec sum[PEAK_SUMS], values = ivec_set1(0x01020304), x4 = ivec_set1(0x05060708);
    UNROLL
    for (int i = 0; i < PEAK_SUMS; i++) sum[i] = ivec_zero();
    HIDE(sum)
    for (int round = 0; round < rounds; round++) {
        __asm__ volatile("" : "+v"(values)); /* or the compiler would do one round and multiply */
        UNROLL
        for (int i = 0; i < PEAK_SUMS; i++) sum[i] = block_dot(MAT_INT4, sum[i], values, x4);
    }
    HIDE(sum)
    return 2.0 * 4 * VL * PEAK_SUMS * rounds;
}

/* The same for a word that adds PRODUCTS products to sum[i]: the whole of such a function. */
#define FLOAT_PEAK(PRODUCTS, WORD)                                                                                     \
    vec sum[PEAK_SUMS], a = vec_set1(1e-9f);                                                                           \
    UNROLL                                                                                                             \
    for (int i = 0; i < PEAK_SUMS; i++) sum[i] = vec_zero();                                                           \
    HIDE(sum)                                                                                                          \
    for (int round = 0; round < rounds; round++) {                                                                     \
        __asm__ volatile("" : "+v"(a));                                                                                \
        UNROLL                                                                                                         \
        for (int i = 0; i < PEAK_SUMS; i++) sum[i] = WORD;                                                             \
    }                                                                                                                  \
    HIDE(sum)                                                                                                          \
    return 2.0 * (PRODUCTS)*PEAK_SUMS * rounds;

static double f32_peak(int rounds) {
    FLOAT_PEAK(VL, vec_fma(a, a, sum[i]))
}

static uint64_t read_streams(const char *p, size_t stream_bytes) {
    ivec sum[READ_STREAMS];
    uint64_t words[VL / 2], total = 0;
    UNROLL
    for (int s = 0; s < READ_STREAMS; s++) sum[s] = ivec_zero();
    for (size_t at = 0; at < stream_bytes; at += 64) {
        UNROLL
        for (size_t s = 0; s < READ_STREAMS; s++) {
            const char *line = p + stream_bytes * s + at;
            ask_for(line + READ_AHEAD_BYTES);
            UNROLL
            for (int i = 0; i < 64; i += 4 * VL) sum[s] = ivec_add(sum[s], ivec_load(line + i));
        }
    }
    UNROLL
    for (int s = 1; s < READ_STREAMS; s++) sum[0] = ivec_add(sum[0], sum[s]);
    ivec_store(words, sum[0]);
    for (int i = 0; i < VL / 2; i++) total += words[i];
    return total;
}
