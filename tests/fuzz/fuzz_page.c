/* tests/fuzz/fuzz_page.c - a file of the cache on disk is refused with a message, or is what it says: written again from what was
 * read, it has the same bytes. Names are read and written likewise. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "cache/page_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_file(const uint8_t *data, size_t size) {
    struct page_address key;
    struct page_id id;
    struct mo_error error = {0};
    uint64_t checksum;
    uint8_t again[PAGE_HEADER_BYTES];
    memset(key.bytes, 7, sizeof key.bytes);
    size_t bytes = size > PAGE_HEADER_BYTES ? size - PAGE_HEADER_BYTES : 0;
    int code = page_header_read(data, size, &key, bytes, "fuzz.page", &id, &checksum, &error);
    if (code) {
        if (error.code != code || error.message[0] == 0) abort();
        return;
    }
    code = page_check(data, data + PAGE_HEADER_BYTES, &key, bytes, &id, "fuzz.page", &error);
    if ((code == 0) != (XXH3_64bits(data + PAGE_HEADER_BYTES, bytes) == checksum)) abort();
    if (code) return;
    page_header_write(&key, &id, data + PAGE_HEADER_BYTES, bytes, again);
    /* Between the fields and the checksum are zeros when we write it. */
    if (memcmp(again, data, 32) != 0) abort();
    id.tokens[0]++;
    if (page_check(data, data + PAGE_HEADER_BYTES, &key, bytes, &id, "fuzz.page", &error) != MO_E_CORRUPT) abort();
}

static void check_name(const uint8_t *data, size_t size) {
    char name[PAGE_NAME_MAX * 2], again[PAGE_NAME_MAX];
    struct page_address address;
    uint32_t depth;
    if (size >= sizeof name) size = sizeof name - 1;
    memcpy(name, data, size);
    name[size] = 0;
    name[strcspn(name, "\n")] = 0;
    if (!page_name_read(name, &address, &depth)) return;
    page_name_write(&address, depth, again);
    if (strcmp(name, again) != 0) abort();
}

/* As it is, and with both checksums put right: otherwise almost no changed file would get past them. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    check_name(data, size);
    check_file(data, size);
    if (size < PAGE_HEADER_BYTES) return 0;
    uint8_t *copy = malloc(size);
    if (!copy) abort();
    memcpy(copy, data, size);
    uint64_t sum = XXH3_64bits(copy, PAGE_HEADER_BYTES - 8);
    for (int i = 0; i < 8; i++) copy[PAGE_HEADER_BYTES - 8 + i] = (uint8_t)(sum >> (8 * i));
    check_file(copy, size);
    free(copy);
    return 0;
}
