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

int put_dump(struct buffer *out, json_t *json) {
    int code = json ? json_dump_callback(json, append, out, JSON_COMPACT | JSON_REAL_PRECISION(15)) : -1;
    json_decref(json);
    return code;
}
