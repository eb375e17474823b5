#include "many.cuh"

KERNEL_TWICE(linear_bits6_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_BITS6);
}
KERNEL(linear_bits6_wide2, linear_params) {
    linear_wide(&p, WEIGHT_BITS6, 2);
}
KERNEL(linear_bits6_wide4, linear_params) {
    linear_wide(&p, WEIGHT_BITS6, 4);
}
KERNEL(linear_bits6_wide8, linear_params) {
    linear_wide(&p, WEIGHT_BITS6, 8);
}
KERNEL(linear_bits6_many, linear_params) {
    linear_many(&p, WEIGHT_BITS6);
}
