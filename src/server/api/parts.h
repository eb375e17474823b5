/* server/api/parts.h - the pieces of api_request_parse, one file each. Includes: server/api/api.h,
 * server/api/fields.h. */
#ifndef MOEBIUS_SERVER_API_PARTS_H
#define MOEBIUS_SERVER_API_PARTS_H

#include "server/api/api.h"
#include "server/api/fields.h"

/* What an answer must look like: nothing while `param` is NULL. Points into the request's body. */
struct api_wish {
    const char *param; /* the field */
    const char *where; /* in it: for messages */
    enum grammar_kind kind;
    const json_t *value;
};

/* A request on its way. */
struct api_job {
    const struct api_model *model;
    struct api_request *request;
    struct fields fields;

    /* of the tools in request->message (api/tools.c) */
    const json_t *named_tool;    /* the one to call; NULL: any */
    const json_t *allowed_tools; /* a list that names those that may be called; NULL: all */
    bool must_call, many_calls;
    struct api_wish wish; /* api/structured.c */
};

/* api/api.c: the server's rules; without any, those of one without flags. */
const struct api_policy *api_policy_of(const struct api_model *model);
/* api/completions.c: prompt, suffix, echo, logprobs, max_tokens. */
void api_completion_parse(struct api_job *job);
/* api/completions.c: of them, prompt and suffix. */
void api_prompts_parse(struct api_job *job);
/* api/llama.c: what llama.cpp's own endpoints call by other names, and what only they have. */
void api_llama_parse(struct api_job *job);
void api_llama_defaults(const struct engine *engine, struct sampling *sampling);
void api_llama_sampling(struct api_job *job);
/* api/ollama.c: Ollama's whole body; its names and defaults of sampling. */
void api_ollama_parse(struct api_job *job);
void api_ollama_defaults(const struct engine *engine, struct sampling *sampling);
void api_ollama_sampling(struct api_job *job);
/* api/sampling.c: of them all, what steers the choice of tokens and where it ends: `fields` may be an object in the body. */
void api_settings_parse(struct api_job *job);
/* api/infill.c: input_prefix, input_suffix, input_extra and prompt to a hole's prompt. */
void api_infill_parse(struct api_job *job);
/* api/chat.c: messages, logprobs, max_tokens. */
void api_chat_parse(struct api_job *job);
/* api/chat.c: the messages as the template (or NULL) knows them: parts joined, "developer" a system, calls settled. The
 * caller's; NULL with `error`. */
json_t *api_messages_copy(const json_t *messages, const struct chat_template *chat, struct api_error *error);
/* api/chat.c: the template's variables: chat_template_kwargs, thinking, the tools or NULL, and the server's own of those that are
 * not said. The caller's; NULL for an error. */
json_t *api_template_variables(struct fields *f, const struct api_model *model, const json_t *tools);

/* api/tools.c: the functions of a body, and those that tool_choice names, by the names that they have with their namespaces. */
void api_tools_settle(json_t *root, struct api_error *error);
/* api/tools.c: "tools", checked; NULL for none, or an error. */
const json_t *api_tools_read(struct fields *f);
/* api/tools.c: what may be called, into the request's message rules. */
void api_tools_parse(struct api_job *job);
/* api/tools.c: the grammar of an answer that calls, or is of the schema `content` (NULL: any text). */
void api_tools_compile(struct api_job *job, const json_t *content);

/* api/stop.c: stop, stop_token_ids, ignore_eos and what goes with them. */
void api_stop_parse(struct api_job *job);
/* api/stop.c: once the prompts are there: a model that fills a hole has its own tokens to stop at. */
void api_stop_add_fim(struct api_job *job);

/* api/structured.c: response_format, structured_outputs and the older spellings, or Ollama's format: what an answer must look
 * like. */
void api_structured_parse(struct api_job *job);
/* api/structured.c: once the prompts are there: where reasoning comes first, the grammar begins behind it; and one for tools is
 * made. */
void api_structured_place(struct api_job *job);

/* Room for `n` prompts; false with an error. */
bool api_prompts_reserve(struct api_job *job, size_t n);
/* The prompt's tokens could not be made, for `cause`. */
void api_prompt_failed(struct api_job *job, const struct api_prompt *prompt, const struct mo_error *cause,
                       const char *param);
/* A text as a completion's prompt: added tokens are recognised, and `bos` puts one in front. */
int api_text_encode(const struct engine *engine, const char *text, size_t size, bool bos, struct token_list *out,
                    struct mo_error *error);

#endif
