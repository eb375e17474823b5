/* server/api/translate.h - the request bodies of two more APIs, translated into a chat's: Anthropic's Messages and OpenAI's
 * Responses. What comes out goes the way of every chat; fields that a chat knows and these do not (seed, min_p, ...) pass.
 * Pure; any thread. Includes: server/api/fields.h. */
#ifndef MOEBIUS_SERVER_API_TRANSLATE_H
#define MOEBIUS_SERVER_API_TRANSLATE_H

#include "server/api/fields.h"

/* api/anthropic.c, api/responses.c: the body of POST /v1/chat/completions that asks for the same. The caller's; NULL with
 * `error`. Shares values with `body`. `places_system`: of the chat's template (chat.h). */
json_t *api_anthropic_to_chat(const json_t *body, bool only_counts, bool places_system, struct api_error *error);
json_t *api_responses_to_chat(const json_t *body, bool places_system, struct api_error *error);

/* api/turns.c: a chat's messages on their way. */
struct turns {
    json_t *messages;    /* NULL once memory ran out */
    json_t *open;        /* the last one, while more that the same side says belongs to it; else NULL: in `messages` */
    const char *speaker; /* "user", "assistant": of `open` */
    json_t *thought;     /* a string that belongs to the answer that comes next, or NULL: turns_free */
    bool has_begun;      /* something was said that is no instruction */
    bool places_system;  /* instructions that come later have a place of their own there */
};
/* More that "system" (or "developer"), "user" or "assistant" say. Takes `content` over: a string, or a list of text parts. */
void turns_add(struct turns *turns, const char *role, json_t *content);
void turns_add_call(struct turns *turns, const char *id, const char *name,
                    json_t *arguments); /* a string; taken over */
void turns_add_result(struct turns *turns, const char *id, json_t *content);
/* Some of what an answer thought before what comes next, a string: templates leave out what is past. */
void turns_add_thought(struct turns *turns, const json_t *text);
/* What is not in `messages`. */
void turns_free(struct turns *turns);
/* The last message is an answer that was begun, without calls: it goes on. */
void turns_go_on(struct turns *turns);

/* {"type": "function", "function": {...}} of its parts; description and strict may be NULL or absent. */
json_t *turns_tool(const json_t *name, const json_t *description, const json_t *parameters, const json_t *strict);
/* tool_choice for one function. */
json_t *turns_choice(const json_t *name);

#endif
