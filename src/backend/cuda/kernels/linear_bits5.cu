#include "many.cuh"

KERNEL_TWICE(linear_bits5_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_BITS5);
}
KERNEL(linear_bits5_wide2, linear_params) {
    linear_wide(&p, WEIGHT_BITS5, 2);
}
KERNEL(linear_bits5_wide4, linear_params) {
    linear_wide(&p, WEIGHT_BITS5, 4);
}
KERNEL(linear_bits5_wide8, linear_params) {
    linear_wide(&p, WEIGHT_BITS5, 8);
}
KERNEL(linear_bits5_many, linear_params) {
    linear_many(&p, WEIGHT_BITS5);
}
