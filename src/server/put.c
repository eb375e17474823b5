#include "server/put.h"

#include <stdio.h>
#include <stdlib.h>

json_t *put_text(const struct buffer *text) {
    return text->failed ? NULL : json_stringn(text->data ? text->data : "", text->size);
}

json_t *put_number(double value) {
    char text[32];
    snprintf(text, sizeof text, "%.9g", value);
    return json_real(strtod(text, NULL));
}

static int append(const char *text, size_t size, void *out) {
    buffer_add(out, text, size);
    return ((struct buffer *)out)->failed ? -1 : 0;
}

static bool is_said_by(const json_t *real, int digits) {
    char text[32];
    snprintf(text, sizeof text, "%.*g", digits, json_real_value(real));
    return strtod(text, NULL) == json_real_value(real);
}

/* Digits that tell every number in it: 15 leave 0.1 as it is, some need 17. */
static size_t digits_of(const json_t *json) {
    enum { FEW = 15, ALL = 17 };
    size_t digits = json_is_real(json) && !is_said_by(json, FEW) ? ALL : FEW, n = json_array_size(json);
    const char *key;
    json_t *value;
    for (size_t i = 0; i < n && digits < ALL; i++) digits = digits_of(json_array_get(json, i));
    json_object_foreach((json_t *)(uintptr_t)json, key, value) {
        if (digits < ALL) digits = digits_of(value);
    }
    return digits;
}

int put_dump(struct buffer *out, json_t *json) {
    int code = json ? json_dump_callback(json, append, out, JSON_COMPACT | JSON_REAL_PRECISION(digits_of(json))) : -1;
    json_decref(json);
    return code;
}
