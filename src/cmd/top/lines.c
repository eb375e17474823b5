#include "cmd/top/lines.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/utf8.h"

/* Bytes of the first `cols` characters, and how many there are. */
static size_t cut(const char *text, int cols, int *n) {
    const uint8_t *bytes = (const uint8_t *)text;
    size_t size = strlen(text), at = 0, length;
    for (*n = 0; at < size && *n < cols; ++*n, at += length) {
        if (utf8_next(bytes + at, size - at, &length) == UTF8_INCOMPLETE) break;
    }
    return at;
}

int top_columns(const char *text) {
    int n;
    cut(text, TOP_LINE_BYTES, &n);
    return n;
}

void top_lines_new(struct top_lines *lines) {
    if (lines->n < TOP_LINES_MAX) lines->text[lines->n++][0] = 0;
}

static char *current(struct top_lines *lines) {
    return lines->text[lines->n - 1];
}

void top_lines_add(struct top_lines *lines, const char *format, ...) {
    char *line = current(lines);
    size_t size = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + size, TOP_LINE_BYTES - size, format, arguments);
    va_end(arguments);
}

void top_lines_at(struct top_lines *lines, int col) {
    int n = top_columns(current(lines)), blanks = col > n ? col - n : n > 0;
    top_lines_add(lines, "%*s", blanks, "");
}

void top_lines_right(struct top_lines *lines, int end, const char *text) {
    top_lines_at(lines, end - top_columns(text));
    top_lines_add(lines, "%s", text);
}

/* Which lines go when there are `rows` only: blank ones from the bottom. */
static void drop_blanks(struct top_lines *lines, int rows) {
    for (int i = lines->n - 1; i > 0 && lines->n > rows; i--) {
        if (lines->text[i][0]) continue;
        memmove(lines->text[i], lines->text[i + 1], (size_t)(lines->n - 1 - i) * TOP_LINE_BYTES);
        lines->n--;
    }
}

void top_lines_write(struct top_lines *lines, int rows, struct buffer *out) {
    if (rows > 0) drop_blanks(lines, rows);
    for (int i = 0; i < lines->n && (rows <= 0 || i < rows); i++) {
        int n;
        char *line = lines->text[i];
        size_t size = cut(line, lines->cols, &n);
        while (size > 0 && line[size - 1] == ' ') size--;
        buffer_add(out, line, size);
        buffer_add(out, "\n", 1);
    }
}
