/* server/token_event.h - a copy of a scheduler's event that can wait: the engine thread makes it, the I/O
 * thread reads and frees it. One allocation each. Includes: sched (types). */
#ifndef MOEBIUS_SERVER_TOKEN_EVENT_H
#define MOEBIUS_SERVER_TOKEN_EVENT_H

#include "sched/sched.h"

struct token_event {
    struct token_event *next;
    int choice; /* index */
    bool is_prompt;
    int32_t token; /* -1: none */
    float logprob;
    enum finish_reason finish;
    int stop_index; /* which of the request's stop strings ended it, or -1 */
    int32_t stop_token;
    int n_prompt, n_generated, n_cached;
    double prompt_s, answer_s;
    int n_top;
    size_t text_size, bytes;         /* bytes: of this allocation */
    const struct token_logprob *top; /* [n_top] */
    const char *text;                /* [text_size] */
};

/* `stop` [n_stop] are the request's strings. NULL without memory. Freed with free(). */
struct token_event *token_event_copy(const struct sched_event *event, int choice, const char *const *stop, int n_stop);

#endif
