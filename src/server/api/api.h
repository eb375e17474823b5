/* server/api/api.h - a request's JSON to prompts, sampling and limits: everything that can be refused is refused
 * here, with the field's name, before anything is submitted. Pure: no connection, no scheduler; any thread.
 * Includes: base, text, sched (types), engine/engine.h. */
#ifndef MOEBIUS_SERVER_API_API_H
#define MOEBIUS_SERVER_API_API_H

#include "engine/engine.h"
#include "server/api/error.h"
#include "server/api/policy.h"
#include "server/message.h"

enum {
    API_N_MAX = 128,        /* n */
    API_CHOICES_MAX = 1024, /* prompts times n */
    /* Every choice has its own copy of these, and looks at them for every token. */
    API_STOP_MAX = 128,            /* stop strings */
    API_STOP_BYTES_MAX = 1 << 10,  /* of one */
    API_STOPS_BYTES_MAX = 8 << 10, /* of all together */
    API_STOP_TOKENS_MAX = 1024,    /* different ones in stop_token_ids */
    API_STOP_IDS_MAX = 100000,     /* entries of stop_token_ids */
    API_BIAS_MAX = 4096,           /* entries of logit_bias */
    API_EXTRA_MAX = 1024,          /* files in input_extra */
    API_FIELDS_MAX = 64,           /* names in response_fields */
    API_NAME_BYTES_MAX = 256,      /* of a model's name that is not served but taken for it: streams repeat it */
};

/* What requests are checked against: read only. */
struct api_model {
    const struct engine *engine; /* open; or only its text side, in tests */
    const char *const *names;    /* [n_names] names that "model" may have; the first is the default */
    int n_names;
    bool any_name;                   /* others are taken for the default */
    bool keeps_thoughts;             /* answers are not split into thought and content, unless a request asks for it */
    const struct api_policy *policy; /* NULL: the server has no flags that say anything */
};

/* After the first two: two of llama.cpp's and two of Ollama's; then chats in other words: Anthropic's messages, the same only to
 * be counted, OpenAI's responses, and those to be counted. */
enum api_kind {
    API_CHAT,
    API_COMPLETION,
    API_LLAMA,
    API_INFILL,
    API_OLLAMA_GENERATE,
    API_OLLAMA_CHAT,
    API_MESSAGES,
    API_COUNT,
    API_RESPONSES,
    API_RESPONSES_COUNT
};

static inline bool api_is_llama(enum api_kind kind) {
    return kind == API_LLAMA || kind == API_INFILL;
}
static inline bool api_is_ollama(enum api_kind kind) {
    return kind == API_OLLAMA_GENERATE || kind == API_OLLAMA_CHAT;
}

/* Its prompt is made, but never run. */
static inline bool api_is_count(enum api_kind kind) {
    return kind == API_COUNT || kind == API_RESPONSES_COUNT;
}

static inline bool api_is_translated(enum api_kind kind) {
    return kind == API_MESSAGES || kind == API_RESPONSES || api_is_count(kind);
}

/* Its prompt is made of messages, and its answer is one. */
static inline bool api_is_chat(enum api_kind kind) {
    return kind == API_CHAT || kind == API_OLLAMA_CHAT || api_is_translated(kind);
}

/* Its answer is read as a message: Ollama's prompts may be one, too. */
static inline bool api_has_message(enum api_kind kind) {
    return api_is_chat(kind) || kind == API_OLLAMA_GENERATE;
}

struct api_prompt {
    struct token_list ids;
    const char *text; /* [text_size] what echo repeats: the request's own text, or `decoded` */
    size_t text_size;
    char *decoded;
    int32_t grammar_after; /* the token that ends the reasoning which the prompt has opened; -1: it has not */
    bool is_text;          /* given as text, so special tokens in it are text too; false: given as ids */
    bool is_cut;           /* there was more of it than the context holds */
};

struct api_request {
    enum api_kind kind;
    const char *model; /* one of api_model.names */
    bool stream, include_usage, echo;
    bool usage_per_chunk; /* vLLM's continuous_usage_stats */
    bool tokens_as_ids;   /* vLLM's return_tokens_as_token_ids: logprobs name tokens by number */
    bool timings;         /* timings_per_token: every object of the answer says how long it took */
    bool return_tokens;   /* return_tokens (llama.cpp), return_token_ids (vLLM): the ids too; Ollama's context */
    bool only_loads;      /* Ollama's: there are no prompts, only the question whether the model is there */
    int n;
    struct api_prompt *prompts; /* [n_prompts] */
    int n_prompts;
    /* For every choice the same but for prompt, choice and grammar_after. Points into this struct; the grammar is kept. */
    struct sched_request sched;
    struct message_rules message; /* of a chat: how its answer is read. Points into this struct */

    int n_predict;                 /* llama.cpp's, as asked for: -1 for what the context holds */
    const json_t *response_fields; /* llama.cpp's: a list of strings, or NULL for all; in `root` */
    int context;                   /* tokens */

    json_t *root;            /* the body: strings above point into it */
    json_t *given;           /* as it came, where `root` is its translation into a chat's; else NULL */
    struct logit_bias *bias; /* [sched.sampling.n_bias] */
    const char **stop;       /* [sched.n_stop] */
    int32_t *stop_tokens;    /* [sched.n_stop_tokens]: the request's first, then what `stop` and FIM add */
    int n_named_stop_tokens; /* of them, in stop_token_ids */
};

/* 0, or -1 with `error`. `request` may be freed in both cases. */
int api_request_parse(struct api_request *request, enum api_kind kind, const struct api_model *model, const char *body,
                      size_t size, struct api_error *error);
/* The same of a body that fields_parse has read, which it takes over. */
int api_request_read(struct api_request *request, enum api_kind kind, const struct api_model *model, json_t *root,
                     struct api_error *error);
void api_request_free(struct api_request *request); /* accepts a zeroed one */

/* The served name that "model" asks for: NULL with `error` if there is none. A missing field takes the
 * default. */
const char *api_model_name(const struct api_model *model, const json_t *field, struct api_error *error);

#endif
