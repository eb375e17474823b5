/* server/put.h - JSON objects and lists built value by value: one without memory makes the whole fail at its end, so that
 * nothing goes missing in the middle and the end is the only place to look. Includes: jansson. */
#ifndef MOEBIUS_SERVER_PUT_H
#define MOEBIUS_SERVER_PUT_H

#include <jansson.h>

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

/* Another reference to what others own. */
static inline json_t *put_share(const json_t *value) {
    return json_incref((json_t *)(uintptr_t)value);
}

#endif
