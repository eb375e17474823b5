/* server/message_call.h - the fixed text around a call's name and arguments (text/calls.h). Pure. Private to message.c.
 * Includes: base (jansson), text. */
#ifndef MOEBIUS_SERVER_MESSAGE_CALL_H
#define MOEBIUS_SERVER_MESSAGE_CALL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include "text/chat.h"

enum { CALL_NOT_YET = -1, CALL_WRONG = -2 };

/* What stands between a call's first mark (DSML: its name's quote) and its arguments: how many bytes of text [n] it takes, or that
 * it is no such text, or not there as a whole. The name must be one of `tools`. */
int call_head(enum chat_calls form, const json_t *tools, const char *text, size_t n, const char **name,
              size_t *name_size);
/* The same for what stands behind the arguments, where these are one JSON object: not in DSML. */
int call_tail(enum chat_calls form, const char *text, size_t n);

#endif
