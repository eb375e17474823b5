#include "model/turn.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "base/arena.h"
#include "base/progress.h"
#include "model/slots.h"

enum { ALIGN = 4096, NICE = 10 };

/* A matrix on its way. */
struct turn {
    struct mat *mat;
    uint8_t *to;
    atomic_bool is_done;
};

struct turner {
    struct turn *turns; /* [n] */
    int n, n_threads;
    int n_adopted;   /* by the caller's thread */
    atomic_int next; /* that a thread will take */
    atomic_bool stop;
    double bytes, adopted_bytes;
    pthread_t threads[]; /* [n_threads] */
};

static size_t turned_bytes(const struct mat *mat) {
    const struct mat turned = mat_turned(mat, NULL);
    return mat_bytes(&turned);
}

static size_t room_bytes(const struct mat *mat) {
    return (turned_bytes(mat) + ALIGN - 1) / ALIGN * ALIGN;
}

/* ---- which ---- */

static bool is_wanted(struct turn_choice choice, const struct slot *slot) {
    bool routed = slot->role >= ROLE_EXPERT_GATE;
    return !choice.wanted || choice.wanted(choice.context, slot->layer, routed ? slot->expert : -1);
}

/* NULL: what the slot names stays as it is. */
static struct mat *mat_to_turn(const struct weights *weights, struct turn_choice choice, const struct slot *slot) {
    if (!slot->cols || !is_wanted(choice, slot)) return NULL;
    struct mat *mat = weights_matrix(weights, slot->role, slot->layer, slot->expert);
    const bool is_product = slot->role != ROLE_EMBED && slot->role != ROLE_KV_B;
    const bool is_wanted_so = mat_must_turn(mat) || (is_product && mat_can_turn(mat->format));
    return mat->data && !mat->turned && is_wanted_so ? mat : NULL;
}

/* Where `turns` is given, what they are; *n: how many; their bytes, and what those of words and INT8 are more than in the file. */
static int list(const struct model *model, const struct weights *weights, struct turn_choice choice, struct turn *turns,
                int *n, size_t *bytes, size_t *more, struct mo_error *error) {
    struct arena *arena = arena_create();
    struct slot *slots;
    int n_slots = 0;
    if (!arena) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of matrices");
    int code = slots_list(model, arena, &slots, &n_slots, error);
    *n = 0;
    *bytes = *more = 0;
    for (int i = 0; i < n_slots; i++) {
        struct mat *mat = mat_to_turn(weights, choice, &slots[i]);
        if (!mat) continue;
        if (turns) turns[*n].mat = mat;
        *bytes += room_bytes(mat);
        const bool is_longer = mat_is_words(mat->format) || mat_must_turn(mat);
        if (is_longer && room_bytes(mat) > mat_bytes(mat)) *more += room_bytes(mat) - mat_bytes(mat);
        ++*n;
    }
    arena_destroy(arena);
    return code;
}

int turn_bytes(const struct model *model, const struct weights *weights, struct turn_choice choice, size_t *bytes,
               size_t *more, struct mo_error *error) {
    size_t unused;
    int n;
    return list(model, weights, choice, NULL, &n, bytes, more ? more : &unused, error);
}

/* ---- turning ---- */

/* The whole pages of a matrix. Whoever still reads them gets them from the file again; letting go of them takes a while for a large
 * model, which the thread that adopts should not lose between two steps. */
static void give_back(const struct mat *mat) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)mat->data, end = begin + mat_data_bytes(mat);
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static void turn_one(struct turner *turner, struct turn *turn) {
    const struct mat *from = turn->mat;
    const int panels = mat_panels(from);
    const size_t panel_bytes = turned_bytes(from) / (size_t)panels;
    for (int i = 0; i < panels; i++) {
        if (atomic_load_explicit(&turner->stop, memory_order_relaxed)) return;
        mat_turn_panel(from, i, turn->to + panel_bytes * (size_t)i);
    }
    give_back(from);
    atomic_store(&turn->is_done, true);
}

static void *work(void *context) {
    struct turner *turner = context;
    id_t self = (id_t)gettid();
    setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + NICE);
    for (int i; (i = atomic_fetch_add(&turner->next, 1)) < turner->n;) turn_one(turner, &turner->turns[i]);
    return NULL;
}

static int take_memory(struct turner *turner, struct weights *weights, size_t bytes, struct mo_error *error) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return mo_error_set(error, MO_E_NO_MEMORY, "no %.2f GB of memory for weights in another order",
                            (double)bytes * 1e-9);
    }
    madvise(memory, bytes, MADV_HUGEPAGE); /* where it is refused, nothing is lost */
    weights->made = memory;
    weights->made_bytes = bytes;
    turner->bytes = (double)bytes;
    for (int i = 0; i < turner->n; i++) {
        turner->turns[i].to = memory;
        memory = (uint8_t *)memory + room_bytes(turner->turns[i].mat);
    }
    return 0;
}

static int start(struct turner *turner, int threads, struct mo_error *error) {
    while (turner->n_threads < threads) {
        int reason = pthread_create(&turner->threads[turner->n_threads], NULL, work, turner);
        if (reason && turner->n_threads == 0)
            return mo_error_set(error, MO_E_NO_MEMORY, "cannot start a thread: %s", strerror(reason));
        if (reason) break; /* fewer will do */
        turner->n_threads++;
    }
    return 0;
}

static void give_memory_back(struct weights *weights) {
    if (weights->made) munmap(weights->made, weights->made_bytes);
    weights->made = NULL;
    weights->made_bytes = 0;
}

int turner_begin(struct turner **out, const struct model *model, struct weights *weights, struct turn_choice choice,
                 int threads, struct mo_error *error) {
    size_t bytes, more;
    int n;
    int code = list(model, weights, choice, NULL, &n, &bytes, &more, error);
    if (code) return code;
    struct turner *turner = calloc(1, sizeof *turner + (size_t)threads * sizeof *turner->threads);
    if (turner) turner->turns = calloc((size_t)n, sizeof *turner->turns);
    if (!turner || !turner->turns) {
        free(turner);
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of %d matrices", n);
    }
    code = list(model, weights, choice, turner->turns, &turner->n, &bytes, &more, error);
    if (!code) code = take_memory(turner, weights, bytes, error);
    if (!code) code = start(turner, threads, error);
    if (!code) {
        *out = turner;
        return 0;
    }
    turner_end(turner);
    give_memory_back(weights);
    return code;
}

/* ---- taking over ---- */

bool turner_adopt(struct turner *turner) {
    if (!turner) return true;
    for (; turner->n_adopted < turner->n; turner->n_adopted++) {
        struct turn *turn = &turner->turns[turner->n_adopted];
        if (!atomic_load(&turn->is_done)) return false;
        *turn->mat = mat_turned(turn->mat, turn->to);
        turner->adopted_bytes += (double)mat_bytes(turn->mat);
    }
    return true;
}

void turner_wait(struct turner *turner) {
    const struct timespec slice = {.tv_nsec = 20000000};
    struct progress progress;
    if (!turner) return;
    progress_begin(&progress, "turning weights", "GB", 1e-9, turner->bytes);
    while (!turner_adopt(turner)) {
        nanosleep(&slice, NULL);
        progress_update(&progress, turner->adopted_bytes);
    }
    progress_end(&progress);
}

void turner_end(struct turner *turner) {
    if (!turner) return;
    atomic_store(&turner->stop, true);
    for (int i = 0; i < turner->n_threads; i++) pthread_join(turner->threads[i], NULL);
    free(turner->turns);
    free(turner);
}
