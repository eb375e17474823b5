#include "many.cuh"

KERNEL_TWICE(linear_awq_skinny, linear_params) {
    linear_skinny(&p, WEIGHT_AWQ);
}
KERNEL(linear_awq_wide2, linear_params) {
    linear_wide(&p, WEIGHT_AWQ, 2);
}
KERNEL(linear_awq_wide4, linear_params) {
    linear_wide(&p, WEIGHT_AWQ, 4);
}
KERNEL(linear_awq_wide8, linear_params) {
    linear_wide(&p, WEIGHT_AWQ, 8);
}
KERNEL(linear_awq_many, linear_params) {
    linear_many(&p, WEIGHT_AWQ);
}
