/* server/api/fields.h - typed reading of a request's fields. The first mistake is kept and later reads do
 * nothing, so a parser reads top to bottom and looks at the error once. Null counts as absent; unknown fields
 * are never looked at. Includes: base (jansson). */
#ifndef MOEBIUS_SERVER_API_FIELDS_H
#define MOEBIUS_SERVER_API_FIELDS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/json.h"
#include "server/api/error.h"

enum {
    API_JSON_DEPTH_MAX = 64,
    API_JSON_BRACKETS_MAX = 1 << 18, /* objects and arrays: some 300 bytes each */
    API_JSON_VALUES_MAX = 1 << 22,   /* of any kind: up to 100 bytes each, beside their text */
};

struct fields {
    const json_t *object;
    struct api_error *error;
};

/* A body to an object: 400 for what is no JSON, no object, or nests or holds more than the limits above. The
 * caller's. */
json_t *fields_parse(const char *body, size_t size, struct api_error *error);

bool fields_failed(const struct fields *fields);
/* NULL if absent or null. */
const json_t *fields_get(const struct fields *fields, const char *key);

bool fields_bool(struct fields *fields, const char *key, bool value);
int64_t fields_int(struct fields *fields, const char *key, int64_t min, int64_t max, int64_t value);
double fields_number(struct fields *fields, const char *key, double min, double max, double value);
/* NULL unless the field is a string, an object, an array. */
const json_t *fields_string(struct fields *fields, const char *key);
const json_t *fields_object(struct fields *fields, const char *key);
const json_t *fields_array(struct fields *fields, const char *key);

/* 400 for a field that asks for what is not there; false, nothing and an empty list or text ask for nothing. */
void fields_refuse(struct fields *fields, const char *key, const char *why);
/* Takes keys away: names that mean something else, or nothing, where the object goes. Accepts NULL. */
void fields_drop(json_t *object, const char *const *names, size_t n);
/* "type" of an object, "" if it has none that is a text. */
const char *fields_type_of(const json_t *object);

/* A token id in an array: not an integer, or outside the vocabulary, is an error that names `param`. */
int32_t fields_token(struct fields *fields, const json_t *value, const char *param, int vocab);

#endif
