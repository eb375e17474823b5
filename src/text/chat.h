/* text/chat.h - messages to prompt text, without a Jinja interpreter: one C function per released template,
 * chosen by marker strings in the checkpoint's own template, byte-equal to what Jinja2 renders (the releases of V3.2, V4 and V4.1
 * have a Python module instead: to what that renders).
 *
 * The result remembers which bytes the template itself wrote: only there may added tokens be recognised, so a
 * user's text can never become a special token. Includes: base, text/tokenizer.h. */
#ifndef MOEBIUS_TEXT_CHAT_H
#define MOEBIUS_TEXT_CHAT_H

#include <jansson.h>
#include "text/tokenizer.h"

/* deepseek-coder-v2, deepseek-v3, deepseek-v3-0324, deepseek-r1, deepseek-r1-0528, deepseek-v3.1, deepseek-v3.1-terminus (V3.2-Exp's
 * too), deepseek-v3.2, deepseek-v4, deepseek-v4-0731, deepseek-v4.1 */
struct chat_template;

/* By `--chat-template NAME`; NULL if unknown. */
const struct chat_template *chat_template_by_name(const char *name);
/* By the text of a checkpoint's template: ordered markers in one table; NULL if it is none of ours. */
const struct chat_template *chat_template_detect(const char *jinja);
const char *chat_template_name(const struct chat_template *chat);
/* Whether an answer begins with reasoning though the template does not open it: the model writes "<think>" itself. */
bool chat_template_reasons(const struct chat_template *chat);
/* Whether it may begin with thought where nothing says so, as behind a tool's result. */
bool chat_template_may_reason(const struct chat_template *chat);
/* How a model writes that it calls a function; messages' tool_calls are written the same way. */
enum chat_calls {
    CHAT_CALLS_PLAIN, /* <tool_call>, {"name": ..., "arguments": {...}}, </tool_call>, a line each: models without own tokens */
    CHAT_CALLS_FENCED, /* V3, R1: <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME, the arguments in a block of ```json */
    CHAT_CALLS_BARE,      /* V3.1: <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS */
    CHAT_CALLS_DSML,      /* V3.2: <｜DSML｜invoke name="NAME">, a <｜DSML｜parameter ...> for each argument */
    CHAT_CALLS_DSML_V4,   /* V4: the same in a block of another name */
    CHAT_CALLS_DSML_V4_1, /* V4.1: again of another, and with a blank behind the mark in every tag */
    N_CHAT_CALLS,
};
enum chat_calls chat_template_calls(const struct chat_template *chat);
/* What goes between the parts of a message that is sent in parts: a new line, in V4's formats an empty one. */
const char *chat_template_gap(const struct chat_template *chat);
/* Whether the system's messages stand where they come, and not all in front as with most. */
bool chat_template_places_system(const struct chat_template *chat);
bool chat_calls_are_dsml(enum chat_calls form);
/* How that form of DSML spells its tags; NULL where it is none. */
const struct dsml_tags *chat_calls_tags(enum chat_calls form);
/* "deepseek-coder-v2, deepseek-v3, ...", for messages. */
const char *chat_template_names(void);
/* What --chat-template NAME says (NULL: not given), else the checkpoint's own template or module, or the one of its architecture
 * where a release has none. If it is none of ours, the message names the flag. */
int chat_template_choose(const struct chat_template **chat, const char *name, const struct tokenizer *tokenizer,
                         struct mo_error *error);

struct chat_prompt {
    char *text; /* [size], NUL-terminated; starts with BOS */
    size_t size;
    struct text_range *ranges; /* [n_ranges] bytes that the template wrote, ascending, disjoint */
    size_t n_ranges;
};
void chat_prompt_free(struct chat_prompt *prompt); /* accepts a zeroed one */

/* `messages` is an OpenAI message array; `kwargs` an object of extra template variables or NULL (V3.1 and
 * later: thinking; V3.2 and V4s: response_format, a schema; V4s: reasoning_effort, drop_thinking; all: tools, OpenAI's list of
 * functions, which is told to the model with the system's message). A message that the template could not render (unknown role,
 * missing content, arguments not a string, ...) is MO_E_INVALID and names messages[i]. `bos` and `eos` are the contents of those tokens. */
int chat_render(const struct chat_template *chat, const json_t *messages, bool add_generation_prompt,
                const json_t *kwargs, const char *bos, const char *eos, struct chat_prompt *out,
                struct mo_error *error);

#endif
