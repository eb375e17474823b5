#include "cmd/top/format.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static struct top_text_of format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));
static struct top_text_of format(const char *pattern, ...) {
    struct top_text_of out;
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(out.text, sizeof out.text, pattern, arguments);
    va_end(arguments);
    return out;
}

/* Three digits and a prefix, from `units`, a thousand apart. */
static struct top_text_of scaled(double value, const char *const *units, int n_units) {
    int i = 0;
    while (i + 1 < n_units && fabs(value) >= 999.5) {
        value /= 1000;
        i++;
    }
    if (fabs(value) >= 1e6) return format("%.3g %s", value, units[i]);
    return format("%.*f %s", fabs(value) < 9.995 ? 2 : fabs(value) < 99.95 ? 1 : 0, value, units[i]);
}

struct top_text_of top_whole(double value) {
    struct top_text_of out = {{0}};
    char digits[32];
    if (isnan(value)) return format("-");
    if (fabs(value) >= 1e15) return format("%.3g", value);
    int n = snprintf(digits, sizeof digits, "%.0f", value), at = 0;
    for (int i = 0; i < n; i++) {
        bool is_group = i > 0 && (n - i) % 3 == 0 && digits[i - 1] != '-';
        if (is_group) out.text[at++] = ',';
        out.text[at++] = digits[i];
    }
    return out;
}

struct top_text_of top_number(double value) {
    static const char *const UNITS[] = {"k", "M", "G", "T"};
    if (isnan(value)) return format("-");
    if (value == 0) return format("0");
    if (fabs(value) >= 9999.5) return scaled(value / 1000, UNITS, 4);
    if (fabs(value) >= 99.95) return top_whole(value);
    return format("%.*f", fabs(value) < 9.995 ? 2 : 1, value);
}

struct top_text_of top_bytes(double bytes) {
    static const char *const UNITS[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    if (isnan(bytes)) return format("-");
    if (fabs(bytes) < 999.5) return format("%.0f B", bytes);
    return scaled(bytes, UNITS, 6);
}

struct top_text_of top_percent(double share) {
    double percent = 100 * share;
    if (isnan(share)) return format("-");
    if (percent > 9e5) return format("%.3g %%", percent);
    return format("%.*f %%", (percent > 0 && percent < 9.95) || (percent >= 98.95 && percent < 100) ? 1 : 0, percent);
}

struct top_text_of top_seconds(double seconds, bool is_more) {
    const char *more = is_more ? ">" : "";
    if (isnan(seconds)) return format("-");
    if (fabs(seconds) >= 1e6) return format("%s%.3g s", more, seconds);
    if (seconds >= 0.9995) return format("%s%.*f s", more, seconds < 9.995 ? 2 : seconds < 99.95 ? 1 : 0, seconds);
    double ms = seconds * 1e3;
    return format("%s%.*f ms", more, ms < 9.995 ? 2 : ms < 99.95 ? 1 : 0, ms);
}

struct top_text_of top_age(double seconds) {
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e11) return format("-");
    long s = (long)seconds;
    if (s < 60) return format("%ld s", s);
    if (s < 3600) return format("%ld min", s / 60);
    if (s < 86400) return format("%ld h %ld min", s / 3600, s % 3600 / 60);
    return format("%ld d %ld h", s / 86400, s % 86400 / 3600);
}

static const char *const BLOCKS[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
static const char *const ASCII_BLOCKS[] = {" ", "_", ".", ":", "-", "=", "+", "*", "#"};
enum { HEIGHT = sizeof BLOCKS / sizeof *BLOCKS - 1 };

static char *add_text(char *out, const char *text) {
    size_t n = strlen(text);
    memcpy(out, text, n + 1);
    return out + n;
}

void top_bar(char *out, int width, double share, bool is_utf8) {
    int n = isnan(share) ? 0 : (int)lround(fmin(fmax(share, 0), 1) * width);
    if (n == 0 && share > 0 && width > 0) n = 1; /* a little is not nothing */
    *out = 0;
    for (int i = 0; i < width; i++) out = add_text(out, i < n ? is_utf8 ? "█" : "#" : is_utf8 ? "░" : ".");
}

void top_spark(char *out, const double *values, int n, bool is_utf8) {
    const char *const *blocks = is_utf8 ? BLOCKS : ASCII_BLOCKS;
    double highest = 0;
    for (int i = 0; i < n; i++) {
        if (isfinite(values[i])) highest = fmax(highest, values[i]);
    }
    *out = 0;
    for (int i = 0; i < n; i++) {
        int height = 0;
        if (isfinite(values[i])) height = highest > 0 ? (int)ceil(fmax(values[i], 0) / highest * HEIGHT) : 0;
        if (isfinite(values[i]) && height == 0) height = 1; /* a flat line: it was looked at */
        out = add_text(out, blocks[height]);
    }
}
