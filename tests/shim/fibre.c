/* tests/shim/fibre.c - runs a block of a kernel: its threads as fibres, warp operations as meetings of 32 of them. */
#include "shim.h"
#include "fibre.h"
#include "race.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { THREADS_MAX = 256, STACK_BYTES = 64 << 10, LANES = 32, COPIES_MAX = 4096 };
enum { COLOUR_BYTES = 512 }; /* a warp's stacks begin in different lines of the processor's cache */

enum state { READY, AT_BARRIER, AT_WARP, DONE };

struct copy {
    void *to;
    const void *from, *pc;
    uint8_t bytes[16];
    int group;
};

struct fibre {
    enum state state;
    enum shim_op op;
    struct shim_lane *lane;
    const void *pc;      /* of the warp operation */
    struct copy *copies; /* [COPIES_MAX] */
    int n_copies, group;
    void *stack_pointer;
};

int shim_thread, shim_block, shim_blocks, shim_launches, shim_shared_bytes = SHIM_SHARED_BYTES, shim_blocks_begun;
unsigned char shim_shared[SHIM_SHARED_BYTES] __attribute__((aligned(128)));

static struct fibre fibres[THREADS_MAX];
static uint8_t *stacks; /* [THREADS_MAX][STACK_BYTES], each with a page below that must not be touched */
static int n_threads;
static int gave_way; /* the block that runs waits for another */
static shim_kernel *kernel;
static const void *params;

static void fibre_main(void) {
    kernel(params);
    fibres[shim_thread].state = DONE;
    for (;;) shim_yield();
}

/* Saves what a function must keep, changes stacks, and restores it. */
void shim_switch(void **from, void *to);
__asm__(".text\n"
        ".globl shim_switch\n"
        ".type shim_switch, @function\n"
        "shim_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size shim_switch, .-shim_switch\n");

static void prepare(int i) {
    void **top = (void **)(stacks + (size_t)(i + 1) * STACK_BYTES - (size_t)(i % LANES) * COLOUR_BYTES);
    void (*entry)(void) = fibre_main;
    *--top = NULL; /* keeps the stack aligned as after a call */
    memcpy(--top, &entry, sizeof entry);
    for (int j = 0; j < 6; j++) *--top = NULL;
    fibres[i].stack_pointer = top;
}

/* Between two barriers nobody promises an order: warps, and a warp's lanes, take turns from another one on each time, forwards or
 * backwards. So a barrier that is missing is found out whoever should have waited. */
struct order {
    int first, step;
};
static uint64_t turns;
static struct order draw_order(int n) {
    turns = turns * 6364136223846793005u + 1442695040888963407u;
    return (struct order){(int)((turns >> 33) % (unsigned)n), turns >> 63 ? 1 : n - 1};
}

/* The warp whose turn it is. */
static struct {
    int first, next, step; /* its first thread; the lane that comes next, and how far it is to the one behind that */
    int to_come, at_warp;  /* lanes that had no turn yet; those that came to a warp operation */
    void *scheduler;       /* run_warp's stack */
} turn;

/* Goes on with the next lane that can, and where there is none with run_warp. */
static void pass_on(void **from) {
    while (turn.to_come > 0) {
        const int thread = turn.first + turn.next;
        turn.to_come--;
        turn.next = (turn.next + turn.step) % LANES;
        if (fibres[thread].state != READY) continue;
        shim_thread = thread;
        shim_switch(from, fibres[thread].stack_pointer);
        return;
    }
    if (from != &turn.scheduler) shim_switch(from, turn.scheduler);
}

void shim_yield(void) {
    pass_on(&fibres[shim_thread].stack_pointer);
}

void shim_sleep(void) {
    void *forgotten;
    gave_way = 1;
    shim_switch(&forgotten, turn.scheduler);
}

void shim_give_up(const char *what) {
    fprintf(stderr, "shim: block %d, thread %d: %s\n", shim_block, shim_thread, what);
    abort();
}

static void open_stacks(void) {
    if (stacks) return;
    size_t bytes = (size_t)THREADS_MAX * STACK_BYTES;
    stacks = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) shim_give_up("no memory for stacks");
    madvise(stacks, bytes, MADV_NOHUGEPAGE);
    race_stacks(stacks, bytes);
    for (int i = 0; i < THREADS_MAX; i++) mprotect(stacks + (size_t)i * STACK_BYTES, 4096, PROT_NONE);
}

void shim_barrier(void) {
    fibres[shim_thread].state = AT_BARRIER;
    shim_yield();
}

void shim_warp(enum shim_op op, struct shim_lane *lane) {
    struct fibre *f = &fibres[shim_thread];
    f->state = AT_WARP;
    turn.at_warp++;
    f->op = op;
    f->lane = lane;
    f->pc = __builtin_return_address(0);
    shim_yield();
}

void shim_copy(void *to, const void *from) {
    struct fibre *f = &fibres[shim_thread];
    if (!f->copies) f->copies = malloc(COPIES_MAX * sizeof *f->copies);
    if (!f->copies || f->n_copies == COPIES_MAX) shim_give_up("too many copies under way");
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) shim_give_up("an asynchronous copy is not aligned");
    struct copy *copy = &f->copies[f->n_copies++];
    copy->to = to;
    copy->from = from;
    copy->pc = __builtin_return_address(0);
    copy->group = f->group;
    race_copy_begins(to, from, copy->pc);
    memcpy(copy->bytes, from, sizeof copy->bytes);
    memset(to, 0xff, sizeof copy->bytes); /* NaN until it is waited for */
}

void shim_copy_commit(void) {
    fibres[shim_thread].group++;
}

void shim_copy_wait(int groups_left) {
    struct fibre *f = &fibres[shim_thread];
    int kept = 0;
    for (int i = 0; i < f->n_copies; i++) {
        struct copy *copy = &f->copies[i];
        if (copy->group < f->group - groups_left) {
            memcpy(copy->to, copy->bytes, sizeof copy->bytes);
            race_copy_arrives(copy->to, copy->from, copy->pc);
        } else {
            f->copies[kept++] = *copy;
        }
    }
    f->n_copies = kept;
}

void shim_fence(void) {
    race_fence();
}

uint32_t shim_add_u32(uint32_t *at, uint32_t value) {
    uint32_t old = *at;
    race_atomic(at, sizeof *at, __builtin_return_address(0));
    *at += value;
    return old;
}
void shim_add_u64(unsigned long long *at, unsigned long long value) {
    race_atomic(at, sizeof *at, __builtin_return_address(0));
    *at += value;
}
void shim_min_u32(uint32_t *at, uint32_t value) {
    race_atomic(at, sizeof *at, __builtin_return_address(0));
    if (value < *at) *at = value;
}
void shim_min_u64(unsigned long long *at, unsigned long long value) {
    race_atomic(at, sizeof *at, __builtin_return_address(0));
    if (value < *at) *at = value;
}

uint32_t shim_load_now(const uint32_t *at) {
    race_acquire(at, sizeof *at, __builtin_return_address(0));
    return *(const volatile uint32_t *)at;
}

int shim_thread_of_fibre(void) {
    return shim_thread;
}
int shim_block_of_fibre(void) {
    return shim_block;
}
int shim_blocks_of_launch(void) {
    return shim_blocks;
}

static float bf16(uint32_t pair, int half) {
    return bits_float((half ? pair >> 16 : pair & 0xffff) << 16);
}

/* Where the processor has wider vectors they are taken; products and sums are never fused (-ffp-contract=off), so bits are the same. */
#define BY_VECTORS __attribute__((target_clones("avx2", "default")))

/* C += A B for a warp: k comes in order, as in one lane's sum; the columns of C are summed beside each other. */
typedef float row_of_8 __attribute__((vector_size(32)));
static inline void multiply_tile(struct shim_lane *const *lane, const float *a, const row_of_8 *b, int depth) {
    row_of_8 c[16];
    for (int l = 0; l < LANES; l++) {
        for (int i = 0; i < 4; i++) c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = lane[l]->c[i];
    }
    for (int row = 0; row < 16; row++) {
        row_of_8 sum = c[row];
        for (int k = 0; k < depth; k++) sum += a[row * depth + k] * b[k];
        c[row] = sum;
    }
    for (int l = 0; l < LANES; l++) {
        for (int i = 0; i < 4; i++) lane[l]->c[i] = c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
    }
}

/* The fragments of the PTX manual, m16n8k16: lane l has rows g = l / 4 and g + 8, columns 2 (l % 4) and the next. */
BY_VECTORS static void warp_mma(struct shim_lane *const *lane) {
    float a[16][16];
    row_of_8 b[16];
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, t = l % 4;
        for (int h = 0; h < 2; h++) {
            a[g][2 * t + h] = bf16(lane[l]->a[0], h);
            a[g + 8][2 * t + h] = bf16(lane[l]->a[1], h);
            a[g][2 * t + 8 + h] = bf16(lane[l]->a[2], h);
            a[g + 8][2 * t + 8 + h] = bf16(lane[l]->a[3], h);
            b[2 * t + h][g] = bf16(lane[l]->b[0], h);
            b[2 * t + 8 + h][g] = bf16(lane[l]->b[1], h);
        }
    }
    multiply_tile(lane, a[0], b, 16);
}

static float e4m3(uint32_t word, int byte) {
    uint32_t bits = word >> (8 * byte) & 0xff;
    if ((bits & 0x7f) == 0x7f) return NAN;
    return bits_float((bits & 0x80) << 24 | (bits & 0x7f) << 20) * 0x1p120f;
}

/* m16n8k32 in e4m3: lane l has rows g and g + 8, columns 4 (l % 4) to 4 (l % 4) + 3, and the same 16 further on. */
BY_VECTORS static void warp_mma_fp8(struct shim_lane *const *lane) {
    float a[16][32];
    row_of_8 b[32];
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) {
            a[g][4 * t + i] = e4m3(lane[l]->a[0], i);
            a[g + 8][4 * t + i] = e4m3(lane[l]->a[1], i);
            a[g][16 + 4 * t + i] = e4m3(lane[l]->a[2], i);
            a[g + 8][16 + 4 * t + i] = e4m3(lane[l]->a[3], i);
            b[4 * t + i][g] = e4m3(lane[l]->b[0], i);
            b[16 + 4 * t + i][g] = e4m3(lane[l]->b[1], i);
        }
    }
    multiply_tile(lane, a[0], b, 32);
}

static void warp_tiles(struct shim_lane *const *lane, int turned) {
    for (int i = 0; i < 4; i++) {
        uint16_t tile[8][8];
        for (int r = 0; r < 8; r++) {
            if ((uintptr_t)lane[i * 8 + r]->row % 16) shim_give_up("a row of ldmatrix is not aligned");
            memcpy(tile[r], lane[i * 8 + r]->row, 16);
        }
        for (int l = 0; l < LANES; l++) {
            int g = l / 4, c = l % 4 * 2;
            lane[l]->a[i] =
                turned ? tile[c][g] | (uint32_t)tile[c + 1][g] << 16 : tile[g][c] | (uint32_t)tile[g][c + 1] << 16;
        }
    }
}

static void warp_turn(struct shim_lane *const *lane) {
    uint16_t tile[8][8];
    for (int l = 0; l < LANES; l++) {
        tile[l / 4][l % 4 * 2] = (uint16_t)lane[l]->value;
        tile[l / 4][l % 4 * 2 + 1] = (uint16_t)(lane[l]->value >> 16);
    }
    for (int l = 0; l < LANES; l++)
        lane[l]->value = tile[l % 4 * 2][l / 4] | (uint32_t)tile[l % 4 * 2 + 1][l / 4] << 16;
}

static void warp_shuffle(struct shim_lane *const *lane, enum shim_op op) {
    uint32_t values[LANES];
    for (int l = 0; l < LANES; l++) values[l] = lane[l]->value;
    for (int l = 0; l < LANES; l++) {
        int from = op == SHIM_SHUFFLE_XOR ? l ^ lane[l]->mask : l - lane[l]->mask;
        if (from >= 0 && from < LANES) lane[l]->value = values[from];
    }
}

/* All lanes of a warp have come together. */
static void run_op(struct fibre *warp) {
    struct shim_lane *lanes[LANES];
    enum shim_op op = warp[0].op;
    for (int l = 0; l < LANES; l++) {
        if (warp[l].op != op) shim_give_up("the lanes of a warp ask for different operations");
        if (warp[l].lane->meeting != warp[0].lane->meeting)
            shim_give_up("the lanes of a warp come to different meetings");
        lanes[l] = warp[l].lane;
        warp[l].state = READY;
    }
    switch (op) {
    case SHIM_MMA:
        warp_mma(lanes);
        break;
    case SHIM_MMA_FP8:
        warp_mma_fp8(lanes);
        break;
    case SHIM_TILES:
    case SHIM_TILES_TURNED:
        for (int l = 0; l < LANES; l++) race_tile_row((int)(warp - fibres) + l, lanes[l]->row, warp[l].pc);
        warp_tiles(lanes, op == SHIM_TILES_TURNED);
        break;
    case SHIM_TURN:
        warp_turn(lanes);
        break;
    case SHIM_SHUFFLE_XOR:
    case SHIM_SHUFFLE_UP:
        warp_shuffle(lanes, op);
        break;
    case SHIM_WARP_BARRIER:
        race_warp_barrier((int)(warp - fibres) / LANES);
        break;
    case SHIM_MEETING:
        lanes[0]->meeting(lanes);
        break;
    }
}

static int count_in(const struct fibre *warp, enum state state) {
    int n = 0;
    for (int l = 0; l < LANES; l++) n += warp[l].state == state;
    return n;
}

/* Runs a warp until each of its lanes is at a barrier or done. */
static void run_warp(int first) {
    for (;;) {
        const struct order lanes = draw_order(LANES);
        turn.first = first;
        turn.next = lanes.first;
        turn.step = lanes.step;
        turn.to_come = LANES;
        turn.at_warp = 0;
        pass_on(&turn.scheduler);
        if (turn.at_warp == 0 || gave_way) return;
        if (turn.at_warp < LANES) shim_give_up("a warp operation that some lanes do not come to");
        run_op(&fibres[first]);
    }
}

/* 0: it gave way to others, and begins anew later. */
static int run_block(int block) {
    shim_block = block;
    shim_blocks_begun++;
    gave_way = 0;
    memset(shim_shared, 0xff, (size_t)shim_shared_bytes); /* NaN, to be seen if it is read before it is written */
    memset(shim_own_first, 0xff, (size_t)(shim_own_end - shim_own_first));
    race_block(block);
    for (int i = 0; i < n_threads; i++) {
        fibres[i].state = READY;
        fibres[i].n_copies = fibres[i].group = 0;
        prepare(i);
    }
    for (;;) {
        int waiting = 0;
        const int n_warps = n_threads / LANES;
        const struct order warps = draw_order(n_warps);
        for (int i = 0; i < n_warps; i++) {
            int warp = (warps.first + i * warps.step) % n_warps * LANES;
            run_warp(warp);
            if (gave_way) return 0;
            waiting += count_in(&fibres[warp], AT_BARRIER);
        }
        if (waiting == 0) return 1;
        race_barrier();
        for (int i = 0; i < n_threads; i++) {
            if (fibres[i].state == AT_BARRIER) fibres[i].state = READY;
            if (fibres[i].state == DONE) shim_give_up("a barrier that some threads do not come to");
        }
    }
}

void shim_run(shim_kernel *function, const void *arguments, const struct shim_grid *grid, uint64_t *seed) {
    int blocks = grid->blocks, *order = malloc((size_t)blocks * sizeof *order);
    if (!order || grid->threads % LANES || grid->threads > THREADS_MAX) shim_give_up("a launch that it cannot run");
    open_stacks();
    kernel = function;
    params = arguments;
    n_threads = grid->threads;
    shim_blocks = blocks;
    shim_launches++;
    if (shim_shared_bytes > grid->shared_bytes) /* what this launch did not ask for is NaN all the time */
        memset(shim_shared + grid->shared_bytes, 0xff, (size_t)(shim_shared_bytes - grid->shared_bytes));
    shim_shared_bytes = grid->shared_bytes;
    turns = *seed;
    for (int i = 0; i < blocks; i++) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        int j = (int)((*seed >> 33) % (unsigned)(i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    for (int n = blocks, left = 0; n > 0; n = left, left = 0) {
        for (int i = 0; i < n; i++) {
            if (order[i] != grid->left_out && !run_block(order[i])) order[left++] = order[i];
        }
        if (left == n) shim_give_up("every block that is left waits for another");
    }
    free(order);
}

uint32_t shim_bf16(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16 | 0x40) & 0xffff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

float shim_half(uint32_t bits) {
    uint32_t sign = (bits & 0x8000) << 16, size = bits & 0x7fff;
    if (size >= 0x7c00) return bits_float(sign | 0x7f800000 | (size & 0x3ff) << 13);
    return bits_float(sign | float_bits(bits_float(size << 13) * 0x1p112f)); /* fp16 bits in fp32's places are 2^-112 */
}
