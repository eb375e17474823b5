/* server/parts.h - an answer as a list of parts, one after the other: reasoning, text, calls. The protocols of coding tools
 * tell of each part when it begins, as it grows and when it ends; a whole answer is the same list at its end, so the two
 * cannot differ. I/O thread. Includes: base/buffer.h. */
#ifndef MOEBIUS_SERVER_PARTS_H
#define MOEBIUS_SERVER_PARTS_H

#include "base/buffer.h"

enum part_kind { PART_REASONING, PART_TEXT, PART_CALL };

struct part {
    enum part_kind kind;
    struct buffer text; /* of a call: its arguments */
    char *call_id, *name;
    bool is_open;
};

/* Zero it before use. */
struct parts {
    struct part *list; /* [n]; the last one may be open */
    int n, capacity;
    bool has_begun;     /* the stream's first events are out */
    bool is_over;       /* nothing comes after the last part */
    int n_events;       /* so far, for protocols that number them */
    struct buffer *out; /* where a stream's frames go; NULL: it is none */
};

/* How a protocol tells of parts. -1 without memory. */
struct parts_writer {
    int (*begin)(void *context, struct parts *parts, const struct part *part);
    int (*grow)(void *context, struct parts *parts, const struct part *part, const char *text, size_t size);
    int (*end)(void *context, struct parts *parts, const struct part *part);
    void *context;
};

/* More of the answer: goes to the open part if it is of this kind, else to a new one. */
int parts_add(struct parts *parts, const struct parts_writer *writer, enum part_kind kind, const char *text,
              size_t size);
/* A call begins; its arguments come by parts_add. */
int parts_add_call(struct parts *parts, const struct parts_writer *writer, const char *id, const char *name,
                   size_t name_size);
/* Ends the open part, if there is one. */
int parts_end(struct parts *parts, const struct parts_writer *writer);
/* The answer is over: one without parts gets a text, since many clients read the first without a look. */
int parts_finish(struct parts *parts, const struct parts_writer *writer);
int parts_index(const struct parts *parts, const struct part *part);
void parts_free(struct parts *parts);

#endif
