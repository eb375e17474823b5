/* The kernels of the matrix unit over its instructions in plain C: what they do is checked on machines without it. */
#define MOEBIUS_TILES_IN_C
#define kern_init_amx kern_init_amx_in_c
#include "backend/cpu/kern.h"
#include "backend/cpu/x86/kern_amx.c"
