/* model/overrides.h - what config.json is told otherwise on purpose: fewer experts a token, another context, another rotation. The
 * changed text is what everybody reads (checkpoint_read_file), so every check of config.c holds for it, and the model's hash is another
 * one wherever it is a name. Includes: base. */
#ifndef MOEBIUS_MODEL_OVERRIDES_H
#define MOEBIUS_MODEL_OVERRIDES_H

#include <stddef.h>
#include "base/error.h"
#include "base/json.h"

struct overrides;

/* `json`: one object of config.json's keys, each of which replaces what is there (vLLM's --hf-overrides; NULL: none). `kv` [n_kv]:
 * KEY=TYPE:VALUE by the names of GGUF files, several behind each other with commas (llama.cpp's --override-kv). *out is NULL where
 * nothing is said. Other keys, other types, and a key that is said twice are MO_E_INVALID. */
int overrides_read(struct overrides **out, const char *json, const char *const *kv, int n_kv, struct mo_error *error);
void overrides_free(struct overrides *overrides); /* accepts NULL */

/* config.json's text, malloc'd, to what it is with the changes; as it was where it says all that already. `where` names it in messages.
 * `changes`, unless NULL: a list of {"key", "value", "instead_of", "by"}, the caller's. */
int overrides_apply(const struct overrides *overrides, char **text, size_t *size, const char *where, json_t **changes,
                    struct mo_error *error);

#endif
