/* base/error.h - how every module reports failure.
 *
 * A function that can fail returns 0 or a negative `enum mo_code` and writes one clear sentence into a
 * caller-owned `struct mo_error`: which file, which tensor or key, what was expected, what was found.
 * Only user input, files and the machine can cause errors; a programmer's mistake is an assert.
 * Includes: nothing of the project. */
#ifndef MOEBIUS_BASE_ERROR_H
#define MOEBIUS_BASE_ERROR_H

enum mo_code {
    MO_OK = 0,
    MO_E_INVALID = -1,
    MO_E_NOT_FOUND = -2,
    MO_E_IO = -3,
    MO_E_NO_MEMORY = -4,
    MO_E_UNSUPPORTED = -5,
    MO_E_CORRUPT = -6,
    MO_E_LIMIT = -7,
    MO_E_NUMERIC = -8, /* a number that is not finite */
    MO_E_CANCELLED = -9,
    MO_E_INTERNAL = -10,
};

struct mo_error {
    int code;           /* 0 or an enum mo_code */
    char message[1024]; /* one sentence, UTF-8, NUL-terminated, cut if too long */
};

/* Fills `error` (may be NULL) and returns `code`, so that a caller can write
 * `return mo_error_set(error, MO_E_CORRUPT, "%s: ...", path);`. */
int mo_error_set(struct mo_error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "PREFIX: " before the message already in `error`; returns its code. */
int mo_error_prefix(struct mo_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
