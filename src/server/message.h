/* server/message.h - an answer's text, piece by piece, as the parts of a chat's message: what it thought, what it says, and the
 * functions that it calls.
 *
 * Every responder reads a chat's answer from here (struct choice has one): a stream takes the pieces after each event, a whole
 * answer takes them once at the end; neighbours of one kind are one piece. The pieces do not depend on how the text was cut:
 * bytes that may become a marker, newlines around thoughts and calls, and half characters are held back until they are
 * certain. No JSON, no HTTP in here. I/O thread. Includes: base (jansson), text, base/buffer.h. */
#ifndef MOEBIUS_SERVER_MESSAGE_H
#define MOEBIUS_SERVER_MESSAGE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include "base/buffer.h"
#include "text/chat.h"

enum message_thought {
    MESSAGE_NO_THOUGHT,    /* all text is content */
    MESSAGE_MAYBE_THOUGHT, /* it is thought if it begins with "<think>" */
    MESSAGE_THOUGHT_FIRST, /* it is thought until "</think>" comes */
};

/* How a text is to be read. Zeroed: all of it is content. */
struct message_rules {
    enum message_thought thought;
    bool hides_thought;   /* leave it out */
    const json_t *tools;  /* the request's list (api/tools.c); NULL: nothing is called. Outlives the message */
    enum chat_calls form; /* with tools: how calls are written */
};

enum message_kind {
    MESSAGE_REASONING, /* text */
    MESSAGE_CONTENT,   /* text */
    MESSAGE_CALL,      /* a call begins: text is the function's name, one of `tools` */
    MESSAGE_ARGUMENTS, /* text: some of its JSON object */
    MESSAGE_CALL_END,  /* no text */
};

struct message_piece {
    enum message_kind kind;
    const char *text; /* [size] valid UTF-8, whole characters; until the next call that changes the message */
    size_t size;
    int call;        /* of a call: 0, 1, ...; -1 otherwise */
    char id[40];     /* of a call: "call_..."; else empty */
    bool is_cut_off; /* MESSAGE_CALL_END: the text ended before the arguments did, so they are not JSON */
};

struct message_part; /* a piece as it is kept */
struct message {
    struct message_rules rules;
    int state;                  /* message.c's */
    struct buffer held;         /* not decided yet */
    struct buffer text;         /* of the parts */
    struct message_part *parts; /* [n_parts] not taken yet */
    int n_parts, parts_capacity;
    bool has_thought;     /* it began with thought */
    int n_calls;          /* begun */
    bool call_is_cut_off; /* the last one */
    int depth;            /* of the arguments' JSON */
    bool in_string, is_escaped;
    int n_parameters; /* of the arguments, in DSML */
    size_t n_seen;    /* bytes of a parameter's JSON that were looked at */
    bool is_in_block; /* of calls in DSML, behind the first */
    int n_newlines;   /* before the last marker, left out with it */
    char id[32];      /* what the ids of its calls begin with */
    bool failed;      /* no memory */
};

void message_init(struct message *message, const struct message_rules *rules);
void message_free(struct message *message); /* accepts a zeroed one */

/* Adds text: valid UTF-8 as a whole. -1 without memory. */
int message_push(struct message *message, const char *text, size_t size);
/* The text ends here: decides what was held. A call without a name yet is left out. */
int message_finish(struct message *message);

/* The pieces that nobody has taken: look at all of them, then message_clear. */
int message_count(const struct message *message);
struct message_piece message_at(const struct message *message, int index);
void message_clear(struct message *message);

/* Whether what comes next is thought, as far as can be told. */
bool message_is_thinking(const struct message *message);
bool message_has_thought(const struct message *message);
/* Something was called, and its arguments are whole: the finish reason is "tool_calls", unless it ended by length. */
bool message_has_called(const struct message *message);

#endif
