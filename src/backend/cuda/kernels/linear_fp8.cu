#include "native.cuh"

KERNEL_TWICE(linear_fp8_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_FP8);
}
KERNEL(linear_fp8_wide2, linear_params) {
    linear_wide(&p, WEIGHT_FP8, 2);
}
KERNEL(linear_fp8_wide4, linear_params) {
    linear_wide(&p, WEIGHT_FP8, 4);
}
KERNEL(linear_fp8_wide8, linear_params) {
    linear_wide(&p, WEIGHT_FP8, 8);
}
KERNEL(linear_fp8_many, linear_params) {
    linear_many(&p, WEIGHT_FP8);
}

/* Only where the card has the instruction: the host asks for it by name. */
#if HAS_FP8_MMA
KERNEL(linear_fp8_native, linear_params) {
    linear_native(&p);
}
#endif
