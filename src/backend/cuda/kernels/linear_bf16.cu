#include "many.cuh"

KERNEL_TWICE(linear_bf16_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_BF16);
}
KERNEL(linear_bf16_wide1, linear_params) {
    linear_wide(&p, WEIGHT_BF16, 1);
}
KERNEL(linear_bf16_wide2, linear_params) {
    linear_wide(&p, WEIGHT_BF16, 2);
}
KERNEL(linear_bf16_wide4, linear_params) {
    linear_wide(&p, WEIGHT_BF16, 4);
}
KERNEL(linear_bf16_wide8, linear_params) {
    linear_wide(&p, WEIGHT_BF16, 8);
}
KERNEL(linear_bf16_many, linear_params) {
    linear_many(&p, WEIGHT_BF16);
}
