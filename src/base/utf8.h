/* base/utf8.h - UTF-8 as the WHATWG decoder and Rust's from_utf8_lossy see it: each maximal ill-formed part
 * is one U+FFFD. Bytes that could still become a character are "incomplete", not wrong. Includes: nothing. */
#ifndef MOEBIUS_BASE_UTF8_H
#define MOEBIUS_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

enum utf8_kind {
    UTF8_VALID,      /* one whole character */
    UTF8_INCOMPLETE, /* the text ends inside a so far valid character */
    UTF8_INVALID,    /* a maximal ill-formed part */
};

/* Looks at the start of text [n], n >= 1. *length is what the character, the unfinished rest or the part
 * takes. */
enum utf8_kind utf8_next(const uint8_t *text, size_t n, size_t *length);

/* The offset of the first byte that is not part of well-formed text; n if there is none. */
size_t utf8_valid_prefix(const uint8_t *text, size_t n);

/* The code point of a valid character of `length` bytes. */
uint32_t utf8_code_point(const uint8_t *text, size_t length);

/* Decodes a stream: held [*n_held <= 3] carries an unfinished character from call to call. Writes at most
 * 3 * (*n_held + n) bytes to `out`; returns how many. */
size_t utf8_lossy_push(uint8_t held[4], int *n_held, const uint8_t *bytes, size_t n, char *out);

/* Makes a text of unknown origin fit for one line on a terminal and for JSON, in place: what is not UTF-8, and what could steer a
 * terminal, becomes '?'; an unfinished character at the end goes. */
void utf8_clean(char *text);

#endif
