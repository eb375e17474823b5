#include "cmd/run_batch/digest.h"

#include <openssl/evp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "base/text.h"

enum { SLOTS_MIN = 1024 };

struct batch_slot {
    struct batch_digest digest;
    int32_t number; /* + 1; 0: nothing is here */
};

int batch_digest_make(struct batch_digest *digest, const void *head, size_t head_size, const void *text, size_t size,
                      struct mo_error *error) {
    uint8_t whole[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    bool is_made = hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) && EVP_DigestUpdate(hash, head, head_size) &&
                   EVP_DigestUpdate(hash, text, size) && EVP_DigestFinal_ex(hash, whole, NULL);
    EVP_MD_CTX_free(hash);
    if (!is_made) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a request's digest");
    memcpy(digest->bytes, whole, sizeof digest->bytes);
    return 0;
}

void batch_digest_print(const struct batch_digest *digest, char text[BATCH_DIGEST_DIGITS + 1]) {
    text_print_hex(digest->bytes, sizeof digest->bytes, text);
}

int batch_digest_parse(struct batch_digest *digest, const char *text) {
    if (strlen(text) != BATCH_DIGEST_DIGITS || strspn(text, "0123456789abcdef") != BATCH_DIGEST_DIGITS) return -1;
    for (size_t i = 0; i < sizeof digest->bytes; i++) {
        const char byte[3] = {text[2 * i], text[2 * i + 1]};
        digest->bytes[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return 0;
}

/* Its slot, or the empty one where it would be. */
static struct batch_slot *slot_of(const struct batch_table *table, const struct batch_digest *digest) {
    size_t at;
    memcpy(&at, digest->bytes, sizeof at);
    for (at &= table->n_slots - 1;; at = (at + 1) & (table->n_slots - 1)) {
        struct batch_slot *slot = &table->slots[at];
        if (!slot->number || !memcmp(&slot->digest, digest, sizeof *digest)) return slot;
    }
}

static int grow(struct batch_table *table, struct mo_error *error) {
    struct batch_table grown = {.n_slots = table->n_slots ? 2 * table->n_slots : SLOTS_MIN, .n = table->n};
    grown.slots = calloc(grown.n_slots, sizeof *grown.slots);
    if (!grown.slots) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %zu requests", grown.n_slots);
    for (size_t i = 0; i < table->n_slots; i++) {
        const struct batch_slot *slot = &table->slots[i];
        if (slot->number) *slot_of(&grown, &slot->digest) = *slot;
    }
    free(table->slots);
    *table = grown;
    return 0;
}

int batch_table_add(struct batch_table *table, const struct batch_digest *digest, int32_t number,
                    struct mo_error *error) {
    int code = 4 * (table->n + 1) > 3 * table->n_slots ? grow(table, error) : 0;
    if (code) return code;
    struct batch_slot *slot = slot_of(table, digest);
    table->n += !slot->number;
    *slot = (struct batch_slot){*digest, number + 1};
    return 0;
}

int32_t batch_table_find(const struct batch_table *table, const struct batch_digest *digest) {
    return table->n ? slot_of(table, digest)->number - 1 : -1;
}

void batch_table_free(struct batch_table *table) {
    free(table->slots);
    *table = (struct batch_table){0};
}
