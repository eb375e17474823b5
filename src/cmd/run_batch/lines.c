#include "cmd/run_batch/lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK_BYTES = 1 << 16 };

/* Room for a block behind what is there. */
static int make_room(struct batch_lines *l, struct mo_error *error) {
    if (l->begin > 0) memmove(l->data, l->data + l->begin, l->end - l->begin);
    l->end -= l->begin;
    l->begin = 0;
    if (l->capacity - l->end >= BLOCK_BYTES) return 0;
    size_t capacity = 2 * l->capacity + BLOCK_BYTES;
    char *grown = realloc(l->data, capacity);
    if (!grown) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for a line of %zu bytes", l->path, capacity);
    l->data = grown;
    l->capacity = capacity;
    return 0;
}

static int fill(struct batch_lines *l, struct mo_error *error) {
    ssize_t got;
    int code = make_room(l, error);
    if (code) return code;
    do got = read(l->fd, l->data + l->end, BLOCK_BYTES);
    while (got < 0 && errno == EINTR);
    if (got < 0) return mo_error_set(error, MO_E_IO, "%s: cannot read: %s", l->path, strerror(errno));
    l->end += (size_t)got;
    l->at_end = got == 0;
    return 0;
}

static void drop(struct batch_lines *l, size_t size) {
    l->begin += size;
    l->at += (int64_t)size;
    l->n_scanned = 0;
}

/* The next newline behind `begin`, or NULL if it has not been read. */
static char *find_end(struct batch_lines *l) {
    size_t size = l->end - l->begin;
    char *found = size > l->n_scanned ? memchr(l->data + l->begin + l->n_scanned, '\n', size - l->n_scanned) : NULL;
    l->n_scanned = size;
    return found;
}

static void take(struct batch_lines *l, struct batch_line *line, size_t size) {
    line->text = l->data + l->begin;
    line->size = line->is_too_long ? 0 : size;
    if (line->size > 0 && line->text[line->size - 1] == '\r') line->size--;
    drop(l, size + line->has_end);
    line->next = l->at;
}

int batch_lines_next(struct batch_lines *l, struct batch_line *line, struct mo_error *error) {
    *line = (struct batch_line){.at = l->at};
    for (;;) {
        const char *end = find_end(l);
        size_t size = end ? (size_t)(end - (l->data + l->begin)) : l->end - l->begin;
        if (size > l->max_bytes) line->is_too_long = true;
        if (end || l->at_end) {
            line->has_end = end != NULL;
            bool is_there = end || size > 0 || line->is_too_long;
            if (is_there) take(l, line, size);
            return is_there;
        }
        if (line->is_too_long) drop(l, size);
        int code = fill(l, error);
        if (code) return code;
    }
}

int batch_lines_rewind(struct batch_lines *l, struct mo_error *error) {
    if (lseek(l->fd, 0, SEEK_SET) < 0) {
        return mo_error_set(error, MO_E_IO, "%s: cannot go back to its beginning: %s", l->path, strerror(errno));
    }
    l->begin = l->end = l->n_scanned = 0;
    l->at = 0;
    l->at_end = false;
    return 0;
}

void batch_lines_free(struct batch_lines *l) {
    free(l->data);
    *l = (struct batch_lines){0};
}
