/* What a card can do, apart from any model: the yardsticks beside which the kernels' speed is told. */
#include "../params_bench.h"
#include "device.cuh"

enum { READ_QUADS = 8, SPINS_MAX = 1 << 20 };

/* Nothing: a graph of these costs what starting kernels costs. */
KERNEL(probe_empty, probe_params) {
    if (p.rounds < 0) *p.sink = 0;
}

/* Reads as the linear kernels do, 512 bytes a warp at once, READ_QUADS of them on their way. */
KERNEL_TWICE(probe_read, probe_params) {
    const uint8_t *data = p.data + p.offset;
    size_t part = (size_t)READ_QUADS * BLOCK_THREADS * 16, step = (size_t)p.blocks * part;
    uint32_t sum = 0;
    for (size_t at = (size_t)BLOCK * part + (size_t)THREAD * 16; at < p.bytes; at += step) {
        struct quad q[READ_QUADS];
        UNROLL
        for (int i = 0; i < READ_QUADS; i++) {
            size_t here = at + (size_t)i * BLOCK_THREADS * 16;
            q[i] = load_once(data + (here < p.bytes ? here : at));
        }
        UNROLL
        for (int i = 0; i < READ_QUADS; i++) sum += q[i].v[0] ^ q[i].v[1] ^ q[i].v[2] ^ q[i].v[3];
    }
    if (sum == 0x9e3779b9u) *p.sink = sum;
}

/* All blocks wait for one another, `rounds` times. They must all be on the card at once: one for each processor. A block that
 * waits too long gives up and says so, so that a card that does not have them all never hangs. */
KERNEL(probe_barrier, probe_params) {
    SHARED int gave_up;
    for (int round = 1; round <= p.rounds; round++) {
        barrier();
        if (THREAD == 0) {
            uint32_t wanted = (uint32_t)round * (uint32_t)p.blocks;
            int spins = 0;
            thread_fence();
            atomic_add_u32(p.counter, 1);
            while (load_now(p.counter) < wanted && ++spins < SPINS_MAX) {
            }
            gave_up = spins == SPINS_MAX;
            if (gave_up) atomic_add_u32(p.sink, 1);
            thread_fence();
        }
        barrier();
        if (gave_up) return;
    }
}
