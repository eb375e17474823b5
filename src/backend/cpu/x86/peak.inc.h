/* backend/cpu/x86/peak.inc.h - the most operations that the level's 8-bit dot product can do: registers only, enough of
 * them in flight to hide its latency. `bench` gives prefill as a share of it. Included after the vector words. */

enum { PEAK_SUMS = 12 };

/* Operations done (a product and a sum are two). */
static double int8_peak(int rounds) {
    ivec sum[PEAK_SUMS], values = ivec_set1(0x01020304), x4 = ivec_set1(0x05060708);
    UNROLL
    for (int i = 0; i < PEAK_SUMS; i++) sum[i] = ivec_zero();
    for (int round = 0; round < rounds; round++) {
        __asm__ volatile("" : "+v"(values)); /* or the compiler would do one round and multiply */
        UNROLL
        for (int i = 0; i < PEAK_SUMS; i++) sum[i] = block_dot(MAT_INT4, sum[i], values, x4);
    }
    UNROLL
    for (int i = 0; i < PEAK_SUMS; i++) __asm__ volatile("" : "+v"(sum[i]));
    return 2.0 * 4 * VL * PEAK_SUMS * rounds;
}
