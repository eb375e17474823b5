/* grammar/schema_scalar.c - strings and numbers. */
#include <math.h>
#include <string.h>
#include "grammar/schema.h"

#define HEX "[0-9a-fA-F]"
#define DATE                                                                                                           \
    "[0-9]{4}-((01|03|05|07|08|10|12)-(0[1-9]|[12][0-9]|3[01])|(04|06|09|11)-(0[1-9]|[12][0-9]|30)|"                   \
    "02-(0[1-9]|1[0-9]|2[0-8]))"
#define TIME "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
#define BYTE "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define LABEL "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"

/* Each writes a part of what the format allows: every text of it is a good one (years from 0001, no 29th of February). */
static const struct {
    const char *name, *regex;
} FORMATS[] = {
    {"date", "(" DATE ")"},
    {"time", TIME},
    {"date-time", "(" DATE ")T" TIME},
    {"duration", "P([0-9]{1,6}D|[0-9]{1,6}W|([0-9]{1,6}D)?T[0-9]{1,6}(H|M|S))"},
    {"uuid", HEX "{8}-" HEX "{4}-" HEX "{4}-" HEX "{4}-" HEX "{12}"},
    {"email", "[a-zA-Z0-9_+-]{1,20}(\\.[a-zA-Z0-9_+-]{1,20}){0,2}@" LABEL "(\\." LABEL "){1,3}"},
    {"hostname", LABEL "(\\." LABEL "){0,3}"},
    {"ipv4", "(" BYTE "\\.){3}" BYTE},
    {"ipv6", "(" HEX "{1,4}:){7}" HEX "{1,4}"},
    {"uri", "https?://" LABEL "(\\." LABEL
            "){0,4}(:[0-9]{1,4})?(/[a-zA-Z0-9._~-]{0,100}){0,20}(\\?[a-zA-Z0-9=&._~-]{0,500})?"},
};

static int32_t quoted(struct schema *s, int32_t inner) {
    if (s->mode == SCHEMA_TEXT) return nodes_cat(s->nodes, inner, s->marks->close);
    int32_t quote = nodes_text(s->nodes, "\"");
    return nodes_cat(s->nodes, quote, nodes_cat(s->nodes, inner, quote));
}

static enum regex_spelling spelling(const struct schema *s) {
    return s->mode == SCHEMA_TEXT ? REGEX_IN_PARAMETER : REGEX_IN_JSON;
}

static int32_t string_of_format(struct schema *s, const char *format) {
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++) {
        if (strcmp(format, FORMATS[i].name)) continue;
        return regex_parse(s->nodes, FORMATS[i].regex, strlen(FORMATS[i].regex), spelling(s), false);
    }
    return schema_fail(s, MO_E_UNSUPPORTED, "the format \"%.60s\" is not supported", format);
}

static int32_t string_of_pattern(struct schema *s, const json_t *pattern) {
    int32_t node = regex_parse(s->nodes, json_string_value(pattern), json_string_length(pattern), spelling(s), true);
    if (s->nodes->code && strncmp(s->nodes->error->message, "#", 1) != 0) {
        mo_error_prefix(s->nodes->error, "%s/pattern", s->path);
    }
    return node;
}

int32_t schema_string(struct schema *s, const json_t *schema) {
    const json_t *pattern = json_object_get(schema, "pattern"), *format = json_object_get(schema, "format");
    int min = schema_count(s, schema, "minLength", 0), max = schema_count(s, schema, "maxLength", -1);
    bool has_length = min > 0 || max >= 0;
    if ((pattern && !json_is_string(pattern)) || (format && !json_is_string(format))) {
        return schema_fail(s, MO_E_INVALID, "pattern and format must be strings");
    }
    if ((pattern != NULL) + (format != NULL) + has_length > 1) {
        return schema_fail(s, MO_E_UNSUPPORTED, "only one of pattern, format, and minLength or maxLength is supported");
    }
    if (max >= 0 && min > max) return NODES_NEVER;
    if (pattern) return quoted(s, string_of_pattern(s, pattern));
    if (format) return quoted(s, string_of_format(s, json_string_value(format)));
    bool is_text = s->mode == SCHEMA_TEXT;
    if (!has_length) return is_text ? s->marks->text : json_string_text(s->nodes, &s->parts);
    int32_t character = is_text ? schema_text_character(s) : json_character(s->nodes, &s->parts);
    return quoted(s, nodes_repeat(s->nodes, character, min, max));
}

/* A side of a number's range. */
struct bound {
    double value;
    bool given, open; /* open: not this value itself */
};

/* The stricter of a closed and an open bound; `sign` 1: from above. */
static struct bound bound_of(struct schema *s, const json_t *schema, const char *closed, const char *open, int sign) {
    const json_t *a = json_object_get(schema, closed), *b = json_object_get(schema, open);
    if ((a && !json_is_number(a)) || (b && !json_is_number(b))) {
        schema_fail(s, MO_E_INVALID, "%s and %s must be numbers", closed, open);
    }
    double x = json_number_value(a), y = json_number_value(b);
    if (b && (!a || y * sign <= x * sign)) return (struct bound){y, true, true};
    return (struct bound){x, a != NULL, false};
}

static double clamp(double value, double most) {
    return value < -most ? -most : value > most ? most : value;
}

static int32_t parse_integer(struct schema *s, struct bound low, struct bound high) {
    const double MOST = (double)(INT64_C(1) << 53); /* beyond, bounds that are doubles are not exact */
    if ((low.given && fabs(low.value) > MOST) || (high.given && fabs(high.value) > MOST)) {
        return schema_fail(s, MO_E_UNSUPPORTED, "bounds beyond 2^53 are not supported");
    }
    int64_t from = -NUMBER_MAX, to = NUMBER_MAX;
    if (low.given) from = (int64_t)ceil(low.value) + (low.open && low.value == ceil(low.value));
    if (high.given) to = (int64_t)floor(high.value) - (high.open && high.value == floor(high.value));
    return number_integer_between(s->nodes, from, to);
}

static int32_t parse_number(struct schema *s, struct bound low, struct bound high) {
    const double MOST = (double)NUMBER_REAL_MAX;
    bool is_whole = low.value == floor(low.value) && high.value == floor(high.value);
    bool is_small = fabs(low.value) <= MOST && fabs(high.value) <= MOST;
    if (!is_whole || !is_small) {
        return schema_fail(s, MO_E_UNSUPPORTED, "the bounds of a number must be whole and within +-%.0f", MOST);
    }
    double from = low.given ? low.value : -MOST, to = high.given ? high.value : MOST;
    return number_between(s->nodes, (int64_t)clamp(from, MOST), low.open, (int64_t)clamp(to, MOST), high.open);
}

int32_t schema_numeric(struct schema *s, const json_t *schema, bool integer) {
    struct bound low = bound_of(s, schema, "minimum", "exclusiveMinimum", -1);
    struct bound high = bound_of(s, schema, "maximum", "exclusiveMaximum", 1);
    if (s->nodes->code) return NODES_EMPTY;
    if (!low.given && !high.given) return json_number(s->nodes, integer);
    return integer ? parse_integer(s, low, high) : parse_number(s, low, high);
}
