/* cmd/run/chat.h - `run --chat`: a conversation on the terminal. */
#ifndef MOEBIUS_CMD_RUN_CHAT_H
#define MOEBIUS_CMD_RUN_CHAT_H

#include "engine/engine.h"

/* Talks until the end of input. `request` holds everything but the prompt; `system` may be NULL; `first` (may be NULL) is the
 * first thing the user says. */
int chat_loop(struct engine *engine, const struct sched_request *request, const char *system, const char *first,
              struct mo_error *error);

#endif
