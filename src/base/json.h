/* base/json.h - jansson with the project's limits and error sentences. Keys that hold the wrong type are errors
 * that name the file and the key, never silent defaults. `where` names the document in messages. */
#ifndef MOEBIUS_BASE_JSON_H
#define MOEBIUS_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

/* Parses strictly: duplicate keys are refused, NUL in strings is allowed. Caller owns *root (json_decref). */
int json_parse(const char *text, size_t size, const char *where, json_t **root, struct mo_error *error);
int json_parse_file(const char *path, size_t max_bytes, json_t **root, struct mo_error *error);

/* What a call was given, as models write it: the object that a text says, or NULL. Longer integers than 64 bits hold make all
 * numbers reals, which keep 15 digits and their size. Caller owns it. */
json_t *json_read_object(const char *text, size_t size);

/* For output, which must not fail because a file's name is not UTF-8 or a division had nothing to divide: such bytes become
 * U+FFFD, such numbers null. NULL: no memory. */
json_t *json_lossy(const char *text);
json_t *json_finite(double number);

/* The answer of a command, indented: to standard output (main looks whether everything was written), or to a file. `root` is
 * released; NULL says that there was no memory to make it. */
int json_print(json_t *root, struct mo_error *error);
int json_write(json_t *root, const char *path, struct mo_error *error);

/* For readers of a checkpoint's files: MO_E_INVALID becomes MO_E_CORRUPT, in `error` too. A wrong value in a file is damage;
 * wrong usage is what a command line says. */
int json_damage(int code, struct mo_error *error);

/* Typed lookups. A missing or null key: MO_E_NOT_FOUND when `required`, else *out stays as it is. A number out
 * of [min, max], or of the wrong type, is MO_E_INVALID. */
enum json_need { JSON_OPTIONAL_KEY, JSON_REQUIRED_KEY };
int json_get_int(const json_t *object, const char *key, enum json_need need, int64_t min, int64_t max,
                 const char *where, int *out, struct mo_error *error);
int json_get_double(const json_t *object, const char *key, enum json_need need, double min, double max,
                    const char *where, double *out, struct mo_error *error);
int json_get_bool(const json_t *object, const char *key, enum json_need need, const char *where, bool *out,
                  struct mo_error *error);
/* *out points into `object`. */
int json_get_string(const json_t *object, const char *key, enum json_need need, const char *where, const char **out,
                    struct mo_error *error);

/* "an object", "a string", ... for messages; NULL counts as null. */
const char *json_type_name(const json_t *value);

#endif
