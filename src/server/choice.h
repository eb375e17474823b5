/* server/choice.h - one answer among the choices of a request: events go in, text and logprobs collect, until
 * a chunk or the whole answer takes them out. I/O thread. Includes: base, text, server/api/api.h, server/message.h. */
#ifndef MOEBIUS_SERVER_CHOICE_H
#define MOEBIUS_SERVER_CHOICE_H

#include "server/api/api.h"
#include "base/buffer.h"
#include "server/parts.h"
#include "server/token_event.h"

struct choice {
    int index; /* as the answer shows it: by prompt, then by n */
    const struct api_request *request;
    const struct api_prompt *prompt;
    const struct tokenizer *tokenizer; /* or NULL */

    struct message message; /* of a chat: pieces not yet taken */
    struct buffer text;     /* of anything else: not yet taken */
    json_t *logprobs;       /* not yet taken; NULL if none */
    json_t *tokens;         /* ids, not yet taken; NULL if none, or nobody wants them */
    bool started;           /* an event came */
    bool head_sent;         /* what a stream says of it once: a chat's role, the prompt's ids */
    struct parts parts;     /* pieces that were taken, for protocols that tell of parts */

    struct text_stream offsets; /* decodes once more, for text_offset */
    int64_t text_offset;        /* code points of the text before the next token */
    int n_seen;                 /* prompt tokens that got logprobs */

    enum finish_reason finish;
    int stop_index;
    int32_t stop_token;
    int n_prompt, n_generated, n_cached;
    int n_reasoning;           /* of n_generated: tokens of thought, its end included */
    double prompt_s, answer_s; /* as in struct sched_event */
    bool has_break;            /* the text so far has a line end */
};

void choice_init(struct choice *choice, int index, const struct api_request *request, const struct api_prompt *prompt,
                 const struct tokenizer *tokenizer);
void choice_free(struct choice *choice);

/* Adds what the event brings. -1 without memory. */
int choice_take(struct choice *choice, const struct token_event *event);
/* The text so far, which is then empty: not a chat's, whose pieces are in `message`. The caller's; NULL without memory. */
json_t *choice_take_text(struct choice *choice);
/* A chat's pieces so far, into its parts. -1 without memory. */
int choice_take_parts(struct choice *choice, const struct parts_writer *writer);
/* The logprobs so far, or JSON null. */
json_t *choice_take_logprobs(struct choice *choice);
/* The prompt's ids: a list, the caller's. */
json_t *choice_prompt_tokens(const struct choice *choice);
/* The ids so far: a list, perhaps empty. */
json_t *choice_take_tokens(struct choice *choice);
/* The string of the request's `stop` that ended it, as text or as the token that it spells; NULL if none did. */
const char *choice_stop_string(const struct choice *choice);

/* logprobs.c: adds the event's token in the shape of the request's kind. -1 without memory. */
int choice_add_logprobs(struct choice *choice, const struct token_event *event);

#endif
