/* A GGUF's values by key, with the type that the reader wants. */
#include "model/gguf/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *type_name(enum gguf_type type) {
    static const char *const names[GGUF_TYPES] = {"u8",   "i8",     "u16",      "i16", "u32", "i32", "f32",
                                                  "bool", "string", "an array", "u64", "i64", "f64"};
    return names[type];
}

static int by_key(const void *key, const void *value) {
    return strcmp(key, ((const struct gguf_value *)value)->key);
}

const struct gguf_value *gguf_find(const struct gguf *gguf, const char *key) {
    if (!gguf->n_values) return NULL;
    return bsearch(key, gguf->values, (size_t)gguf->n_values, sizeof *gguf->values, by_key);
}

static int look(const struct gguf *gguf, const char *key, enum json_need need, const struct gguf_value **value,
                struct mo_error *error) {
    *value = gguf_find(gguf, key);
    if (*value || need == JSON_OPTIONAL_KEY) return 0;
    return mo_error_set(error, MO_E_CORRUPT, "%s: key \"%s\" is missing", gguf->path, key);
}

static int wrong_type(const struct gguf *gguf, const struct gguf_value *value, const char *expected,
                      struct mo_error *error) {
    return mo_error_set(error, MO_E_CORRUPT, "%s: key \"%s\": expected %s, found %s", gguf->path, value->key, expected,
                        type_name(value->type));
}

static uint64_t read_bits(const uint8_t *data, int bytes) {
    uint64_t bits = 0;
    for (int i = bytes - 1; i >= 0; i--) bits = bits << 8 | data[i];
    return bits;
}

/* False: not an integer, or one past int64. */
static bool read_integer(const struct gguf_value *value, int64_t *out) {
    switch (value->type) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
        *out = (int64_t)read_bits(value->data, (int)value->bytes);
        return true;
    case GGUF_I8:
        *out = (int8_t)read_bits(value->data, 1);
        return true;
    case GGUF_I16:
        *out = (int16_t)read_bits(value->data, 2);
        return true;
    case GGUF_I32:
        *out = (int32_t)read_bits(value->data, 4);
        return true;
    case GGUF_U64:
    case GGUF_I64:
        *out = (int64_t)read_bits(value->data, 8);
        return value->type == GGUF_I64 || *out >= 0;
    default:
        return false;
    }
}

int gguf_get_int(const struct gguf *gguf, const char *key, enum json_need need, int64_t min, int64_t max, int *out,
                 struct mo_error *error) {
    const struct gguf_value *value;
    int64_t found = 0;
    int code = look(gguf, key, need, &value, error);
    if (code || !value) return code;
    if (!read_integer(value, &found)) return wrong_type(gguf, value, "an integer", error);
    if (found < min || found > max) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: key \"%s\": expected %lld to %lld, found %lld", gguf->path, key,
                            (long long)min, (long long)max, (long long)found);
    }
    *out = (int)found;
    return 0;
}

/* The shortest decimal that is this float, as text [32]. */
static void shortest(float value, char text[32]) {
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, 32, "%.*e", digits - 1, (double)value);
        if (strtof(text, NULL) == value) return;
    }
}

/* Of an F32's bytes. */
static double decimal_of(const uint8_t *data) {
    char text[32];
    uint32_t bits = (uint32_t)read_bits(data, 4);
    float single;
    memcpy(&single, &bits, sizeof single);
    if (!isfinite(single)) return (double)single;
    shortest(single, text);
    return strtod(text, NULL);
}

int gguf_get_double(const struct gguf *gguf, const char *key, enum json_need need, double *out,
                    struct mo_error *error) {
    const struct gguf_value *value;
    int64_t integer;
    int code = look(gguf, key, need, &value, error);
    if (code || !value) return code;
    double found = NAN;
    if (value->type == GGUF_F32) {
        found = decimal_of(value->data);
    } else if (value->type == GGUF_F64) {
        uint64_t bits = read_bits(value->data, 8);
        memcpy(&found, &bits, sizeof found);
    } else if (read_integer(value, &integer)) {
        found = (double)integer;
    } else {
        return wrong_type(gguf, value, "a number", error);
    }
    if (!isfinite(found)) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: key \"%s\": expected a finite number, found %g", gguf->path, key,
                            found);
    }
    *out = found;
    return 0;
}

/* By way of text, so that what was 0.0707 becomes 0.707 and not a neighbour of it. */
double gguf_ten_times(double value) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*e", digits - 1, value);
        if (strtod(text, NULL) == value) break;
    }
    char *exponent = strchr(text, 'e');
    if (!exponent) return value * 10;
    snprintf(exponent, sizeof text - (size_t)(exponent - text), "e%d", atoi(exponent + 1) + 1);
    return strtod(text, NULL);
}

int gguf_get_bool(const struct gguf *gguf, const char *key, enum json_need need, bool *out, struct mo_error *error) {
    const struct gguf_value *value;
    int code = look(gguf, key, need, &value, error);
    if (code || !value) return code;
    if (value->type != GGUF_BOOL) return wrong_type(gguf, value, "a bool", error);
    *out = value->data[0] != 0;
    return 0;
}

int gguf_get_text(const struct gguf *gguf, const char *key, enum json_need need, struct gguf_text *out,
                  struct mo_error *error) {
    const struct gguf_value *value;
    int code = look(gguf, key, need, &value, error);
    if (code || !value) return code;
    if (value->type != GGUF_STRING) return wrong_type(gguf, value, "a string", error);
    *out = (struct gguf_text){(const char *)value->data + 8, value->bytes - 8};
    return 0;
}

int gguf_get_array(const struct gguf *gguf, const char *key, enum json_need need, enum gguf_type element,
                   const struct gguf_value **out, struct mo_error *error) {
    *out = NULL;
    int code = look(gguf, key, need, out, error);
    const struct gguf_value *value = *out;
    if (code || !value) return code;
    if (value->type != GGUF_ARRAY) return wrong_type(gguf, value, "an array", error);
    bool same = value->element == element || (element == GGUF_I32 && value->element == GGUF_U32);
    if (same) return 0;
    return mo_error_set(error, MO_E_CORRUPT, "%s: key \"%s\": expected an array of %s, found one of %s", gguf->path,
                        key, type_name(element), type_name(value->element));
}

struct gguf_text gguf_next_text(const struct gguf_value *array, size_t *at) {
    size_t size = (size_t)read_bits(array->data + *at, 8);
    struct gguf_text text = {(const char *)array->data + *at + 8, size};
    *at += 8 + size;
    return text;
}

int32_t gguf_i32_at(const struct gguf_value *array, uint64_t index) {
    return (int32_t)read_bits(array->data + index * 4, 4);
}

double gguf_f32_at(const struct gguf_value *array, uint64_t index) {
    return decimal_of(array->data + index * 4);
}

bool gguf_text_is(struct gguf_text text, const char *what) {
    return text.size == strlen(what) && !memcmp(text.data, what, text.size);
}
