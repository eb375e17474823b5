#include "many.cuh"

KERNEL_TWICE(linear_int8_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_INT8);
}
KERNEL(linear_int8_wide2, linear_params) {
    linear_wide(&p, WEIGHT_INT8, 2);
}
KERNEL(linear_int8_wide4, linear_params) {
    linear_wide(&p, WEIGHT_INT8, 4);
}
KERNEL(linear_int8_wide8, linear_params) {
    linear_wide(&p, WEIGHT_INT8, 8);
}
KERNEL(linear_int8_many, linear_params) {
    linear_many(&p, WEIGHT_INT8);
}
