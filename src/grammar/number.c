/* grammar/number.c - decimal numbers within bounds, as nodes: digit by digit, like "12 to 345" is 12-19, 20-99, 100-299,
 * 300-339, 340-345. */
#include <assert.h>
#include "grammar/front.h"

enum { FRACTION_DIGITS = 15 }; /* with more, a double would round to the next number */

static int32_t digit(struct nodes *nodes, int64_t low, int64_t high) {
    struct byte_set set = {0};
    for (int64_t d = low; d <= high; d++) byte_set_add(&set, (uint8_t)('0' + d));
    return nodes_bytes(nodes, &set);
}

static int32_t digits(struct nodes *nodes, int min, int max) {
    return nodes_repeat(nodes, digit(nodes, 0, 9), min, max);
}

static int count_digits(int64_t value) {
    int n = 1;
    while (value >= 10) value /= 10, n++;
    return n;
}

static int64_t power(int n) {
    int64_t value = 1;
    while (n-- > 0) value *= 10;
    return value;
}

/* Exactly `n` digits, from low to high. */
static int32_t fixed(struct nodes *nodes, int64_t low, int64_t high, int n) {
    if (n == 0) return NODES_EMPTY;
    int64_t unit = power(n - 1), first = low / unit, last = high / unit;
    if (low % unit == 0 && high % unit == unit - 1) {
        return nodes_cat(nodes, digit(nodes, first, last), digits(nodes, n - 1, n - 1));
    }
    int32_t any = NODES_NEVER;
    while (first <= last) { /* as many first digits at once as have the same behind them */
        bool whole_low = low % unit == 0, whole_high = high % unit == unit - 1;
        int64_t until = first == last ? first : !whole_low ? first : whole_high ? last : last - 1;
        int64_t to = until == last ? high % unit : unit - 1;
        any = nodes_alt(nodes, any, nodes_cat(nodes, digit(nodes, first, until), fixed(nodes, low % unit, to, n - 1)));
        first = until + 1;
        low = 0;
    }
    return any;
}

/* 0 <= low; nothing for low > high. */
static int32_t natural(struct nodes *nodes, int64_t low, int64_t high) {
    int32_t any = NODES_NEVER;
    for (int n = count_digits(low); low <= high && n <= count_digits(high); n++) {
        int64_t least = n == 1 ? 0 : power(n - 1), most = power(n) - 1;
        any = nodes_alt(nodes, any, fixed(nodes, low > least ? low : least, high < most ? high : most, n));
    }
    return any;
}

static int32_t minus(struct nodes *nodes, int32_t number) {
    return nodes_cat(nodes, nodes_text(nodes, "-"), number);
}

int32_t number_integer_between(struct nodes *nodes, int64_t low, int64_t high) {
    assert(low >= -NUMBER_MAX && high <= NUMBER_MAX);
    if (low > high) return NODES_NEVER;
    if (high < 0) return minus(nodes, natural(nodes, -high, -low));
    if (low >= 0) return natural(nodes, low, high);
    return nodes_alt(nodes, natural(nodes, 0, high), minus(nodes, natural(nodes, 1, -low)));
}

/* --- with a fraction ----------------------------------------------------------------------------- */

static int32_t with_fraction(struct nodes *nodes, int32_t integer, int n_digits) {
    int32_t fraction = nodes_cat(nodes, nodes_text(nodes, "."), digits(nodes, 1, n_digits));
    return nodes_cat(nodes, integer, nodes_optional(nodes, fraction));
}

/* Digits that a fraction beside `integer` can have so that a double still tells it from integer and integer + 1. */
static int exact_digits(int64_t integer) {
    return FRACTION_DIGITS - count_digits(integer);
}

/* integer < number < integer + 1 */
static int32_t just_above(struct nodes *nodes, int64_t integer) {
    int n = exact_digits(integer + 1);
    int32_t zeros = nodes_repeat(nodes, digit(nodes, 0, 0), 0, n / 2);
    int32_t fraction = nodes_cat(nodes, zeros, nodes_cat(nodes, digit(nodes, 1, 9), digits(nodes, 0, n - n / 2 - 1)));
    return nodes_cat(nodes, natural(nodes, integer, integer), nodes_cat(nodes, nodes_text(nodes, "."), fraction));
}

/* 0 <= low */
static int32_t magnitude(struct nodes *nodes, int64_t low, bool above, int64_t high, bool below) {
    int32_t any = NODES_NEVER, zero = nodes_optional(nodes, nodes_text(nodes, ".0"));
    if (low > high) return NODES_NEVER;
    if (!below && !(low == high && above)) any = nodes_cat(nodes, natural(nodes, high, high), zero);
    if (low == high) return below ? NODES_NEVER : any;
    int64_t first = above ? low + 1 : low, last = below ? high - 2 : high - 1; /* with any fraction */
    if (above) any = nodes_alt(nodes, any, just_above(nodes, low));
    if (below && high - 1 >= first) {
        any = nodes_alt(nodes, any, with_fraction(nodes, natural(nodes, high - 1, high - 1), exact_digits(high)));
    }
    return nodes_alt(nodes, with_fraction(nodes, natural(nodes, first, last), FRACTION_DIGITS), any);
}

int32_t number_between(struct nodes *nodes, int64_t low, bool above, int64_t high, bool below) {
    assert(low >= -NUMBER_REAL_MAX && high <= NUMBER_REAL_MAX);
    if (low > high) return NODES_NEVER;
    if (high < 0) return minus(nodes, magnitude(nodes, -high, below, -low, above));
    if (low >= 0) return magnitude(nodes, low, above, high, below);
    int32_t negative = minus(nodes, magnitude(nodes, 0, high == 0 && below, -low, above));
    return nodes_alt(nodes, magnitude(nodes, 0, false, high, below), negative);
}
