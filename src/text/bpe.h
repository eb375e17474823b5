/* text/bpe.h - byte-pair merging: the bytes of one piece become ids, joined by the rank of their merge.
 *
 * Immutable once loaded; what changes while encoding is in a scratch of the caller's. A piece of n bytes
 * costs O(n log n), whatever is in it. Includes: base, text/tokenizer.h. */
#ifndef MOEBIUS_TEXT_BPE_H
#define MOEBIUS_TEXT_BPE_H

#include "base/arena.h"
#include "text/tokenizer.h"

enum { BPE_NO_ID = -1 };
#define BPE_NO_RANK UINT32_MAX

struct bpe_slot {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* BPE_NO_RANK: the slot is empty */
};

/* A token that a whole piece may become at once (ignore_merges). */
struct bpe_word {
    const uint8_t *bytes; /* [size]; NULL: the slot is empty */
    uint32_t size;
    int32_t id;
};

struct bpe {
    int32_t byte_ids[256];  /* BPE_NO_ID where the vocabulary lacks the byte */
    struct bpe_slot *slots; /* [slot_mask + 1] open addressing */
    uint64_t slot_mask;
    int32_t *merged; /* [n_merges] what the merge of a rank makes */
    uint32_t n_merges;
    struct bpe_word *words; /* [word_mask + 1] open addressing, or NULL without ignore_merges */
    uint64_t word_mask;
};

/* Room for `n_merges` merges (added in order of rank) and `n_words` words. */
int bpe_reserve_merges(struct bpe *bpe, struct arena *arena, size_t n_merges, struct mo_error *error);
void bpe_add_merge(struct bpe *bpe, int32_t left, int32_t right, int32_t merged);
int bpe_reserve_words(struct bpe *bpe, struct arena *arena, size_t n_words, struct mo_error *error);
void bpe_add_word(struct bpe *bpe, const uint8_t *bytes, size_t size, int32_t id);

struct bpe_symbol;
struct bpe_scratch {
    struct bpe_symbol *symbols; /* [n_symbols] */
    uint64_t *heap;             /* [n_heap] */
    size_t n_symbols, n_heap;   /* capacities */
};
void bpe_scratch_free(struct bpe_scratch *scratch); /* accepts a zeroed one */

/* Appends the ids of `piece`. A byte that the vocabulary lacks is MO_E_INVALID. */
int bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const uint8_t *piece, size_t n,
               struct token_list *out, struct mo_error *error);

#endif
