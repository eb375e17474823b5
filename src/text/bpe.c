#include "text/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Pieces up to here are merged by looking over all ranks again and again, which beats a heap on short ones.
 */
enum { SHORT_PIECE = 40 };

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static uint64_t mix(uint64_t value) {
    value *= 0x9E3779B97F4A7C15u;
    return value ^ value >> 32;
}

static uint64_t mask_for(size_t n) {
    uint64_t size = 16;
    while (size < 2 * (uint64_t)n) size *= 2;
    return size - 1;
}

int bpe_reserve_merges(struct bpe *bpe, struct arena *arena, size_t n_merges, struct mo_error *error) {
    bpe->slot_mask = mask_for(n_merges);
    bpe->slots = arena_alloc_array(arena, bpe->slot_mask + 1, sizeof *bpe->slots);
    bpe->merged = arena_alloc_array(arena, n_merges ? n_merges : 1, sizeof *bpe->merged);
    if (!bpe->slots || !bpe->merged) {
        return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for %zu merges", n_merges);
    }
    for (uint64_t i = 0; i <= bpe->slot_mask; i++) bpe->slots[i].rank = BPE_NO_RANK;
    return 0;
}

static struct bpe_slot *slot_find(const struct bpe *bpe, uint64_t pair) {
    uint64_t at = mix(pair) & bpe->slot_mask;
    while (bpe->slots[at].rank != BPE_NO_RANK && bpe->slots[at].pair != pair) at = (at + 1) & bpe->slot_mask;
    return &bpe->slots[at];
}

void bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, int32_t merged) {
    struct bpe_slot *slot = slot_find(bpe, pair_of(left, right));
    slot->pair = pair_of(left, right);
    slot->rank = bpe->n_merges; /* the last of several equal merges counts, as in the tokenizers library */
    bpe->merged[bpe->n_merges++] = merged;
}

static uint32_t rank_of(const struct bpe *bpe, int32_t left, int32_t right) {
    return slot_find(bpe, pair_of(left, right))->rank;
}

static uint64_t bytes_hash(const uint8_t *bytes, size_t size) {
    uint64_t hash = size;
    for (size_t i = 0; i < size; i++) hash = mix(hash ^ bytes[i]);
    return hash;
}

static struct bpe_word *word_find(const struct bpe *bpe, const uint8_t *bytes, size_t size) {
    uint64_t at = bytes_hash(bytes, size) & bpe->word_mask;
    for (;; at = (at + 1) & bpe->word_mask) {
        struct bpe_word *word = &bpe->words[at];
        if (!word->bytes || (word->size == size && memcmp(word->bytes, bytes, size) == 0)) return word;
    }
}

int bpe_reserve_words(struct bpe *bpe, struct arena *arena, size_t n_words, struct mo_error *error) {
    bpe->word_mask = mask_for(n_words);
    bpe->words = arena_alloc_array(arena, bpe->word_mask + 1, sizeof *bpe->words);
    if (bpe->words) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for %zu tokens", n_words);
}

void bpe_add_word(struct bpe *bpe, const uint8_t *bytes, size_t size, int32_t id) {
    *word_find(bpe, bytes, size) = (struct bpe_word){bytes, (uint32_t)size, id};
}

static int missing_byte(uint8_t byte, struct mo_error *error) {
    return mo_error_set(error, MO_E_INVALID, "the tokenizer's vocabulary has no token for byte 0x%02X", byte);
}

/* Writes what the pair at `i` would cost, BPE_NO_RANK at the end. */
static uint32_t short_rank(const struct bpe *bpe, const int32_t *ids, size_t n, size_t i) {
    return i + 1 < n ? rank_of(bpe, ids[i], ids[i + 1]) : BPE_NO_RANK;
}

static int encode_short(const struct bpe *bpe, const uint8_t *piece, size_t n, struct token_list *out,
                        struct mo_error *error) {
    int32_t ids[SHORT_PIECE];
    uint32_t ranks[SHORT_PIECE];
    for (size_t i = 0; i < n; i++) {
        ids[i] = bpe->byte_ids[piece[i]];
        if (ids[i] == BPE_NO_ID) return missing_byte(piece[i], error);
    }
    for (size_t i = 0; i < n; i++) ranks[i] = short_rank(bpe, ids, n, i);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i < n; i++) best = ranks[i] < ranks[best] ? i : best;
        if (ranks[best] == BPE_NO_RANK) break;
        ids[best] = bpe->merged[ranks[best]];
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        memmove(ranks + best + 1, ranks + best + 2, (n - best - 1) * sizeof *ranks);
        ranks[best] = short_rank(bpe, ids, n, best);
        if (best > 0) ranks[best - 1] = short_rank(bpe, ids, n, best - 1);
    }
    for (size_t i = 0; i < n; i++) {
        int code = token_list_push(out, ids[i], error);
        if (code) return code;
    }
    return 0;
}

/* Long pieces: a linked list of symbols, and a heap of (rank << 32 | position). An entry counts only while
 * the pair at its position still has its rank; a pair that has changed never has, for it spells something
 * longer. */
struct bpe_symbol {
    int32_t id;
    uint32_t prev, next; /* positions; NO_SYMBOL at the ends */
    uint32_t rank;       /* of the pair with the next symbol; BPE_NO_RANK: none, or the symbol is gone */
};
#define NO_SYMBOL UINT32_MAX

void bpe_scratch_free(struct bpe_scratch *scratch) {
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (struct bpe_scratch){0};
}

static int scratch_reserve(struct bpe_scratch *scratch, size_t n, struct mo_error *error) {
    if (scratch->n_symbols >= n) return 0;
    bpe_scratch_free(scratch);
    /* Every merge takes one entry out and puts at most two in, and there are fewer than n merges. */
    scratch->symbols = calloc(n, sizeof *scratch->symbols);
    scratch->heap = calloc(2 * n, sizeof *scratch->heap);
    if (!scratch->symbols || !scratch->heap) {
        bpe_scratch_free(scratch);
        return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a piece of %zu bytes", n);
    }
    scratch->n_symbols = n;
    scratch->n_heap = 2 * n;
    return 0;
}

static void heap_sift_down(uint64_t *heap, size_t n, size_t at) {
    uint64_t entry = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (entry <= heap[child]) break;
        heap[at] = heap[child];
    }
    heap[at] = entry;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t entry) {
    size_t at = (*n)++;
    while (at > 0 && heap[(at - 1) / 2] > entry) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = entry;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n) {
    uint64_t top = heap[0];
    heap[0] = heap[--*n];
    heap_sift_down(heap, *n, 0);
    return top;
}

static void symbol_rank(const struct bpe *bpe, struct bpe_symbol *symbols, uint32_t at) {
    uint32_t next = symbols[at].next;
    symbols[at].rank = next == NO_SYMBOL ? BPE_NO_RANK : rank_of(bpe, symbols[at].id, symbols[next].id);
}

/* Joins the symbol at `at` with the next one. */
static void symbol_merge(const struct bpe *bpe, struct bpe_symbol *symbols, uint32_t at) {
    uint32_t gone = symbols[at].next, after = symbols[gone].next;
    symbols[at].id = bpe->merged[symbols[at].rank];
    symbols[at].next = after;
    symbols[gone].rank = BPE_NO_RANK;
    if (after != NO_SYMBOL) symbols[after].prev = at;
    symbol_rank(bpe, symbols, at);
    if (symbols[at].prev != NO_SYMBOL) symbol_rank(bpe, symbols, symbols[at].prev);
}

static void merge_all(const struct bpe *bpe, struct bpe_scratch *scratch, size_t n) {
    struct bpe_symbol *symbols = scratch->symbols;
    uint64_t *heap = scratch->heap;
    size_t n_heap = 0;
    for (uint32_t i = 0; i < n; i++) {
        symbol_rank(bpe, symbols, i);
        if (symbols[i].rank != BPE_NO_RANK) heap[n_heap++] = (uint64_t)symbols[i].rank << 32 | i;
    }
    for (size_t i = n_heap / 2; i-- > 0;) heap_sift_down(heap, n_heap, i);
    while (n_heap > 0) {
        uint64_t entry = heap_pop(heap, &n_heap);
        uint32_t at = (uint32_t)entry;
        if (symbols[at].rank != (uint32_t)(entry >> 32)) continue;
        symbol_merge(bpe, symbols, at);
        uint32_t changed[2] = {at, symbols[at].prev};
        for (int i = 0; i < 2; i++) {
            if (changed[i] == NO_SYMBOL || symbols[changed[i]].rank == BPE_NO_RANK) continue;
            assert(n_heap < scratch->n_heap);
            heap_push(heap, &n_heap, (uint64_t)symbols[changed[i]].rank << 32 | changed[i]);
        }
    }
}

static int encode_long(const struct bpe *bpe, struct bpe_scratch *scratch, const uint8_t *piece, size_t n,
                       struct token_list *out, struct mo_error *error) {
    if (n >= NO_SYMBOL) return mo_error_set(error, MO_E_LIMIT, "a piece of %zu bytes is too long", n);
    int code = scratch_reserve(scratch, n, error);
    if (code) return code;
    for (uint32_t i = 0; i < n; i++) {
        int32_t id = bpe->byte_ids[piece[i]];
        if (id == BPE_NO_ID) return missing_byte(piece[i], error);
        scratch->symbols[i] = (struct bpe_symbol){id, i ? i - 1 : NO_SYMBOL, i + 1 < n ? i + 1 : NO_SYMBOL, 0};
    }
    merge_all(bpe, scratch, n);
    for (uint32_t i = 0; i != NO_SYMBOL; i = scratch->symbols[i].next) {
        code = token_list_push(out, scratch->symbols[i].id, error);
        if (code) return code;
    }
    return 0;
}

int bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const uint8_t *piece, size_t n,
               struct token_list *out, struct mo_error *error) {
    if (n == 0) return 0;
    if (bpe->words) {
        const struct bpe_word *word = word_find(bpe, piece, n);
        if (word->bytes) return token_list_push(out, word->id, error);
    }
    if (n <= SHORT_PIECE) return encode_short(bpe, piece, n, out, error);
    return encode_long(bpe, scratch, piece, n, out, error);
}
