/* backend/cpu/x86/index.inc.h - the indexer's sum over heads (V3.2); included by each level after its vector words. */

enum { RELU_VECS = 4 };

/* `vecs` registers of columns from t on, of which `left` exist. NaN and -0 stay: vec_max returns its second operand then. */
INLINE void relu_columns(const float *w, const float *s, size_t s_stride, int heads, int vecs, int left, float *out) {
    vec sum[RELU_VECS];
    UNROLL
    for (int v = 0; v < vecs; v++) sum[v] = vec_zero();
    for (int h = 0; h < heads; h++) {
        const vec weight = vec_set1(w[h]);
        const float *row = s + (size_t)h * s_stride;
        UNROLL
        for (int v = 0; v < vecs; v++) {
            vec score = vecs == 1 ? vec_load_part(row, left) : vec_load(row + v * VL);
            sum[v] = vec_fma(weight, vec_max(vec_zero(), score), sum[v]);
        }
    }
    if (vecs == 1) {
        vec_store_part(out, sum[0], left);
        return;
    }
    UNROLL
    for (int v = 0; v < vecs; v++) vec_store(out + v * VL, sum[v]);
}

static void relu_sum(const float *w, const float *s, size_t s_stride, int heads, int n, float *out) {
    int t = 0;
    for (; t + RELU_VECS * VL <= n; t += RELU_VECS * VL) relu_columns(w, s + t, s_stride, heads, RELU_VECS, 0, out + t);
    for (; t < n; t += VL) relu_columns(w, s + t, s_stride, heads, 1, n - t < VL ? n - t : VL, out + t);
}
