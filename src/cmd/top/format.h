/* cmd/top/format.h - figures as people read them: short, with their unit. NaN is "-". Pure. Includes: nothing of the project. */
#ifndef MOEBIUS_CMD_TOP_FORMAT_H
#define MOEBIUS_CMD_TOP_FORMAT_H

#include <stdbool.h>

struct top_text_of {
    char text[32];
};

struct top_text_of top_number(double value);  /* "0", "0.25", "12.3", "1,234", "12.3 k", "4.56 M" */
struct top_text_of top_whole(double value);   /* "1,234,567" */
struct top_text_of top_bytes(double bytes);   /* "1.23 GB" */
struct top_text_of top_percent(double share); /* "42 %", "99.4 %" */
struct top_text_of top_seconds(double seconds, bool is_more);
struct top_text_of top_age(double seconds); /* "5 s", "12 min", "3 h 12 min", "2 d 3 h" */

/* `width` columns, filled up to `share`; `out` has room for 3 * width + 1. */
void top_bar(char *out, int width, double share, bool is_utf8);
/* A column for each of values [n], the highest of them at full height, NaN a blank one; `out` has room for 3 * n + 1. */
void top_spark(char *out, const double *values, int n, bool is_utf8);

#endif
