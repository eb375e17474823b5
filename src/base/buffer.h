/* base/buffer.h - bytes that grow at the end: bodies coming in, frames and texts going out. Includes:
 * nothing. */
#ifndef MOEBIUS_BASE_BUFFER_H
#define MOEBIUS_BASE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

/* Zero it before use. `failed` stays set once memory ran out, so that callers may check at the end. */
struct buffer {
    char *data; /* [size] */
    size_t size, capacity;
    bool failed;
};

void buffer_add(struct buffer *buffer, const void *data, size_t size);
void buffer_add_text(struct buffer *buffer, const char *text);
void buffer_printf(struct buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Drops the first `size` bytes. */
void buffer_consume(struct buffer *buffer, size_t size);
void buffer_free(struct buffer *buffer); /* accepts a zeroed one; zeroes it again */

#endif
