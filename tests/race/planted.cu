/* Kernels with a race each, and (right = 1) without: what the race detector must find, and must leave alone. They are named
 * after what is missing. */
#include "backend/cuda/kernels/device.cuh"
#include "planted.h"

/* A value goes to the thread `step` further on. */
DEVICE uint32_t neighbour(uint32_t *shared, int step) {
    return shared[(THREAD + step) % BLOCK_THREADS];
}

KERNEL(planted_barrier, planted_params) {
    SHARED uint32_t words[BLOCK_THREADS];
    words[THREAD] = (uint32_t)THREAD;
    if (p.right) barrier();
    p.data[BLOCK * BLOCK_THREADS + THREAD] = neighbour(words, 32);
}

/* The compiler must not leave out the store of what an inlined function returns. */
DEVICE struct pair two_words(int left) {
    struct pair out = {{0, 0}};
    if (left <= 0) return out;
    out.v[0] = (uint32_t)left;
    if (left > 7) return out;
    out.v[1] = (uint32_t)left * 2;
    return out;
}
KERNEL(planted_store_of_result, planted_params) {
    SHARED struct pair words[BLOCK_THREADS];
    *(struct pair *)&words[THREAD] = two_words(THREAD);
    if (p.right) barrier();
    p.data[BLOCK * BLOCK_THREADS + THREAD] = words[(THREAD + 32) % BLOCK_THREADS].v[1];
}

/* The next round's values are written while the last round's are read. */
KERNEL(planted_second_barrier, planted_params) {
    SHARED uint32_t words[BLOCK_THREADS];
    uint32_t sum = 0;
    for (int round = 0; round < 3; round++) {
        words[THREAD] = (uint32_t)round;
        barrier();
        sum += neighbour(words, 32);
        if (p.right) barrier();
    }
    p.data[BLOCK * BLOCK_THREADS + THREAD] = sum;
}

/* Lanes of one warp. */
KERNEL(planted_warp_barrier, planted_params) {
    SHARED uint32_t words[BLOCK_THREADS];
    words[THREAD] = (uint32_t)THREAD;
    if (p.right) warp_barrier();
    p.data[BLOCK * BLOCK_THREADS + THREAD] = words[THREAD ^ 1];
}

/* A shuffle is no barrier: lane 0 may write before another has read. */
KERNEL(planted_shuffle_for_barrier, planted_params) {
    SHARED float most[BLOCK_WARPS];
    if (LANE == 0) most[WARP] = 0;
    warp_barrier();
    float largest = fmaxf(most[WARP], warp_max((float)LANE));
    if (p.right) warp_barrier();
    if (LANE == 0) most[WARP] = largest;
}

/* ldmatrix gives a lane's row to others. */
KERNEL(planted_tiles, planted_params) {
    SHARED struct quad rows[BLOCK_THREADS];
    struct quad mine = {{(uint32_t)THREAD, 0, 0, 0}};
    uint32_t tiles[4];
    rows[THREAD] = mine;
    if (p.right) warp_barrier();
    load_tiles(tiles, &rows[THREAD]);
    p.data[BLOCK * BLOCK_THREADS + THREAD] = tiles[0];
}

KERNEL(planted_read_of_atomic, planted_params) {
    SHARED uint32_t count;
    if (THREAD == 0) count = 0;
    barrier();
    atomic_add_u32(&count, 1);
    if (p.right) barrier();
    p.data[BLOCK * BLOCK_THREADS + THREAD] = count;
}

/* Blocks: two write one word, unless each has its own. */
KERNEL(planted_one_word, planted_params) {
    if (THREAD == 0) p.data[p.right ? BLOCK : 0] = 1;
}

/* Bytes beside each other are nobody else's; halves are, where bytes were meant. */
KERNEL(planted_bytes, planted_params) {
    if (p.right) {
        ((uint8_t *)p.data)[BLOCK * BLOCK_THREADS + THREAD] = 1;
    } else {
        ((uint16_t *)p.data)[(BLOCK * BLOCK_THREADS + THREAD) / 2] = 1;
    }
}

DEVICE int arrive(uint32_t *counter, int fence_before, int fence_behind) {
    SHARED uint32_t last;
    barrier();
    if (THREAD == 0) {
        if (fence_before) thread_fence();
        last = atomic_add_u32(counter, 1) == (uint32_t)BLOCKS - 1;
        if (fence_behind) thread_fence();
    }
    barrier();
    return (int)last;
}
DEVICE void sum_of_others(const struct planted_params *p) {
    uint32_t sum = 0;
    for (int i = 0; i < BLOCKS; i++) sum += p->data[i * BLOCK_THREADS + THREAD];
    p->data[THREAD] = sum;
}

/* The last block's. */
KERNEL(planted_fence_before, planted_params) {
    p.data[BLOCK * BLOCK_THREADS + THREAD] = 1;
    if (arrive(p.counter, p.right, 1)) sum_of_others(&p);
}
KERNEL(planted_fence_behind, planted_params) {
    p.data[BLOCK * BLOCK_THREADS + THREAD] = 1;
    if (arrive(p.counter, 1, p.right)) sum_of_others(&p);
}
/* Written after the block has said that it was done. */
KERNEL(planted_arrival_too_early, planted_params) {
    if (p.right) p.data[BLOCK * BLOCK_THREADS + THREAD] = 1;
    int last = arrive(p.counter, 1, 1);
    if (!p.right) p.data[BLOCK * BLOCK_THREADS + THREAD] = 1;
    if (last) sum_of_others(&p);
}
/* Where one thread arrives, fences and all, the others must have come to a barrier before. */
KERNEL(planted_arrival_without_barrier, planted_params) {
    SHARED uint32_t last;
    p.data[BLOCK * BLOCK_THREADS + THREAD] = 1;
    if (p.right) barrier();
    if (THREAD == 0) {
        thread_fence();
        last = atomic_add_u32(p.counter, 1) == (uint32_t)BLOCKS - 1;
        thread_fence();
    }
    barrier();
    if (last) sum_of_others(&p);
}

/* A pipeline of copies: `stages` of them in shared memory, the first ones on their way when the loop begins. */
enum { ROUNDS = 6, STAGE_WORDS = 4 * BLOCK_THREADS };
DEVICE void fetch(uint32_t *stages, const uint32_t *from, int round, int n) {
    copy_async(stages + round % n * STAGE_WORDS + 4 * THREAD, from + (4 * THREAD + 4 * round) % PLANTED_WORDS);
    copy_commit();
}
DEVICE uint32_t another(const uint32_t *stages, int round, int n) {
    return stages[round % n * STAGE_WORDS + (4 * THREAD + 128) % STAGE_WORDS];
}

/* Three stages, of which two are on their way while one is read; or two, and the copy goes where others may be reading. */
KERNEL(planted_stage_too_early, planted_params) {
    DYNAMIC_SHARED(uint32_t, stages);
    const int n = p.right ? 3 : 2;
    uint32_t sum = 0;
    for (int i = 0; i < 2; i++) fetch(stages, p.data, i, n);
    for (int round = 0; round < ROUNDS; round++) {
        copy_wait_all_but_one();
        barrier();
        fetch(stages, p.data, round + 2, n);
        sum += another(stages, round, n);
    }
    if (sum == 1) *p.counter = 0;
}

/* Waits for the copies but one group, where it reads the last. */
KERNEL(planted_wait_too_short, planted_params) {
    DYNAMIC_SHARED(uint32_t, stages);
    fetch(stages, p.data, 0, 2);
    fetch(stages, p.data, 1, 2);
    if (p.right) {
        copy_wait_all();
    } else {
        copy_wait_all_but_one();
    }
    barrier();
    if (another(stages, 1, 2) == 1) *p.counter = 0;
}

/* Has waited for its own copy; another thread's is read. */
KERNEL(planted_wait_without_barrier, planted_params) {
    DYNAMIC_SHARED(uint32_t, stages);
    fetch(stages, p.data, 0, 1);
    copy_wait_all();
    if (p.right) barrier();
    if (another(stages, 0, 1) == 1) *p.counter = 0;
}

/* Where it may begin early: the kernel before may still write what is read. */
KERNEL(planted_early, planted_params) {
    if (p.right) after_previous();
    if (p.data[THREAD] == 1) *p.counter = 0;
}

/* The path of weights is for what no one writes, in whatever order. */
KERNEL(planted_constant, planted_params) {
    struct quad mine = {{1, 2, 3, 4}}, found;
    struct quad *at = (struct quad *)p.data + THREAD;
    if (BLOCK) return;
    *at = mine;
    found = p.right ? *at : load_once((const uint8_t *)at);
    if (found.v[0] == 2) *p.counter = 0;
}

/* An address of the host's. */
KERNEL(planted_host, planted_params) {
    const uint32_t *from = p.right ? p.data : p.host;
    if (from[THREAD] == 1) *p.counter = 0;
}
