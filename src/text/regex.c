#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum {
    PATTERN_BYTES_MAX = 1 << 16,
    /* Backtracking steps of one match. Honest expressions need a few for each byte at most; what is
     * exponential meets this limit soon enough. */
    MATCH_LIMIT = 10000000,
    MATCH_LIMIT_PER_BYTE = 8,
    HEAP_LIMIT_KIB = 65536,
};

/* Unicode's 25 White_Space code points, as the inside of a class. PCRE2's own \s would add U+180E. */
#define WHITE_SPACE                                                                                                    \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"               \
    "\\x{3000}"
#define NOT_WHITE_SPACE                                                                                                \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"                    \
    "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}"

struct regex {
    pcre2_code *code;
    /* Bytes that a match can start with, from PCRE2's study of the pattern: pieces without any are passed
     * over without a call. All of them if PCRE2 does not know, or if the match can be empty. */
    bool starts[256];
    bool can_be_empty;
};

struct regex_scratch {
    pcre2_match_data *data;
    pcre2_match_context *context;
};

struct translation {
    const char *in; /* [n] the pattern as the file has it */
    size_t n, at;
    char *out; /* [capacity] the pattern for PCRE2 */
    size_t size, capacity;
    bool in_class;
};

static void emit(struct translation *t, const char *text, size_t n) {
    memcpy(t->out + t->size, text, n);
    t->size += n;
}

static int refuse(const struct translation *t, const char *what, size_t n, struct mo_error *error) {
    return mo_error_set(error, MO_E_UNSUPPORTED, "regular expression: \"%.*s\" at byte %zu is not supported", (int)n,
                        what, t->at);
}

/* An escape: the letters that mean the same to both libraries pass, \s and \S are spelled out. */
static int translate_escape(struct translation *t, struct mo_error *error) {
    if (t->at + 1 == t->n) return refuse(t, "\\", 1, error);
    const char *escape = t->in + t->at;
    unsigned char c = (unsigned char)escape[1];
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (c == 's' || c == 'S') {
        const char *list = c == 's' ? WHITE_SPACE : NOT_WHITE_SPACE;
        if (!t->in_class) emit(t, "[", 1);
        emit(t, list, strlen(list));
        if (!t->in_class) emit(t, "]", 1);
    } else if (c >= 0x80) {
        emit(t, escape + 1, 1); /* the rest of the character follows as it is */
    } else if (letter && !strchr("dDpPnrtfeax", c) && (t->in_class || !strchr("AzZGKRX", c))) {
        return refuse(t, escape, 2, error);
    } else {
        emit(t, escape, 2);
    }
    t->at += 2;
    if (c == 0 || !strchr("pPx", c) || t->at == t->n || t->in[t->at] != '{') return 0;
    /* \p{...}: its braces are no repeat. */
    const char *brace = memchr(t->in + t->at, '}', t->n - t->at);
    if (!brace) return refuse(t, escape, 3, error);
    size_t n = (size_t)(brace + 1 - (t->in + t->at));
    emit(t, t->in + t->at, n);
    t->at += n;
    return 0;
}

/* "(": plain groups, look-around, atomic and named groups and (?i) mean the same to both. */
static int translate_group(struct translation *t, struct mo_error *error) {
    const char *rest = t->in + t->at + 1;
    size_t left = t->n - t->at - 1;
    if (left && rest[0] == '*') return refuse(t, "(*", 2, error);
    if (left && rest[0] == '?') {
        size_t i = 1;
        while (i < left && (rest[i] == 'i' || rest[i] == '-')) i++;
        if (i == left || rest[i] == 0 || !strchr(":=!><)", rest[i])) {
            return refuse(t, t->in + t->at, left < 3 ? left + 1 : 3, error);
        }
    }
    emit(t, "(", 1);
    t->at++;
    return 0;
}

static bool looking_at(const struct translation *t, const char *text) {
    size_t n = strlen(text);
    return t->n - t->at >= n && memcmp(t->in + t->at, text, n) == 0;
}

static int translate_class_byte(struct translation *t, struct mo_error *error) {
    char c = t->in[t->at];
    if (c == '[') return refuse(t, "[ inside [ ]", 12, error); /* Oniguruma nests classes, PCRE2 does not */
    if (looking_at(t, "&&")) return refuse(t, "&&", 2, error);
    if (c == ']') t->in_class = false;
    emit(t, &c, 1);
    t->at++;
    return 0;
}

static int translate_byte(struct translation *t, struct mo_error *error) {
    char c = t->in[t->at];
    if (c == '(') return translate_group(t, error);
    if (looking_at(t, "}+")) return refuse(t, "}+", 2, error); /* possessive to one, a repeat to the other */
    if (looking_at(t, "{,")) return refuse(t, "{,", 2, error);
    emit(t, &c, 1);
    t->at++;
    if (c != '[') return 0;
    t->in_class = true;
    if (looking_at(t, "^")) emit(t, t->in + t->at++, 1);
    if (looking_at(t, "]")) return refuse(t, "[]", 2, error);
    return 0;
}

static int translate(struct translation *t, struct mo_error *error) {
    while (t->at < t->n) {
        int code = t->in[t->at] == '\\' ? translate_escape(t, error)
                   : t->in_class        ? translate_class_byte(t, error)
                                        : translate_byte(t, error);
        if (code) return code;
    }
    return 0;
}

static int compile(struct regex *regex, const char *pattern, size_t size, bool literal, struct mo_error *error) {
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a regular expression");
    /* As Oniguruma: "^" and "$" match at every line, and only U+000A ends one. */
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_bsr(context, PCRE2_BSR_UNICODE);
    uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK;
    options |= literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    int number;
    PCRE2_SIZE at;
    regex->code = pcre2_compile((PCRE2_SPTR)pattern, size, options, &number, &at, context);
    pcre2_compile_context_free(context);
    if (regex->code) return 0;
    PCRE2_UCHAR text[256];
    if (pcre2_get_error_message(number, text, sizeof text) < 0) text[0] = 0;
    return mo_error_set(error, MO_E_INVALID, "the regular expression does not compile: %s", (const char *)text);
}

/* Which bytes a match can start with. */
static void study(struct regex *regex) {
    uint32_t can_be_empty = 0;
    const uint8_t *bitmap = NULL;
    pcre2_pattern_info(regex->code, PCRE2_INFO_MATCHEMPTY, &can_be_empty);
    pcre2_pattern_info(regex->code, PCRE2_INFO_FIRSTBITMAP, &bitmap);
    regex->can_be_empty = can_be_empty;
    for (unsigned i = 0; i < 256; i++) {
        bool continuation = i >= 0x80 && i <= 0xBF;
        regex->starts[i] = !continuation && (can_be_empty || !bitmap || (bitmap[i / 8] >> i % 8 & 1));
    }
}

int regex_create(struct regex **out, const char *pattern, size_t size, bool literal, struct mo_error *error) {
    static const char TRAILING[] = "\\s+$", TRAILING_LINEAR[] = "(?<!\\s)\\s+$";
    struct regex *regex = NULL;
    struct translation t = {.in = pattern, .n = size};
    int code;
    if (size > PATTERN_BYTES_MAX) {
        return mo_error_set(error, MO_E_LIMIT, "a regular expression of %zu bytes: at most %d are allowed", size,
                            PATTERN_BYTES_MAX);
    }
    if (!literal && size == strlen(TRAILING) && memcmp(pattern, TRAILING, size) == 0) {
        /* The same matches, but white space that something follows is looked at once, not once from each of
         * its characters, which without PCRE2's JIT would take quadratic time. */
        t.in = TRAILING_LINEAR;
        t.n = strlen(TRAILING_LINEAR);
    }
    t.capacity = (t.n + 1) * sizeof NOT_WHITE_SPACE;
    t.out = malloc(t.capacity);
    regex = calloc(1, sizeof *regex);
    if (!t.out || !regex) {
        code = mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a regular expression");
        goto fail;
    }
    if (literal) {
        emit(&t, pattern, size);
    } else if ((code = translate(&t, error))) {
        goto fail;
    }
    if ((code = compile(regex, t.out, t.size, literal, error))) goto fail;
    pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE); /* where there is no JIT, pcre2_match interprets */
    study(regex);
    free(t.out);
    *out = regex;
    return 0;

fail:
    free(t.out);
    regex_destroy(regex);
    return code;
}

void regex_destroy(struct regex *regex) {
    if (!regex) return;
    pcre2_code_free(regex->code);
    free(regex);
}

struct regex_scratch *regex_scratch_create(size_t size) {
    struct regex_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch) return NULL;
    scratch->data = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    if (!scratch->data || !scratch->context) {
        regex_scratch_destroy(scratch);
        return NULL;
    }
    uint64_t limit = MATCH_LIMIT + (uint64_t)MATCH_LIMIT_PER_BYTE * size;
    pcre2_set_match_limit(scratch->context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    pcre2_set_heap_limit(scratch->context, HEAP_LIMIT_KIB);
    return scratch;
}

void regex_scratch_destroy(struct regex_scratch *scratch) {
    if (!scratch) return;
    pcre2_match_data_free(scratch->data);
    pcre2_match_context_free(scratch->context);
    free(scratch);
}

static int match_at(const struct regex *regex, struct regex_scratch *scratch, const uint8_t *text, size_t size,
                    size_t from) {
    uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(regex->code, text, size, from, options, scratch->data, scratch->context);
    if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
    /* The interpreter keeps its backtracking on the heap, up to its own limit. */
    options |= PCRE2_NO_JIT;
    return pcre2_match(regex->code, text, size, from, options, scratch->data, scratch->context);
}

static int match_error(int rc, size_t size, struct mo_error *error) {
    if (rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT || rc == PCRE2_ERROR_HEAPLIMIT) {
        return mo_error_set(error, MO_E_LIMIT,
                            "a piece of %zu bytes makes the pre-tokenizer's regular expression backtrack too much",
                            size);
    }
    PCRE2_UCHAR text[256];
    if (pcre2_get_error_message(rc, text, sizeof text) < 0) text[0] = 0;
    return mo_error_set(error, rc == PCRE2_ERROR_NOMEMORY ? MO_E_NO_MEMORY : MO_E_INTERNAL,
                        "the pre-tokenizer's regular expression failed: %s", (const char *)text);
}

int regex_find(const struct regex *regex, struct regex_scratch *scratch, const uint8_t *text, size_t size, size_t from,
               size_t not_empty_at, size_t *begin, size_t *end, struct mo_error *error) {
    for (;;) {
        while (from < size && !regex->starts[text[from]]) from++;
        if (from > size || (from == size && !regex->can_be_empty)) return 0;
        int rc = match_at(regex, scratch, text, size, from);
        if (rc == PCRE2_ERROR_NOMATCH) return 0;
        if (rc < 0) return match_error(rc, size, error);
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(scratch->data);
        *begin = bounds[0];
        *end = bounds[1];
        if (*begin < from || *begin > *end) return match_error(PCRE2_ERROR_INTERNAL, size, error);
        if (*begin != *end || *end != not_empty_at) return 1;
        from++; /* the next search begins one character on; continuation bytes are no starts */
    }
}
