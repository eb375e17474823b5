/* base/json_spell.h - JSON spelled as Python's json.dumps(value, ensure_ascii=False) spells it, which is what models were shown:
 * ", " and ": ", UTF-8 as it is, the shortest digits that say a number. Includes: base/buffer.h. */
#ifndef MOEBIUS_BASE_JSON_SPELL_H
#define MOEBIUS_BASE_JSON_SPELL_H

#include <jansson.h>
#include <stddef.h>
#include "base/buffer.h"

/* Appends; buffer->failed without memory. */
void json_spell(struct buffer *out, const json_t *value);
/* What stands between the quotes of a string; `text` [size] is valid UTF-8. */
void json_spell_inside(struct buffer *out, const char *text, size_t size);
/* A string with its quotes. */
void json_spell_string(struct buffer *out, const char *text, size_t size);

#endif
