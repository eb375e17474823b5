/* grammar/classes.c - sets of code points, and the bytes that spell one of them. */
#include <stdio.h>
#include <string.h>
#include "grammar/front.h"

void class_add(struct class *set, uint32_t low, uint32_t high) {
    if (set->n == CLASS_RANGES_MAX) set->overflow = true;
    if (!set->overflow) set->ranges[set->n++] = (struct class_range){low, high};
}

void class_add_all(struct class *set, const struct class *other) {
    for (int i = 0; i < other->n; i++) class_add(set, other->ranges[i].low, other->ranges[i].high);
    set->overflow = set->overflow || other->overflow;
}

/* Ascending, and joined where they touch. */
static void sort(struct class *set) {
    for (int i = 1; i < set->n; i++) {
        struct class_range range = set->ranges[i];
        int k = i;
        for (; k > 0 && set->ranges[k - 1].low > range.low; k--) set->ranges[k] = set->ranges[k - 1];
        set->ranges[k] = range;
    }
    int n = 0;
    for (int i = 0; i < set->n; i++) {
        struct class_range range = set->ranges[i];
        if (n > 0 && range.low <= set->ranges[n - 1].high + 1) {
            if (range.high > set->ranges[n - 1].high) set->ranges[n - 1].high = range.high;
        } else {
            set->ranges[n++] = range;
        }
    }
    set->n = n;
}

void class_invert(struct class *set) {
    sort(set);
    struct class out = {.overflow = set->overflow};
    uint32_t next = 0;
    for (int i = 0; i < set->n; i++) {
        if (set->ranges[i].low > next) class_add(&out, next, set->ranges[i].low - 1);
        next = set->ranges[i].high + 1;
    }
    if (next <= CODE_POINT_MAX) class_add(&out, next, CODE_POINT_MAX);
    *set = out;
}

/* --- to UTF-8 ------------------------------------------------------------------------------------ */

static int32_t byte_range(struct nodes *nodes, uint8_t low, uint8_t high) {
    struct byte_set set = {0};
    for (int byte = low; byte <= high; byte++) byte_set_add(&set, (uint8_t)byte);
    return nodes_bytes(nodes, &set);
}

/* The last `n` bytes of characters low..high, which have the same bytes before those. */
static int32_t tail(struct nodes *nodes, uint32_t low, uint32_t high, int n) {
    if (n == 0) return NODES_EMPTY;
    int shift = 6 * (n - 1);
    uint32_t rest = (UINT32_C(1) << shift) - 1, first = low >> shift & 0x3f, last = high >> shift & 0x3f;
    int32_t any = NODES_NEVER;
    while (first <= last) { /* as many lead bytes at once as have the same bytes behind them */
        bool whole_low = (low & rest) == 0, whole_high = (high & rest) == rest;
        uint32_t until = first == last ? first : !whole_low ? first : whole_high ? last : last - 1;
        uint32_t to = until == last ? high & rest : rest;
        int32_t lead = byte_range(nodes, (uint8_t)(0x80 | first), (uint8_t)(0x80 | until));
        any = nodes_alt(nodes, any, nodes_cat(nodes, lead, tail(nodes, low & rest, to, n - 1)));
        first = until + 1;
        low = 0;
    }
    return any;
}

/* Characters low..high of `n` bytes, n > 1. */
static int32_t encoded(struct nodes *nodes, uint32_t low, uint32_t high, int n) {
    static const uint8_t LEAD[] = {0, 0, 0xc0, 0xe0, 0xf0};
    int shift = 6 * (n - 1);
    uint32_t rest = (UINT32_C(1) << shift) - 1, first = low >> shift, last = high >> shift;
    int32_t any = NODES_NEVER;
    while (first <= last && !nodes->code) {
        bool whole_low = (low & rest) == 0, whole_high = (high & rest) == rest;
        uint32_t until = first == last ? first : !whole_low ? first : whole_high ? last : last - 1;
        uint32_t to = until == last ? high & rest : rest;
        int32_t lead = byte_range(nodes, (uint8_t)(LEAD[n] | first), (uint8_t)(LEAD[n] | until));
        any = nodes_alt(nodes, any, nodes_cat(nodes, lead, tail(nodes, low & rest, to, n - 1)));
        first = until + 1;
        low = 0;
    }
    return any;
}

/* The part of a range within [low, high]; false if there is none. */
static bool clip(struct class_range *range, uint32_t low, uint32_t high) {
    if (range->low < low) range->low = low;
    if (range->high > high) range->high = high;
    return range->low <= range->high;
}

int32_t class_nodes(struct nodes *nodes, struct class *set) {
    static const struct {
        uint32_t low, high;
        int bytes;
    } LENGTHS[] = {{0x80, 0x7ff, 2}, {0x800, 0xd7ff, 3}, {0xe000, 0xffff, 3}, {0x10000, CODE_POINT_MAX, 4}};
    struct byte_set ascii = {0};
    int32_t any = NODES_NEVER;
    if (set->overflow) {
        return nodes_fail(nodes, MO_E_INVALID, "a set of characters has more than %d ranges", CLASS_RANGES_MAX);
    }
    sort(set);
    for (int i = 0; i < set->n; i++) {
        struct class_range range = set->ranges[i];
        for (uint32_t c = range.low; c <= range.high && c < 0x80; c++) byte_set_add(&ascii, (uint8_t)c);
        for (size_t k = 0; k < sizeof LENGTHS / sizeof *LENGTHS; k++) {
            struct class_range part = range;
            if (!clip(&part, LENGTHS[k].low, LENGTHS[k].high)) continue;
            any = nodes_alt(nodes, any, encoded(nodes, part.low, part.high, LENGTHS[k].bytes));
        }
    }
    if (ascii.bits[0] || ascii.bits[1]) any = nodes_alt(nodes, nodes_bytes(nodes, &ascii), any);
    return any;
}

/* --- between the quotes of a JSON string --------------------------------------------------------- */

static bool has(const struct class *set, uint32_t c) {
    for (int i = 0; i < set->n; i++) {
        if (c >= set->ranges[i].low && c <= set->ranges[i].high) return true;
    }
    return false;
}

static int32_t escaped(struct nodes *nodes, uint32_t c) {
    static const char SHORT[] = "\b\f\n\r\t\"\\", LETTERS[] = "bfnrt\"\\";
    const char *place = c ? strchr(SHORT, (int)c) : NULL;
    char text[8];
    if (place)
        snprintf(text, sizeof text, "\\%c", LETTERS[place - SHORT]);
    else
        snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    return nodes_text(nodes, text);
}

int32_t class_nodes_in_json(struct nodes *nodes, struct class *set) {
    struct class plain = {.overflow = set->overflow};
    int32_t any = NODES_NEVER;
    for (int i = 0; i < set->n; i++) {
        static const struct class_range OPEN[] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, CODE_POINT_MAX}};
        for (size_t k = 0; k < sizeof OPEN / sizeof *OPEN; k++) {
            struct class_range part = set->ranges[i];
            if (clip(&part, OPEN[k].low, OPEN[k].high)) class_add(&plain, part.low, part.high);
        }
    }
    for (uint32_t c = 1; c <= '\\'; c++) { /* \u0000 is never written: see json_character */
        if ((c < 0x20 || c == '"' || c == '\\') && has(set, c)) any = nodes_alt(nodes, any, escaped(nodes, c));
    }
    return nodes_alt(nodes, class_nodes(nodes, &plain), any);
}
