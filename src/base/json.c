#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/utf8.h"

enum { CONTEXT_BYTES = 80, ROOM_BYTES = 1 << 20 };

/* What stands before byte `end`: a piece of its line that a message can show. */
static const char *context_before(const char *text, size_t end, int *size) {
    size_t begin = end;
    while (begin > 0 && end - begin < CONTEXT_BYTES && (unsigned char)text[begin - 1] >= ' ') begin--;
    while (begin < end && ((unsigned char)text[begin] & 0xc0) == 0x80) begin++; /* not inside a character */
    *size = (int)(end - begin);
    return text + begin;
}

/* jansson does not look whether it could keep the next byte of a string, and crashes where it could not (2.14). A text of which it
 * may hold all four times, twice of that while a buffer grows, is begun only if there is that much. */
static bool has_room(size_t size) {
    void *volatile room = malloc(4 * size + ROOM_BYTES); /* volatile: else the compiler knows how this ends */
    bool has = room != NULL;
    free(room);
    return has;
}

static int no_memory(const char *where, size_t size, struct mo_error *error) {
    return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory to read %zu bytes of JSON", where, size);
}

int json_parse(const char *text, size_t size, const char *where, json_t **root, struct mo_error *error) {
    json_error_t at;
    *root = NULL;
    if (!has_room(size)) return no_memory(where, size, error);
    *root = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &at);
    if (*root) return 0;
    if (at.line < 0) return no_memory(where, size, error); /* it has nothing to say against the text */
    size_t end = at.position > 0 && (size_t)at.position < size ? (size_t)at.position : size;
    int shown;
    const char *before = context_before(text, end, &shown);
    return mo_error_set(error, MO_E_INVALID, "%s: not valid JSON: line %d, column %d: %s, after '%.*s'", where, at.line,
                        at.column, at.text, shown, before);
}

int json_parse_file(const char *path, size_t max_bytes, json_t **root, struct mo_error *error) {
    char *text;
    size_t size;
    int code = file_read(path, max_bytes, &text, &size, error);
    if (code) return code;
    code = json_parse(text, size, path, root, error);
    free(text);
    return code;
}

json_t *json_lossy(const char *text) {
    uint8_t held[4];
    int n_held = 0;
    size_t n = strlen(text);
    char *out = malloc(3 * n + 1); /* U+FFFD is three bytes */
    if (!out) return NULL;
    n = utf8_lossy_push(held, &n_held, (const uint8_t *)text, n, out); /* a character that the end cuts is left out */
    json_t *string = json_stringn(out, n);
    free(out);
    return string;
}

json_t *json_finite(double number) {
    return isfinite(number) ? json_real(number) : json_null();
}

int json_damage(int code, struct mo_error *error) {
    if (code != MO_E_INVALID) return code;
    if (error) error->code = MO_E_CORRUPT;
    return MO_E_CORRUPT;
}

static int dump(json_t *root, char **text, struct mo_error *error) {
    *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    return *text ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for the answer in JSON");
}

int json_print(json_t *root, struct mo_error *error) {
    char *text;
    int code = dump(root, &text, error);
    if (!code) puts(text);
    free(text);
    return code;
}

int json_write(json_t *root, const char *path, struct mo_error *error) {
    char *text;
    int code = dump(root, &text, error);
    if (!code) code = file_write(path, text, strlen(text), error);
    free(text);
    return code;
}

const char *json_type_name(const json_t *value) {
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

/* Finds a non-null value, or says that there is none: 1 found, 0 absent and optional, negative an error. */
static int find(const json_t *object, const char *key, enum json_need need, const char *where, json_t **value,
                struct mo_error *error) {
    *value = json_object_get(object, key);
    if (*value && !json_is_null(*value)) return 1;
    if (need == JSON_OPTIONAL_KEY) return 0;
    return mo_error_set(error, MO_E_NOT_FOUND, "%s: key \"%s\" is missing", where, key);
}

static int wrong_type(const json_t *value, const char *key, const char *expected, const char *where,
                      struct mo_error *error) {
    return mo_error_set(error, MO_E_INVALID, "%s: key \"%s\": expected %s, found %s", where, key, expected,
                        json_type_name(value));
}

int json_get_int(const json_t *object, const char *key, enum json_need need, int64_t min, int64_t max,
                 const char *where, int *out, struct mo_error *error) {
    json_t *value;
    int found = find(object, key, need, where, &value, error);
    if (found <= 0) return found;
    if (!json_is_integer(value)) return wrong_type(value, key, "an integer", where, error);
    json_int_t number = json_integer_value(value);
    if (number < min || number > max) {
        return mo_error_set(error, MO_E_INVALID, "%s: key \"%s\": expected %lld to %lld, found %lld", where, key,
                            (long long)min, (long long)max, (long long)number);
    }
    *out = (int)number;
    return 0;
}

int json_get_double(const json_t *object, const char *key, enum json_need need, double min, double max,
                    const char *where, double *out, struct mo_error *error) {
    json_t *value;
    int found = find(object, key, need, where, &value, error);
    if (found <= 0) return found;
    if (!json_is_number(value)) return wrong_type(value, key, "a number", where, error);
    double number = json_number_value(value);
    if (!(number >= min && number <= max)) {
        return mo_error_set(error, MO_E_INVALID, "%s: key \"%s\": expected %g to %g, found %g", where, key, min, max,
                            number);
    }
    *out = number;
    return 0;
}

int json_get_bool(const json_t *object, const char *key, enum json_need need, const char *where, bool *out,
                  struct mo_error *error) {
    json_t *value;
    int found = find(object, key, need, where, &value, error);
    if (found <= 0) return found;
    if (!json_is_boolean(value)) return wrong_type(value, key, "true or false", where, error);
    *out = json_is_true(value);
    return 0;
}

int json_get_string(const json_t *object, const char *key, enum json_need need, const char *where, const char **out,
                    struct mo_error *error) {
    json_t *value;
    int found = find(object, key, need, where, &value, error);
    if (found <= 0) return found;
    if (!json_is_string(value)) return wrong_type(value, key, "a string", where, error);
    *out = json_string_value(value);
    return 0;
}

json_t *json_read_object(const char *text, size_t size) {
    if (!text || !has_room(size)) return NULL;
    json_t *object = json_loadb(text, size, JSON_ALLOW_NUL, NULL);
    if (!object) object = json_loadb(text, size, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    if (json_is_object(object)) return object;
    json_decref(object);
    return NULL;
}
