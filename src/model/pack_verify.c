/* Is a packed file what was written? The header by itself at every open, the rest on demand. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "base/progress.h"
#include "model/format.h"
#include "model/pack.h"
#include "model/pack_priv.h"

static const char KEY[] = "\"" PACK_KEY_CHECKSUM "\":\"";

void pack_checksum_text(uint64_t checksum, char text[PACK_CHECKSUM_DIGITS + 1]) {
    snprintf(text, PACK_CHECKSUM_DIGITS + 1, "%016llx", (unsigned long long)checksum);
}

/* Where the 16 digits are in the header, or NULL. A quote inside of a JSON string is escaped, so no value looks like the key. */
static const char *find_digits(const char *header, size_t size) {
    const char *key = memmem(header, size, KEY, sizeof KEY - 1), *digits = key ? key + sizeof KEY - 1 : NULL;
    return digits && digits + PACK_CHECKSUM_DIGITS <= header + size ? digits : NULL;
}

static uint64_t hash_header(const char *header, size_t size, const char *digits) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) return 0;
    const char *after = digits + PACK_CHECKSUM_DIGITS;
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, header + 8, (size_t)(digits - header) - 8);
    XXH3_64bits_update(state, PACK_NO_CHECKSUM, PACK_CHECKSUM_DIGITS);
    XXH3_64bits_update(state, after, (size_t)(header + size - after));
    uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

void pack_sign_header(char *header, size_t size) {
    char text[PACK_CHECKSUM_DIGITS + 1];
    const char *digits = find_digits(header, size);
    assert(digits && "the header has a place for its checksum");
    pack_checksum_text(hash_header(header, size, digits), text);
    memcpy(header + (digits - header), text, PACK_CHECKSUM_DIGITS);
}

int pack_check_header(const uint8_t *data, size_t header_bytes, const char *path, struct mo_error *error) {
    char text[PACK_CHECKSUM_DIGITS + 1];
    const char *header = (const char *)data, *digits = find_digits(header, header_bytes);
    if (!digits) return mo_error_set(error, MO_E_CORRUPT, "%s: key \"" PACK_KEY_CHECKSUM "\" is missing", path);
    pack_checksum_text(hash_header(header, header_bytes, digits), text);
    if (!memcmp(text, digits, PACK_CHECKSUM_DIGITS)) return 0;
    return mo_error_set(error, MO_E_CORRUPT,
                        "%s: header: expected checksum %.16s, found %s (damaged, or rewritten by another program)",
                        path, digits, text);
}

static int by_position(const void *a, const void *b) {
    const struct tensor *x = *(const struct tensor *const *)a, *y = *(const struct tensor *const *)b;
    return x->data < y->data ? -1 : x->data > y->data;
}

static int check_scales(const struct checkpoint *checkpoint, const struct tensor *tensor, struct mo_error *error) {
    enum mat_format format;
    int group;
    const uint8_t *nan = tensor->dtype == DTYPE_F8_E8M0 ? memchr(tensor->data, 255, tensor->bytes) : NULL;
    if (nan) {
        return mo_error_set(error, MO_E_NUMERIC, "%s: tensor %s: scale %zu is not finite", checkpoint->path,
                            tensor->name, (size_t)(nan - (const uint8_t *)tensor->data));
    }
    if (tensor->dtype != DTYPE_U8 || tensor->n_dims != 3) return 0;
    size_t block = (size_t)tensor->shape[2];
    if (block_format_of(block, &format, &group)) return 0;
    size_t scales = (size_t)(BLOCK_COLS / group) * BLOCK_ROWS * sizeof(uint16_t);
    for (size_t at = block - scales; at < tensor->bytes; at += block) {
        for (size_t i = 0; i < scales; i += sizeof(uint16_t)) {
            uint16_t bits;
            memcpy(&bits, (const char *)tensor->data + at + i, sizeof bits);
            if ((bits & 0x7c00) != 0x7c00) continue;
            return mo_error_set(error, MO_E_NUMERIC, "%s: tensor %s: a scale in block %zu is not finite",
                                checkpoint->path, tensor->name, at / block);
        }
    }
    return 0;
}

static int check_tensor(const struct checkpoint *checkpoint, const struct tensor *tensor, const char *expected,
                        struct mo_error *error) {
    char found[PACK_CHECKSUM_DIGITS + 1];
    pack_checksum_text(XXH3_64bits(tensor->data, tensor->bytes), found);
    if (memcmp(found, expected, PACK_CHECKSUM_DIGITS)) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s is damaged: expected checksum %.16s, found %s",
                            checkpoint->path, tensor->name, expected, found);
    }
    return check_scales(checkpoint, tensor, error);
}

static int check_all(const struct checkpoint *checkpoint, const struct tensor **sorted, const char *checksums,
                     struct mo_error *error) {
    struct progress progress;
    double done = 0;
    int code = 0;
    progress_begin(&progress, "verifying", "GB", 1e-9, (double)checkpoint->total_bytes);
    for (int i = 0; i < checkpoint->n_tensors && !code; i++) {
        code = check_tensor(checkpoint, sorted[i], checksums + (size_t)i * PACK_CHECKSUM_DIGITS, error);
        done += (double)sorted[i]->bytes;
        progress_update(&progress, done);
    }
    progress_end(&progress);
    return code;
}

int pack_verify(const struct checkpoint *checkpoint, struct mo_error *error) {
    if (!checkpoint->is_packed) {
        return mo_error_set(error, MO_E_INVALID,
                            "%s: only files of `moebius quantize` and `moebius synth` hold checksums to verify",
                            checkpoint->path);
    }
    const char *checksums = checkpoint_metadata(checkpoint, PACK_KEY_CHECKSUMS);
    size_t n = (size_t)checkpoint->n_tensors;
    if (!checksums || strlen(checksums) != n * PACK_CHECKSUM_DIGITS) {
        return mo_error_set(error, MO_E_CORRUPT,
                            "%s: key \"" PACK_KEY_CHECKSUMS "\": expected 16 digits for each of %zu tensors",
                            checkpoint->path, n);
    }
    const struct tensor **sorted = malloc(n * sizeof *sorted);
    if (!sorted) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", checkpoint->path);
    for (size_t i = 0; i < n; i++) sorted[i] = &checkpoint->tensors[i];
    qsort(sorted, n, sizeof *sorted, by_position);
    int code = check_all(checkpoint, sorted, checksums, error);
    free(sorted);
    return code;
}
