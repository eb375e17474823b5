/* server/frame.h - the frames of a stream. -1 without memory. Includes: base/buffer.h, jansson. */
#ifndef MOEBIUS_SERVER_FRAME_H
#define MOEBIUS_SERVER_FRAME_H

#include <jansson.h>
#include "base/buffer.h"

/* A server-sent event. Takes `json` over. `event` names it, or is NULL. */
int frame_add(struct buffer *out, const char *event, json_t *json);
/* A line of JSON, for those who read no events. Takes `json` over. */
int frame_add_line(struct buffer *out, json_t *json);
/* A comment between events. */
int frame_add_comment(struct buffer *out);

#endif
