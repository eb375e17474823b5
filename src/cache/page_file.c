#include "cache/page_file.h"

#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include "base/text.h"

static const char MAGIC[8] = "MOEBpage";

enum { TOKENS_BYTES = PAGE_TOKENS_MAX * 4, ADDRESS_BYTES = sizeof(struct page_address), DEPTH_DIGITS = 8 };

/* Where things are in the header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_HEADER_BYTES = 12,
    AT_KEY = 16,
    AT_ROOT = AT_KEY + ADDRESS_BYTES,
    AT_DEPTH = AT_ROOT + 8,
    AT_N_TOKENS = AT_DEPTH + 4,
    AT_PARENT = AT_N_TOKENS + 4,
    AT_ADDRESS = AT_PARENT + ADDRESS_BYTES,
    AT_TOKENS = AT_ADDRESS + ADDRESS_BYTES,
    AT_PAYLOAD_BYTES = AT_TOKENS + TOKENS_BYTES,
    AT_PAYLOAD_SUM = AT_PAYLOAD_BYTES + 8,
    AT_HEADER_SUM = PAGE_HEADER_BYTES - 8,
};
_Static_assert(AT_PAYLOAD_SUM + 8 <= AT_HEADER_SUM, "the header is too short");

static void put(uint8_t *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *in, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)in[i] << (8 * i);
    return value;
}

static struct page_address digest(const uint8_t *data, size_t size) {
    struct page_address address;
    SHA256(data, size, address.bytes);
    return address;
}

struct page_address page_address_root(const struct page_address *key, uint64_t root) {
    uint8_t text[sizeof MAGIC + ADDRESS_BYTES + 8];
    memcpy(text, MAGIC, sizeof MAGIC);
    memcpy(text + sizeof MAGIC, key->bytes, ADDRESS_BYTES);
    put(text + sizeof MAGIC + ADDRESS_BYTES, root, 8);
    return digest(text, sizeof text);
}

static void put_tokens(uint8_t *out, const int32_t *tokens) {
    for (int i = 0; i < PAGE_TOKENS_MAX; i++) put(out + (size_t)i * 4, (uint32_t)tokens[i], 4);
}

struct page_address page_address_next(const struct page_address *parent, const int32_t tokens[PAGE_TOKENS_MAX]) {
    uint8_t text[ADDRESS_BYTES + TOKENS_BYTES];
    memcpy(text, parent->bytes, ADDRESS_BYTES);
    put_tokens(text + ADDRESS_BYTES, tokens);
    return digest(text, sizeof text);
}

bool page_address_equal(const struct page_address *a, const struct page_address *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

void page_header_write(const struct page_address *key, const struct page_id *id, const void *payload, size_t bytes,
                       uint8_t header[PAGE_HEADER_BYTES]) {
    memset(header, 0, PAGE_HEADER_BYTES);
    memcpy(header + AT_MAGIC, MAGIC, sizeof MAGIC);
    put(header + AT_VERSION, PAGE_FILE_VERSION, 4);
    put(header + AT_HEADER_BYTES, PAGE_HEADER_BYTES, 4);
    memcpy(header + AT_KEY, key->bytes, ADDRESS_BYTES);
    put(header + AT_ROOT, id->root, 8);
    put(header + AT_DEPTH, id->depth, 4);
    put(header + AT_N_TOKENS, PAGE_TOKENS_MAX, 4);
    memcpy(header + AT_PARENT, id->parent.bytes, ADDRESS_BYTES);
    memcpy(header + AT_ADDRESS, id->address.bytes, ADDRESS_BYTES);
    put_tokens(header + AT_TOKENS, id->tokens);
    put(header + AT_PAYLOAD_BYTES, bytes, 8);
    put(header + AT_PAYLOAD_SUM, XXH3_64bits(payload, bytes), 8);
    put(header + AT_HEADER_SUM, XXH3_64bits(header, AT_HEADER_SUM), 8);
}

/* Numbers that must be these. */
static int check_numbers(const uint8_t *header, size_t bytes, const char *path, struct mo_error *error) {
    const struct {
        const char *name;
        int at, size;
        uint64_t expected;
    } numbers[] = {
        {"version", AT_VERSION, 4, PAGE_FILE_VERSION},
        {"header bytes", AT_HEADER_BYTES, 4, PAGE_HEADER_BYTES},
        {"tokens in a page", AT_N_TOKENS, 4, PAGE_TOKENS_MAX},
        {"payload bytes", AT_PAYLOAD_BYTES, 8, bytes},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        uint64_t found = get(header + numbers[i].at, numbers[i].size);
        if (found == numbers[i].expected) continue;
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: %s %llu, expected %llu", path, numbers[i].name,
                            (unsigned long long)found, (unsigned long long)numbers[i].expected);
    }
    return 0;
}

int page_header_read(const uint8_t *header, size_t size, const struct page_address *key, size_t bytes, const char *path,
                     struct page_id *id, uint64_t *checksum, struct mo_error *error) {
    if (size < PAGE_HEADER_BYTES) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: %zu bytes, its header alone has %d", path, size,
                            PAGE_HEADER_BYTES);
    }
    if (memcmp(header + AT_MAGIC, MAGIC, sizeof MAGIC) != 0) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: it does not begin as a page of a cache does", path);
    }
    if (get(header + AT_HEADER_SUM, 8) != XXH3_64bits(header, AT_HEADER_SUM)) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: the header's checksum is wrong", path);
    }
    int code = check_numbers(header, bytes, path, error);
    if (code) return code;
    if (memcmp(header + AT_KEY, key->bytes, ADDRESS_BYTES) != 0) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: made with another model or other settings", path);
    }
    id->root = get(header + AT_ROOT, 8);
    id->depth = (uint32_t)get(header + AT_DEPTH, 4);
    memcpy(id->parent.bytes, header + AT_PARENT, ADDRESS_BYTES);
    memcpy(id->address.bytes, header + AT_ADDRESS, ADDRESS_BYTES);
    for (int i = 0; i < PAGE_TOKENS_MAX; i++) id->tokens[i] = (int32_t)get(header + AT_TOKENS + (size_t)i * 4, 4);
    *checksum = get(header + AT_PAYLOAD_SUM, 8);
    return 0;
}

int page_check(const uint8_t header[PAGE_HEADER_BYTES], const void *payload, const struct page_address *key,
               size_t bytes, const struct page_id *wanted, const char *path, struct mo_error *error) {
    struct page_id id;
    uint64_t checksum;
    int code = page_header_read(header, PAGE_HEADER_BYTES, key, bytes, path, &id, &checksum, error);
    if (code) return code;
    bool same = page_address_equal(&id.address, &wanted->address) && page_address_equal(&id.parent, &wanted->parent) &&
                id.root == wanted->root && id.depth == wanted->depth &&
                memcmp(id.tokens, wanted->tokens, sizeof id.tokens) == 0;
    if (!same) return mo_error_set(error, MO_E_CORRUPT, "%s: it holds another page than its name says", path);
    if (XXH3_64bits(payload, bytes) != checksum) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: the checksum of its %zu bytes is wrong", path, bytes);
    }
    return 0;
}

void page_name_write(const struct page_address *address, uint32_t depth, char name[PAGE_NAME_MAX]) {
    text_print_hex(address->bytes, ADDRESS_BYTES, name);
    snprintf(name + (size_t)ADDRESS_BYTES * 2, PAGE_NAME_MAX - (size_t)ADDRESS_BYTES * 2, "-%0*u.page", DEPTH_DIGITS,
             depth);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool page_name_read(const char *name, struct page_address *address, uint32_t *depth) {
    for (int i = 0; i < ADDRESS_BYTES; i++) {
        int high = hex_digit(name[0]), low = high < 0 ? -1 : hex_digit(name[1]);
        if (low < 0) return false;
        address->bytes[i] = (uint8_t)(high * 16 + low);
        name += 2;
    }
    if (*name++ != '-') return false;
    *depth = 0;
    int digits = 0;
    for (; *name >= '0' && *name <= '9' && digits < DEPTH_DIGITS; name++, digits++) {
        *depth = *depth * 10 + (uint32_t)(*name - '0');
    }
    return digits == DEPTH_DIGITS && strcmp(name, ".page") == 0;
}
