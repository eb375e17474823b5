/* cmd/top/lines.h - lines of a screen: text at columns, counted in characters, not bytes. What does not fit is cut: lines at the right,
 * a screen first by its blank lines and then at the bottom. */
#ifndef MOEBIUS_CMD_TOP_LINES_H
#define MOEBIUS_CMD_TOP_LINES_H

#include "base/buffer.h"

enum { TOP_LINES_MAX = 40, TOP_LINE_BYTES = 2048 };
struct top_lines {
    char text[TOP_LINES_MAX][TOP_LINE_BYTES];
    int n, cols;
};

/* A new, empty line; the functions below write to the last one. */
void top_lines_new(struct top_lines *lines);
void top_lines_add(struct top_lines *lines, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Goes on at a column: blanks up to there, at least one if there is text already. */
void top_lines_at(struct top_lines *lines, int col);
/* A text that ends before a column. */
void top_lines_right(struct top_lines *lines, int end, const char *text);

int top_columns(const char *text);
void top_lines_write(struct top_lines *lines, int rows, struct buffer *out);

#endif
