/* A backend for tests of the scheduler: its "model" is a hash of the tokens that it finds in the pages of a
 * sequence, from position 0 on. A wrong page, position or token anywhere gives other logits, and so another
 * answer. It also checks what backend.h promises to a backend, and counts what it finds wrong. */
#ifndef TESTS_SIM_FAKE_BACKEND_H
#define TESTS_SIM_FAKE_BACKEND_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/backend.h"
#include "forward.h"

enum { FAKE_MAX_LOGITS = 64, FAKE_MAX_VOCAB = 128 };

struct fake_backend {
    struct backend base;
    int vocab, n_pages, max_rows, max_logits, max_seqs;
    int32_t *pool; /* [n_pages][KV_PAGE_TOKENS] */
    const struct batch *batch;
    float out[FAKE_MAX_LOGITS * FAKE_MAX_VOCAB]; /* [n_logits][vocab] */
    const int32_t *script;                       /* [n_script] if set: the token that follows position i is script[i] */
    int n_script;
    bool fail_next;
    int fault_row; /* of the failure; -1: the whole batch */
    int n_faults;  /* broken promises of the batch */
};

static inline uint64_t fake_mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static inline uint64_t fake_hash_add(uint64_t hash, int32_t token) {
    return (hash ^ (uint64_t)(token + 1)) * 0x100000001B3u + 0x9E37;
}

static inline void fake_logits(uint64_t hash, int vocab, float *out) {
    uint64_t mixed = fake_mix(hash);
    for (int i = 0; i < vocab; i++) {
        out[i] = (float)(fake_mix(mixed + (uint64_t)i) >> 40) * (10.0f / (1 << 24)) - 5;
    }
}

#define FAKE_EXPECT(fake, condition)                                                                                   \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            (fake)->n_faults++;                                                                                        \
            fprintf(stderr, "batch: %s does not hold\n", #condition);                                                  \
        }                                                                                                              \
    } while (0)

static inline void fake_check_batch(struct fake_backend *fake, const struct batch *batch) {
    FAKE_EXPECT(fake, batch->n_rows >= 1 && batch->n_rows <= fake->max_rows);
    FAKE_EXPECT(fake, batch->n_seqs >= 1 && batch->n_seqs <= fake->max_seqs);
    FAKE_EXPECT(fake, batch->n_logits >= 0 && batch->n_logits <= fake->max_logits);
    int row = 0;
    for (int i = 0; i < batch->n_seqs; i++) {
        const struct batch_seq *seq = &batch->seqs[i];
        FAKE_EXPECT(fake, seq->first_row == row && seq->n_rows >= 1 && seq->first_pos >= 0);
        row += seq->n_rows;
        int n_pages = (seq->first_pos + seq->n_rows + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
        for (int p = 0; p < n_pages; p++) FAKE_EXPECT(fake, seq->pages[p] >= 0 && seq->pages[p] < fake->n_pages);
    }
    FAKE_EXPECT(fake, row == batch->n_rows);
    for (int i = 0; i < batch->n_rows; i++) FAKE_EXPECT(fake, batch->token[i] >= 0 && batch->token[i] < fake->vocab);
    for (int i = 0; i < batch->n_logits; i++) {
        int previous = i > 0 ? batch->logits_row[i - 1] : -1;
        FAKE_EXPECT(fake, batch->logits_row[i] > previous && batch->logits_row[i] < batch->n_rows);
    }
}

static inline int32_t *fake_slot(struct fake_backend *fake, const struct batch_seq *seq, int position) {
    int32_t page = seq->pages[position / KV_PAGE_TOKENS];
    return &fake->pool[(size_t)page * KV_PAGE_TOKENS + (size_t)(position % KV_PAGE_TOKENS)];
}

static void fake_begin(struct backend *backend, const struct batch *batch) {
    struct fake_backend *fake = (struct fake_backend *)backend;
    fake->batch = batch;
    fake_check_batch(fake, batch);
}

static void fake_nothing(struct backend *backend) {
    (void)backend;
}

static void fake_no_layer(struct backend *backend, int layer) {
    (void)backend, (void)layer;
}

static void fake_attn_in(struct backend *backend, int layer) {
    struct fake_backend *fake = (struct fake_backend *)backend;
    (void)layer;
    for (int s = 0; s < fake->batch->n_seqs; s++) {
        const struct batch_seq *seq = &fake->batch->seqs[s];
        for (int i = 0; i < seq->n_rows; i++) {
            *fake_slot(fake, seq, seq->first_pos + i) = fake->batch->token[seq->first_row + i];
        }
    }
}

static void fake_head(struct backend *backend) {
    struct fake_backend *fake = (struct fake_backend *)backend;
    const struct batch *batch = fake->batch;
    int n = 0;
    for (int s = 0; s < batch->n_seqs && n < batch->n_logits; s++) {
        const struct batch_seq *seq = &batch->seqs[s];
        uint64_t hash = 0;
        for (int position = 0; position < seq->first_pos + seq->n_rows && n < batch->n_logits; position++) {
            hash = fake_hash_add(hash, *fake_slot(fake, seq, position));
            if (seq->first_row + position - seq->first_pos != batch->logits_row[n]) continue;
            float *out = &fake->out[n++ * fake->vocab];
            fake_logits(hash, fake->vocab, out);
            if (position < fake->n_script) out[fake->script[position]] = 50;
        }
    }
}

static int fake_end(struct backend *backend, struct mo_error *error) {
    struct fake_backend *fake = (struct fake_backend *)backend;
    bool fail = fake->fail_next;
    fake->fail_next = false;
    return fail ? mo_error_set(error, MO_E_NUMERIC, "layer 0, attn: row 0 is not finite") : 0;
}

static int fake_fault_row(struct backend *backend) {
    return ((struct fake_backend *)backend)->fault_row;
}

static const float *fake_get_logits(struct backend *backend) {
    return ((struct fake_backend *)backend)->out;
}

static const struct backend_ops fake_ops = {
    .name = "fake",
    .begin = fake_begin,
    .embed = fake_nothing,
    .attn_in = fake_attn_in,
    .attn = fake_no_layer,
    .attn_out = fake_no_layer,
    .ffn_dense = fake_no_layer,
    .head = fake_head,
    .end = fake_end,
    .fault_row = fake_fault_row,
    .logits = fake_get_logits,
};

static inline void fake_open(struct fake_backend *fake, int vocab, int n_pages, int max_rows, int max_logits,
                             int max_seqs) {
    if (vocab > FAKE_MAX_VOCAB || max_logits > FAKE_MAX_LOGITS) abort();
    memset(fake, 0, sizeof *fake);
    fake->base.ops = &fake_ops;
    fake->fault_row = -1;
    fake->vocab = vocab;
    fake->n_pages = n_pages;
    fake->max_rows = max_rows;
    fake->max_logits = max_logits;
    fake->max_seqs = max_seqs;
    fake->pool = calloc((size_t)n_pages * KV_PAGE_TOKENS, sizeof *fake->pool);
    if (!fake->pool) abort();
}

static inline void fake_close(struct fake_backend *fake) {
    free(fake->pool);
    fake->pool = NULL;
}

/* One dense layer; the rest is never looked at. */
static inline struct model fake_model(int vocab) {
    return (struct model){.layers = 1, .dense_layers = 1, .vocab = vocab};
}

/* A tokenizer of 40 tokens whose bytes are awkward: pieces of the stop strings, halves of code points. */
enum { FAKE_VOCAB = 40, FAKE_EOS = 0, FAKE_SPECIAL = 1 };
#define FAKE_TOKENIZER_JSON                                                                                            \
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["                                     \
    "{\"id\":0,\"content\":\"<eos>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"                         \
    "\"normalized\":false,\"special\":true},"                                                                          \
    "{\"id\":1,\"content\":\"<tool>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"                        \
    "\"normalized\":false,\"special\":true}],"                                                                         \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[]},"                                                       \
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_"                \
    "regex\":false},"                                                                                                  \
    "\"post_processor\":null,"                                                                                         \
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":"               \
    "true},"                                                                                                           \
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"              \
    "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{"                               \
    "\"a\":2,\"b\":3,\"c\":4,\"d\":5,\"e\":6,\"f\":7,\"g\":8,\"h\":9,\"ab\":10,\"abc\":11,\"bc\":12,\"cd\":"           \
    "13,"                                                                                                              \
    "\"aa\":14,\"aab\":15,\"\\u00e4\":16,\"\\u00b8\":17,\"\\u0143\":18,\"\\u00f0\":19,\"\\u0141\":20,"                 \
    "\"\\u013a\":21,"                                                                                                  \
    "\"\\u0122\":22,\"\\u00e4\\u00b8\":23,\"\\u0120\":24,\"\\u010a\":25,\"da\":26,\"ca\":27,\"dab\":28,"               \
    "\"x\":29,"                                                                                                        \
    "\"y\":30,\"z\":31,\"xy\":32,\"yz\":33,\"xyz\":34,\"0\":35,\"1\":36,\"2\":37,\"bca\":38,\"abcd\":39},"             \
    "\"merges\":[\"a b\",\"ab c\",\"b c\",\"c d\",\"a a\",\"aa b\",\"\\u00e4 \\u00b8\",\"d a\",\"c "                   \
    "a\",\"da b\","                                                                                                    \
    "\"x y\",\"y z\",\"xy z\",\"bc a\",\"abc d\"]}}"

#endif
