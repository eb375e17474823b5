#include "many.cuh"

KERNEL_TWICE(linear_bits3_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_BITS3);
}
KERNEL(linear_bits3_wide2, linear_params) {
    linear_wide(&p, WEIGHT_BITS3, 2);
}
KERNEL(linear_bits3_wide4, linear_params) {
    linear_wide(&p, WEIGHT_BITS3, 4);
}
KERNEL(linear_bits3_wide8, linear_params) {
    linear_wide(&p, WEIGHT_BITS3, 8);
}
KERNEL(linear_bits3_many, linear_params) {
    linear_many(&p, WEIGHT_BITS3);
}
