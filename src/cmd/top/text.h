/* cmd/top/text.h - Prometheus' text format, line by line: `name{label="value",...} number [time]`. Comments and blank lines are passed
 * over, lines that are none of these are counted and passed over: a monitor shows what it can read. OpenMetrics' exemplars
 * behind a number are left alone. Pure: nothing is copied, nothing is allocated. Includes: nothing of the project. */
#ifndef MOEBIUS_CMD_TOP_TEXT_H
#define MOEBIUS_CMD_TOP_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct top_text {
    const char *at, *end; /* what is left */
    int n_malformed;
};

struct top_line {
    const char *name;   /* [name_size] */
    const char *labels; /* [labels_size] between the braces, well-formed */
    size_t name_size, labels_size;
    double value; /* may be NaN or infinite */
};

/* The next sample; false: there is none. */
bool top_text_next(struct top_text *text, struct top_line *line);

bool top_line_is(const struct top_line *line, const char *name);

/* A label's value, without its escapes, cut to `size` - 1 bytes; false: the sample has no such label. */
bool top_line_label(const struct top_line *line, const char *label, char *out, size_t size);

/* A whole text [size] as a number: "1e3", "+Inf", "NaN". */
bool top_text_number(const char *text, size_t size, double *value);

#endif
