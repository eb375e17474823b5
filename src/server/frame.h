/* server/frame.h - one server-sent event. Includes: server/buffer.h, jansson. */
#ifndef MOEBIUS_SERVER_FRAME_H
#define MOEBIUS_SERVER_FRAME_H

#include <jansson.h>
#include "server/buffer.h"

/* Takes `json` over. `event` names it, or is NULL. -1 without memory. */
int frame_add(struct buffer *out, const char *event, json_t *json);

#endif
