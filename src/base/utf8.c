#include "base/utf8.h"

#include <stdbool.h>
#include <string.h>

/* How many bytes a lead byte asks for, and which second bytes it allows: this is where overlong forms,
 * surrogates and code points beyond U+10FFFF are ruled out. */
struct lead {
    size_t length; /* 0: no lead byte */
    uint8_t second_min, second_max;
};

static struct lead lead_of(uint8_t byte) {
    if (byte < 0x80) return (struct lead){1, 0, 0};
    if (byte >= 0xC2 && byte <= 0xDF) return (struct lead){2, 0x80, 0xBF};
    if (byte == 0xE0) return (struct lead){3, 0xA0, 0xBF};
    if (byte == 0xED) return (struct lead){3, 0x80, 0x9F};
    if (byte >= 0xE1 && byte <= 0xEF) return (struct lead){3, 0x80, 0xBF};
    if (byte == 0xF0) return (struct lead){4, 0x90, 0xBF};
    if (byte >= 0xF1 && byte <= 0xF3) return (struct lead){4, 0x80, 0xBF};
    if (byte == 0xF4) return (struct lead){4, 0x80, 0x8F};
    return (struct lead){0, 0, 0};
}

enum utf8_kind utf8_next(const uint8_t *text, size_t n, size_t *length) {
    struct lead lead = lead_of(text[0]);
    if (lead.length == 0) {
        *length = 1;
        return UTF8_INVALID;
    }
    for (size_t i = 1; i < lead.length; i++) {
        *length = i;
        if (i == n) return UTF8_INCOMPLETE;
        uint8_t min = i == 1 ? lead.second_min : 0x80, max = i == 1 ? lead.second_max : 0xBF;
        if (text[i] < min || text[i] > max) return UTF8_INVALID;
    }
    *length = lead.length;
    return UTF8_VALID;
}

size_t utf8_valid_prefix(const uint8_t *text, size_t n) {
    size_t at = 0;
    while (at < n) {
        uint64_t word;
        if (n - at >= sizeof word) { /* eight ASCII bytes at a time */
            memcpy(&word, text + at, sizeof word);
            if ((word & 0x8080808080808080u) == 0) {
                at += sizeof word;
                continue;
            }
        }
        size_t length;
        if (utf8_next(text + at, n - at, &length) != UTF8_VALID) return at;
        at += length;
    }
    return n;
}

uint32_t utf8_code_point(const uint8_t *text, size_t length) {
    static const uint8_t lead_bits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t code = text[0] & (uint32_t)lead_bits[length];
    for (size_t i = 1; i < length; i++) code = code << 6 | (text[i] & 0x3Fu);
    return code;
}

static size_t replacement_put(char *out) {
    memcpy(out, "\xEF\xBF\xBD", 3);
    return 3;
}

size_t utf8_lossy_push(uint8_t held[4], int *n_held, const uint8_t *bytes, size_t n, char *out) {
    size_t written = 0;
    for (size_t i = 0; i < n; i++) {
        held[(*n_held)++] = bytes[i];
        size_t length;
        enum utf8_kind kind = utf8_next(held, (size_t)*n_held, &length);
        if (kind == UTF8_INVALID && length < (size_t)*n_held) {
            /* The new byte does not continue what was held: that part is over, and the byte may begin
             * another. */
            written += replacement_put(out + written);
            held[0] = bytes[i];
            *n_held = 1;
            kind = utf8_next(held, 1, &length);
        }
        if (kind == UTF8_INCOMPLETE) continue;
        if (kind == UTF8_VALID) memcpy(out + written, held, length);
        written += kind == UTF8_VALID ? length : replacement_put(out + written);
        *n_held = 0;
    }
    return written;
}

static bool is_control(const uint8_t *text, size_t length) {
    uint32_t code = utf8_code_point(text, length);
    return code < 0x20 || (code >= 0x7F && code < 0xA0);
}

void utf8_clean(char *text) {
    uint8_t *at = (uint8_t *)text;
    for (size_t n = strlen(text), length; n > 0; at += length, n -= length) {
        enum utf8_kind kind = utf8_next(at, n, &length);
        if (kind == UTF8_INCOMPLETE) {
            *at = 0;
            return;
        }
        if (kind == UTF8_INVALID || is_control(at, length)) memset(at, '?', length);
    }
}
