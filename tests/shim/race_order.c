/* tests/shim/race_order.c - barriers, fences and atomic operations: the orders that race.c asks for. */
#include "race_order.h"
#include "fibre.h"
#include "race.h"

#include <stdlib.h>

enum { THREADS = 256, WARPS = THREADS / 32 };

void *order_grow(void *array, uint32_t n, uint32_t *room, size_t bytes) {
    if (n < *room) return array;
    *room = *room ? 2 * *room : 1024;
    array = realloc(array, *room * bytes);
    if (!array) abort();
    return array;
}

/* --- when ------------------------------------------------------------------------------------------------------------ */

static struct moment *moments; /* of this launch, by number; 0 is none */
static uint32_t n_moments, moments_room;

static struct {
    int block, blocks;
    unsigned barriers, warp_barriers[WARPS], fences[THREADS];
    uint32_t moment[THREADS], copy[THREADS]; /* numbers; 0: to be made */
    struct moment fence[THREADS];            /* the last one */
} now;

static struct moment moment_of(int thread) {
    return (struct moment){now.block, thread, now.barriers, now.warp_barriers[thread / 32], now.fences[thread], false};
}

static uint32_t number_of(struct moment moment) {
    moments = order_grow(moments, n_moments, &moments_room, sizeof *moments);
    moments[n_moments] = moment;
    return n_moments++;
}

uint32_t order_now(int thread) {
    if (!now.moment[thread]) now.moment[thread] = number_of(moment_of(thread));
    return now.moment[thread];
}

uint32_t order_copy(int thread) {
    if (!now.copy[thread]) {
        struct moment moment = moment_of(thread);
        moment.is_copy = true;
        now.copy[thread] = number_of(moment);
    }
    return now.copy[thread];
}

const struct moment *order_moment(uint32_t number) {
    return &moments[number];
}

int order_block(void) {
    return now.block;
}

/* --- what blocks know of each other ----------------------------------------------------------------------------------- */

/* The notes on a word: what the threads that did atomic operations on it had passed on by a fence before. */
struct word {
    const void *at;
    struct moment *notes;
    uint32_t n, room;
};
static struct word *words;
static uint32_t n_words, words_room;

/* Notes that a thread of this block has seen, by the block that they are of. */
struct known {
    struct moment released, seen;
    int next;
};
static struct known *known;
static uint32_t n_known, known_room;
static int *known_of; /* [blocks] first of a block; -1: none */

/* Words that a thread has done an atomic operation on since its last fence, and how many notes it saw there. */
struct sight {
    int thread;
    uint32_t word, notes;
};
static struct sight *sights;
static uint32_t n_sights, sights_room;

bool order_is_past(const struct moment *then, enum crowd crowd, int thread) {
    if (then->barriers < now.barriers || (crowd == ONE && then->thread == thread)) return true;
    int warp = then->thread / 32;
    return crowd != MANY_WARPS && warp == thread / 32 && then->warp_barriers < now.warp_barriers[warp];
}

/* Whether it was over when a fence that another thread knows of was passed. */
static bool is_before_fence(const struct moment *then, enum crowd crowd, const struct moment *fence) {
    if (then->barriers < fence->barriers) return true;
    if (crowd == ONE && then->thread == fence->thread) return then->fences < fence->fences;
    return crowd != MANY_WARPS && then->thread / 32 == fence->thread / 32 && then->warp_barriers < fence->warp_barriers;
}

bool order_is_before(const struct moment *then, enum crowd crowd, int thread) {
    if (then->is_copy) return false;
    if (then->block == now.block && order_is_past(then, crowd, thread)) return true;
    for (int i = known_of[then->block]; i >= 0; i = known[i].next) {
        if (is_before_fence(then, crowd, &known[i].released) && order_is_past(&known[i].seen, ONE, thread)) return true;
    }
    return false;
}

static uint32_t word_at(const void *at) {
    uint32_t i = 0;
    while (i < n_words && words[i].at != at) i++;
    if (i < n_words) return i;
    words = order_grow(words, n_words, &words_room, sizeof *words);
    words[n_words] = (struct word){.at = at};
    return n_words++;
}

static void add_note(struct word *word, const struct moment *note) {
    word->notes = order_grow(word->notes, word->n, &word->room, sizeof *word->notes);
    word->notes[word->n++] = *note;
}

/* It sees all notes so far, and leaves what the thread's last fence passes on: its own, and what it knew. */
void order_atomic(const void *at, int thread) {
    uint32_t i = word_at(at);
    sights = order_grow(sights, n_sights, &sights_room, sizeof *sights);
    if (words[i].n) sights[n_sights++] = (struct sight){thread, i, words[i].n};
    if (!now.fences[thread]) return;
    for (uint32_t k = 0; k < n_known; k++) {
        if (order_is_past(&known[k].seen, ONE, thread)) add_note(&words[i], &known[k].released);
    }
    add_note(&words[i], &now.fence[thread]);
}

static void learn(const struct moment *note, int thread) {
    known = order_grow(known, n_known, &known_room, sizeof *known);
    known[n_known] = (struct known){*note, moment_of(thread), known_of[note->block]};
    known_of[note->block] = (int)n_known++;
}

void order_acquire(const void *at, int thread) {
    const struct word *word = &words[word_at(at)];
    for (uint32_t i = 0; i < word->n; i++) learn(&word->notes[i], thread);
}

void race_fence(void) {
    int thread = shim_thread;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n_sights; i++) {
        if (sights[i].thread != thread) {
            sights[kept++] = sights[i];
            continue;
        }
        for (uint32_t j = 0; j < sights[i].notes; j++) learn(&words[sights[i].word].notes[j], thread);
    }
    n_sights = kept;
    now.fences[thread]++;
    now.fence[thread] = moment_of(thread);
    now.moment[thread] = 0;
}

/* --- the run ---------------------------------------------------------------------------------------------------------- */

void order_launch(int blocks) {
    for (uint32_t i = 0; i < n_words; i++) free(words[i].notes);
    n_words = 0;
    n_moments = 1;
    known_of = realloc(known_of, (size_t)blocks * sizeof *known_of);
    if (!known_of) abort();
    now.blocks = blocks;
}

void order_block_begins(int block) {
    int blocks = now.blocks;
    memset(&now, 0, sizeof now);
    now.blocks = blocks;
    now.block = block;
    n_known = n_sights = 0;
    for (int i = 0; i < blocks; i++) known_of[i] = -1;
}

void race_barrier(void) {
    now.barriers++;
    memset(now.moment, 0, sizeof now.moment);
}

void race_warp_barrier(int warp) {
    now.warp_barriers[warp]++;
    memset(&now.moment[warp * 32], 0, 32 * sizeof *now.moment);
}
