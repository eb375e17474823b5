#include "base/json_spell.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REAL_BYTES = 40, REAL_DIGITS_MAX = 17 };

/* --- strings ------------------------------------------------------------------------------------- */

static void spell_escape(struct buffer *out, unsigned char c) {
    static const char FROM[] = "\"\\\n\r\t\b\f", TO[] = "\"\\nrtbf";
    const char *known = c ? strchr(FROM, c) : NULL;
    if (known) {
        buffer_printf(out, "\\%c", TO[known - FROM]);
    } else {
        buffer_printf(out, "\\u%04x", c);
    }
}

void json_spell_inside(struct buffer *out, const char *text, size_t size) {
    size_t begin = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        buffer_add(out, text + begin, i - begin);
        spell_escape(out, c);
        begin = i + 1;
    }
    buffer_add(out, text + begin, size - begin);
}

void json_spell_string(struct buffer *out, const char *text, size_t size) {
    buffer_add_text(out, "\"");
    json_spell_inside(out, text, size);
    buffer_add_text(out, "\"");
}

/* --- numbers ------------------------------------------------------------------------------------- */

/* Python's repr: the fewest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on. */
static void spell_real(struct buffer *out, double value) {
    char text[REAL_BYTES];
    int digits = 0;
    do {
        snprintf(text, sizeof text, "%.*e", digits++, value);
    } while (digits < REAL_DIGITS_MAX && strtod(text, NULL) != value);
    int exponent = atoi(strchr(text, 'e') + 1), decimals = digits - 1 - exponent;
    if (exponent >= -4 && exponent < 16) snprintf(text, sizeof text, "%.*f", decimals > 1 ? decimals : 1, value);
    buffer_add_text(out, text);
}

/* --- values -------------------------------------------------------------------------------------- */

static void spell_array(struct buffer *out, const json_t *array) {
    buffer_add_text(out, "[");
    for (size_t i = 0; i < json_array_size(array); i++) {
        if (i) buffer_add_text(out, ", ");
        json_spell(out, json_array_get(array, i));
    }
    buffer_add_text(out, "]");
}

static void spell_object(struct buffer *out, const json_t *object) {
    const char *key, *between = "";
    size_t size;
    json_t *value;
    buffer_add_text(out, "{");
    json_object_keylen_foreach((json_t *)(uintptr_t)object, key, size, value) {
        buffer_add_text(out, between);
        json_spell_string(out, key, size);
        buffer_add_text(out, ": ");
        json_spell(out, value);
        between = ", ";
    }
    buffer_add_text(out, "}");
}

void json_spell(struct buffer *out, const json_t *value) {
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        spell_object(out, value);
        break;
    case JSON_ARRAY:
        spell_array(out, value);
        break;
    case JSON_STRING:
        json_spell_string(out, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        buffer_printf(out, "%" PRId64, (int64_t)json_integer_value(value));
        break;
    case JSON_REAL:
        spell_real(out, json_real_value(value));
        break;
    default:
        buffer_add_text(out, json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
}
