#include "many.cuh"

KERNEL_TWICE(linear_int4_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_INT4);
}
KERNEL(linear_int4_wide2, linear_params) {
    linear_wide(&p, WEIGHT_INT4, 2);
}
KERNEL(linear_int4_wide4, linear_params) {
    linear_wide(&p, WEIGHT_INT4, 4);
}
KERNEL(linear_int4_wide8, linear_params) {
    linear_wide(&p, WEIGHT_INT4, 8);
}
KERNEL(linear_int4_many, linear_params) {
    linear_many(&p, WEIGHT_INT4);
}
