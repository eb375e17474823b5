#include "cmd/top/text.h"

#include <stdlib.h>
#include <string.h>

static bool is_name_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == ':';
}

static bool is_name(char c) {
    return is_name_start(c) || (c >= '0' && c <= '9');
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r';
}

static const char *skip_blanks(const char *at, const char *end) {
    while (at < end && is_blank(*at)) at++;
    return at;
}

static const char *skip_name(const char *at, const char *end) {
    if (at == end || !is_name_start(*at)) return at;
    while (at < end && is_name(*at)) at++;
    return at;
}

/* From a value's first quote to behind its last one; NULL: there is none. */
static const char *skip_value(const char *at, const char *end) {
    if (at == end || *at != '"') return NULL;
    for (at++; at < end && *at != '"'; at++) {
        if (*at == '\\' && ++at == end) return NULL;
    }
    return at < end ? at + 1 : NULL;
}

struct label {
    const char *name, *value; /* [name_size], [value_size]: with its escapes, without its quotes */
    size_t name_size, value_size;
};

/* One `name="value"` and the comma behind it. Returns what follows; NULL: that is no label. */
static const char *read_label(const char *at, const char *end, struct label *label) {
    label->name = skip_blanks(at, end);
    at = skip_name(label->name, end);
    label->name_size = (size_t)(at - label->name);
    at = skip_blanks(at, end);
    if (label->name_size == 0 || at == end || *at != '=') return NULL;
    label->value = skip_blanks(at + 1, end) + 1;
    at = skip_value(label->value - 1, end);
    if (!at) return NULL;
    label->value_size = (size_t)(at - 1 - label->value);
    at = skip_blanks(at, end);
    if (at < end && *at == ',') return skip_blanks(at + 1, end);
    return at == end || *at == '}' ? at : NULL;
}

/* Labels from behind the brace to behind the other one; NULL: they are not well-formed. */
static const char *read_labels(const char *at, const char *end, struct top_line *line) {
    struct label label;
    line->labels = at;
    at = skip_blanks(at, end);
    while (at && at < end && *at != '}') at = read_label(at, end, &label);
    if (!at || at == end) return NULL;
    line->labels_size = (size_t)(at - line->labels);
    return at + 1;
}

bool top_text_number(const char *text, size_t size, double *value) {
    char copy[64], *end;
    if (size == 0 || size >= sizeof copy || is_blank(*text)) return false;
    memcpy(copy, text, size);
    copy[size] = 0;
    *value = strtod(copy, &end);
    return end == copy + size;
}

static bool read_number(const char **at, const char *end, double *value) {
    const char *start = *at;
    while (*at < end && !is_blank(**at)) ++*at;
    return top_text_number(start, (size_t)(*at - start), value);
}

static bool read_line(const char *at, const char *end, struct top_line *line) {
    double time;
    *line = (struct top_line){.name = at, .labels = at};
    at = skip_name(at, end);
    line->name_size = (size_t)(at - line->name);
    if (line->name_size == 0) return false;
    at = skip_blanks(at, end);
    if (at < end && *at == '{' && !(at = read_labels(at + 1, end, line))) return false;
    at = skip_blanks(at, end);
    if (!read_number(&at, end, &line->value)) return false;
    at = skip_blanks(at, end);
    return at == end || *at == '#' || read_number(&at, end, &time);
}

bool top_text_next(struct top_text *text, struct top_line *line) {
    while (text->at < text->end) {
        const char *start = skip_blanks(text->at, text->end);
        const char *end = memchr(text->at, '\n', (size_t)(text->end - text->at));
        if (!end) end = text->end;
        text->at = end < text->end ? end + 1 : end;
        if (start >= end || *start == '#') continue;
        if (read_line(start, end, line)) return true;
        text->n_malformed++;
    }
    return false;
}

bool top_line_is(const struct top_line *line, const char *name) {
    return strlen(name) == line->name_size && memcmp(line->name, name, line->name_size) == 0;
}

static void copy_value(const struct label *label, char *out, size_t size) {
    size_t n = 0;
    for (size_t i = 0; i < label->value_size && n + 1 < size; i++) {
        char c = label->value[i];
        if (c == '\\' && i + 1 < label->value_size) {
            c = label->value[++i];
            if (c == 'n') c = '\n';
        }
        out[n++] = c;
    }
    out[n] = 0;
}

bool top_line_label(const struct top_line *line, const char *name, char *out, size_t size) {
    struct label label;
    const char *at = line->labels, *end = line->labels + line->labels_size;
    size_t name_size = strlen(name);
    while (at && at < end && (at = read_label(at, end, &label))) {
        if (label.name_size != name_size || memcmp(label.name, name, name_size) != 0) continue;
        copy_value(&label, out, size);
        return true;
    }
    return false;
}
