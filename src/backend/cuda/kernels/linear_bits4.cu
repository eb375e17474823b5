#include "many.cuh"

KERNEL_TWICE(linear_bits4_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_BITS4);
}
KERNEL(linear_bits4_wide2, linear_params) {
    linear_wide(&p, WEIGHT_BITS4, 2);
}
KERNEL(linear_bits4_wide4, linear_params) {
    linear_wide(&p, WEIGHT_BITS4, 4);
}
KERNEL(linear_bits4_wide8, linear_params) {
    linear_wide(&p, WEIGHT_BITS4, 8);
}
KERNEL(linear_bits4_many, linear_params) {
    linear_many(&p, WEIGHT_BITS4);
}
