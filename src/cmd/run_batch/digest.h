/* cmd/run_batch/digest.h - what `run-batch` knows a request by: half a SHA-256, and a table of them. Includes: base. */
#ifndef MOEBIUS_CMD_RUN_BATCH_DIGEST_H
#define MOEBIUS_CMD_RUN_BATCH_DIGEST_H

#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

struct batch_digest {
    uint8_t bytes[16];
};
enum { BATCH_DIGEST_DIGITS = 32 };

/* Of `head` [head_size] and then `text` [size]. */
int batch_digest_make(struct batch_digest *digest, const void *head, size_t head_size, const void *text, size_t size,
                      struct mo_error *error);
void batch_digest_print(const struct batch_digest *digest, char text[BATCH_DIGEST_DIGITS + 1]);
/* -1 unless the text is what print makes, and nothing more. */
int batch_digest_parse(struct batch_digest *digest, const char *text);

/* Digests with a number >= 0 each. Zero it before use. */
struct batch_table {
    struct batch_slot *slots; /* [n_slots], a power of two; or NULL */
    size_t n_slots, n;
};
int batch_table_add(struct batch_table *table, const struct batch_digest *digest, int32_t number,
                    struct mo_error *error);
/* Its number, or -1. */
int32_t batch_table_find(const struct batch_table *table, const struct batch_digest *digest);
void batch_table_free(struct batch_table *table);

#endif
