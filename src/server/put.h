/* server/put.h - JSON objects and lists built value by value: one without memory makes the whole fail at its end, so that
 * nothing goes missing in the middle and the end is the only place to look. Then its text. Includes: base/buffer.h. */
#ifndef MOEBIUS_SERVER_PUT_H
#define MOEBIUS_SERVER_PUT_H

#include <jansson.h>
#include <stdint.h>
#include "base/buffer.h"

/* Takes `value` over. After a failure *object is NULL, and stays so. */
static inline void put(json_t **object, const char *key, json_t *value) {
    if (*object && value && json_object_set_new(*object, key, value) == 0) return;
    if (!*object || !value) json_decref(value);
    json_decref(*object);
    *object = NULL;
}

static inline void put_last(json_t **list, json_t *value) {
    if (*list && value && json_array_append_new(*list, value) == 0) return;
    if (!*list || !value) json_decref(value);
    json_decref(*list);
    *list = NULL;
}

/* An object with the same values, the caller's; NULL without memory. (json_copy leaves out what it has none for.) */
static inline json_t *put_copy(const json_t *object) {
    json_t *copy = json_copy((json_t *)(uintptr_t)object);
    if (!copy || json_object_size(copy) == json_object_size(object)) return copy;
    json_decref(copy);
    return NULL;
}

/* Another reference to what others own. */
static inline json_t *put_share(const json_t *value) {
    return json_incref((json_t *)(uintptr_t)value);
}

/* Values, the caller's; NULL without memory. Text: valid UTF-8. A number with nine digits, which is what floats and times are
 * good for. */
json_t *put_text(const struct buffer *text);
json_t *put_number(double value);

/* What goes to clients, whole or in frames: appends the text of `json`, which is taken over. -1 without memory. */
int put_dump(struct buffer *out, json_t *json);

#endif
