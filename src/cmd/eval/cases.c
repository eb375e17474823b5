#include "cmd/eval/cases.h"

#include <stdlib.h>
#include <string.h>
#include "sched/sample.h"
#include "text/fim.h"

enum { MIN_LINE_CHARACTERS = 8, SIDE_BYTES = 2400, TAB_COLUMNS = 8 };

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\f' || c == '\v';
}

static const char *line_end(const char *at, const char *end) {
    const char *newline = memchr(at, '\n', (size_t)(end - at));
    return newline ? newline : end;
}

/* ---- which lines ---- */

static bool is_long_enough(const char *line, size_t size) {
    int n = 0;
    for (size_t i = 0; i < size; i++) n += !is_blank(line[i]) && ((uint8_t)line[i] & 0xC0) != 0x80;
    return n >= MIN_LINE_CHARACTERS;
}

/* Every bracket that opens closes. Brackets in strings count too: such a line may be left out, which costs nothing. */
static bool has_closed_brackets(const char *line, size_t size) {
    int depth = 0;
    for (size_t i = 0; i < size; i++) {
        depth += line[i] == '(' || line[i] == '[' || line[i] == '{';
        depth -= line[i] == ')' || line[i] == ']' || line[i] == '}';
    }
    return depth == 0;
}

static bool skip_word(const char **at, size_t *size, const char *word) {
    size_t n = strlen(word);
    if (*size < n || memcmp(*at, word, n)) return false;
    *at += n;
    *size -= n;
    return true;
}

static bool is_def(const char *line, size_t size) {
    while (size > 0 && is_blank(*line)) line++, size--;
    while (size > 0 && is_blank(line[size - 1])) size--;
    skip_word(&line, &size, "async ");
    return skip_word(&line, &size, "def ") && memchr(line, '(', size) && line[size - 1] == ':' &&
           has_closed_brackets(line, size);
}

static int add_case(struct eval_cases *cases, struct eval_case one, struct mo_error *error) {
    if (cases->n == cases->capacity) {
        int capacity = cases->capacity * 2 + 256;
        struct eval_case *grown = realloc(cases->items, (size_t)capacity * sizeof *grown);
        if (!grown) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d lines", capacity);
        cases->items = grown;
        cases->capacity = capacity;
    }
    cases->items[cases->n++] = one;
    return 0;
}

static int compare_lines(const void *a, const void *b) {
    const struct eval_case *x = a, *y = b;
    size_t n_x = x->end - x->begin, n_y = y->end - y->begin;
    int order = memcmp(x->document->text + x->begin, y->document->text + y->begin, n_x < n_y ? n_x : n_y);
    return order ? order : (n_x > n_y) - (n_x < n_y);
}

/* Of the cases from `first` on, all of one document, keeps those whose line no other has. */
static void keep_unique(struct eval_cases *cases, int first) {
    int kept = first, n = cases->n;
    struct eval_case *items = cases->items;
    if (n - first < 2) return;
    qsort(items + first, (size_t)(n - first), sizeof *items, compare_lines);
    for (int i = first, same; i < n; i += same) {
        for (same = 1; i + same < n && compare_lines(&items[i], &items[i + same]) == 0;) same++;
        if (same == 1) items[kept++] = items[i];
    }
    cases->n = kept;
}

static int find_in_document(struct eval_cases *cases, const struct eval_document *document, enum eval_kind kind,
                            struct mo_error *error) {
    const char *text = document->text, *end = text + document->size;
    int first = cases->n, code = 0;
    for (const char *at = text, *stop; at < end && !code; at = stop + 1) {
        stop = line_end(at, end);
        size_t size = (size_t)(stop - at);
        bool fits = kind == EVAL_DEF ? stop < end && is_def(at, size) : is_long_enough(at, size);
        if (!fits) continue;
        const struct eval_case one = {.document = document, .begin = (size_t)(at - text), .end = (size_t)(stop - text)};
        code = add_case(cases, one, error);
    }
    if (!code && kind == EVAL_LINE) keep_unique(cases, first);
    return code;
}

/* Moves `count` of the cases, drawn at random, to the front, and drops the rest. */
static void draw(struct eval_cases *cases, int count, uint64_t seed, enum eval_kind kind) {
    if (count > cases->n) count = cases->n;
    for (int i = 0; i < count; i++) {
        uint64_t random = sample_random(seed, (uint32_t)kind, (uint32_t)i);
        int other = i + (int)(random * (uint64_t)(cases->n - i) >> 32);
        struct eval_case one = cases->items[i];
        cases->items[i] = cases->items[other];
        cases->items[other] = one;
    }
    cases->n = count;
}

int eval_cases_draw(struct eval_cases *cases, const struct eval_documents *documents, enum eval_kind kind, int count,
                    uint64_t seed, struct mo_error *error) {
    int code = 0;
    for (int i = 0; i < documents->n && !code; i++) code = find_in_document(cases, &documents->items[i], kind, error);
    if (!code) draw(cases, count, seed, kind);
    return code;
}

void eval_cases_free(struct eval_cases *cases) {
    free(cases->items);
    *cases = (struct eval_cases){0};
}

/* ---- prompts ---- */

/* Where whole lines begin that take at most `bytes` before `begin`, which begins a line. */
static size_t lines_before(const char *text, size_t begin, size_t bytes) {
    if (begin <= bytes) return 0;
    size_t at = begin - bytes;
    while (at < begin && text[at - 1] != '\n') at++;
    return at;
}

/* Where whole lines end that take at most `bytes` from `end`, where a line ends. */
static size_t lines_after(const char *text, size_t size, size_t end, size_t bytes) {
    if (size - end <= bytes) return size;
    size_t at = end + bytes;
    while (at > end && text[at - 1] != '\n') at--;
    return at;
}

static int encode_case(const struct eval_case *one, enum eval_kind kind, const struct tokenizer *tokenizer, size_t side,
                       struct token_list *out, struct mo_error *error) {
    const struct eval_document *d = one->document;
    if (kind == EVAL_LINE) {
        size_t from = lines_before(d->text, one->begin, side), to = lines_after(d->text, d->size, one->end, side);
        return fim_encode(tokenizer, d->text + from, one->begin - from, d->text + one->end, to - one->end, out, error);
    }
    int code = tokenizer_bos(tokenizer) >= 0 ? token_list_push(out, tokenizer_bos(tokenizer), error) : 0;
    size_t from = lines_before(d->text, one->begin, 2 * side);
    return code ? code : tokenizer_encode(tokenizer, d->text + from, one->end + 1 - from, false, out, error);
}

int eval_case_prompt(const struct eval_case *one, enum eval_kind kind, const struct tokenizer *tokenizer,
                     int max_tokens, struct token_list *out, struct mo_error *error) {
    for (size_t side = SIDE_BYTES;; side /= 2) {
        out->n = 0;
        int code = encode_case(one, kind, tokenizer, side, out, error);
        if (code || (int64_t)out->n <= max_tokens) return code;
        if (side == 0) break;
    }
    out->n = 0;
    return 0;
}

/* ---- functions ---- */

int eval_indent(const char *line, size_t size) {
    int columns = 0;
    for (size_t i = 0; i < size && (line[i] == ' ' || line[i] == '\t'); i++) {
        columns = line[i] == ' ' ? columns + 1 : (columns / TAB_COLUMNS + 1) * TAB_COLUMNS;
    }
    return columns;
}

static bool is_blank_line(const char *line, size_t size) {
    while (size > 0 && is_blank(*line)) line++, size--;
    return size == 0;
}

size_t eval_function_end(const char *text, size_t size, int indent, bool is_ended, bool *is_closed) {
    *is_closed = false;
    if (size == 0) return 0;
    const char *end = text + size;
    for (const char *at = text, *stop; at < end; at = stop + 1) {
        stop = line_end(at, end);
        size_t n = (size_t)(stop - at);
        *is_closed = !is_blank_line(at, n) && eval_indent(at, n) <= indent;
        if (*is_closed || (stop == end && !is_ended)) return (size_t)(at - text);
        if (stop == end) break;
    }
    return size;
}

int eval_count_lines(const char *text, size_t size) {
    int n = 0;
    if (size == 0) return 0;
    for (const char *at = text, *end = text + size, *stop; at < end; at = stop + 1) {
        stop = line_end(at, end);
        n += !is_blank_line(at, (size_t)(stop - at));
    }
    return n;
}
