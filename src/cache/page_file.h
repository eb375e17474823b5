/* cache/page_file.h - one page of the latent cache as a file: what it holds, and how it is told from everything else.
 *
 * An address names a page by all that decides its bits: SHA-256 of the key (model, formats, arithmetic), then link by link of
 * the parent's address and the page's own tokens. It is the file's name, so a file that was made from something else is never
 * asked for. Nobody trusts a hash alone all the same: header and tokens are compared, and all bytes have a checksum.
 *
 *   magic | version | header bytes | key | root | depth | tokens in a page | parent | address | tokens | payload bytes |
 *   payload checksum | zeros | header checksum (the last 8 bytes), all little-endian; then the payload, as in memory
 *
 * Pure functions: any thread. Includes: base. */
#ifndef MOEBIUS_CACHE_PAGE_FILE_H
#define MOEBIUS_CACHE_PAGE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

enum {
    PAGE_FILE_VERSION = 1,
    PAGE_HEADER_BYTES = 512,
    PAGE_TOKENS_MAX = 64, /* sched/sched_disk.c asserts that it is a page's */
    PAGE_NAME_MAX = 96,
};

struct page_address {
    uint8_t bytes[32];
};

/* What a page is, apart from its bytes. */
struct page_id {
    struct page_address parent, address;
    uint64_t root;  /* which users share it; the scheduler's number */
    uint32_t depth; /* pages before it */
    int32_t tokens[PAGE_TOKENS_MAX];
};

/* The parent of first pages. */
struct page_address page_address_root(const struct page_address *key, uint64_t root);
struct page_address page_address_next(const struct page_address *parent, const int32_t tokens[PAGE_TOKENS_MAX]);
bool page_address_equal(const struct page_address *a, const struct page_address *b);

void page_header_write(const struct page_address *key, const struct page_id *id, const void *payload, size_t bytes,
                       uint8_t header[PAGE_HEADER_BYTES]);
/* Whether the header [size] is whole and describes `bytes` of payload made with `key`: MO_E_CORRUPT or MO_E_UNSUPPORTED says why
 * not. `path` is for the message. */
int page_header_read(const uint8_t *header, size_t size, const struct page_address *key, size_t bytes, const char *path,
                     struct page_id *id, uint64_t *checksum, struct mo_error *error);
/* The same for one page that is wanted, and its payload too. */
int page_check(const uint8_t header[PAGE_HEADER_BYTES], const void *payload, const struct page_address *key,
               size_t bytes, const struct page_id *wanted, const char *path, struct mo_error *error);

/* ADDRESS-DEPTH.page; false if `name` is none. */
void page_name_write(const struct page_address *address, uint32_t depth, char name[PAGE_NAME_MAX]);
bool page_name_read(const char *name, struct page_address *address, uint32_t *depth);

#endif
