/* base/error.h - how every module reports failure.
 *
 * A function that can fail returns 0 or a negative `enum mo_code` and writes one clear sentence into a
 * caller-owned `struct mo_error`: which file, which tensor or key, what was expected, what was found.
 * Only user input, files and the machine can cause errors; a programmer's mistake is an assert.
 * Includes: nothing of the project. */
#ifndef MOEBIUS_BASE_ERROR_H
#define MOEBIUS_BASE_ERROR_H

#define MO_CODES(X)                                                                                                    \
    X(INVALID, 1, "invalid input")                                                                                     \
    X(NOT_FOUND, 2, "not found")                                                                                       \
    X(IO, 3, "input/output error")                                                                                     \
    X(NO_MEMORY, 4, "out of memory")                                                                                   \
    X(UNSUPPORTED, 5, "not supported")                                                                                 \
    X(CORRUPT, 6, "damaged file")                                                                                      \
    X(LIMIT, 7, "limit exceeded")                                                                                      \
    X(NUMERIC, 8, "not a finite number")                                                                               \
    X(CANCELLED, 9, "cancelled")                                                                                       \
    X(INTERNAL, 10, "internal error")

#define MO_CODE_ENUM(name, number, text) MO_E_##name = -(number),
enum mo_code { MO_OK = 0, MO_CODES(MO_CODE_ENUM) };
#undef MO_CODE_ENUM

struct mo_error {
    int code;           /* 0 or an enum mo_code */
    char message[1024]; /* one sentence, UTF-8, NUL-terminated, cut if too long */
};

/* Fills `error` (may be NULL) and returns `code`, so that a caller can write
 * `return mo_error_set(error, MO_E_CORRUPT, "%s: ...", path);`. */
int mo_error_set(struct mo_error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "PREFIX: " before the message already in `error`; returns its code. */
int mo_error_prefix(struct mo_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The code's name in words ("damaged file"). */
const char *mo_code_text(int code);

#endif
