/* text/chat_tools.h - functions in a chat: messages with calls made into what a template prints. (The list of functions goes in as
 * the template's variable "tools".) Includes: base, text/chat.h. */
#ifndef MOEBIUS_TEXT_CHAT_TOOLS_H
#define MOEBIUS_TEXT_CHAT_TOOLS_H

#include "text/chat.h"

/* Changes messages [n], which are the caller's own, to what the template can say: a call's arguments become a text, its type
 * "function"; the content beside calls is what the template wants there; results come in the order of their
 * calls, where they name them. Refuses calls that are none, and results that no call
 * comes before: MO_E_INVALID names messages[i]. */
int chat_settle_calls(const struct chat_template *chat, json_t *messages, struct mo_error *error);

#endif
