/* server/respond/message.h - a chat's message as OpenAI's API, vLLM and DeepSeek's write it. I/O thread.
 * Includes: base (jansson), server/message.h. */
#ifndef MOEBIUS_SERVER_RESPOND_MESSAGE_H
#define MOEBIUS_SERVER_RESPOND_MESSAGE_H

#include "server/message.h"

/* The message of all its pieces, which stay: role, content, and reasoning_content and tool_calls where there are such. The
 * caller's; NULL without memory. */
json_t *respond_message(const struct message *message);
/* A piece as the delta of a chunk: the caller's. The end of a call says nothing there, and gets none. */
bool respond_has_delta(const struct message_piece *piece);
json_t *respond_delta(const struct message_piece *piece);

#endif
