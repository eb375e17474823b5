/* cmd/serve/flags.h - the flags of `serve`: its own, the engine's, and those of vLLM's command lines, which
 * either change something here, do nothing and say so in a line, or are refused with the reason before
 * anything is loaded. */
#ifndef MOEBIUS_CMD_SERVE_FLAGS_H
#define MOEBIUS_CMD_SERVE_FLAGS_H

#include "cli/cli.h"
#include "cmd/serve/defaults.h"
#include "cmd/serve/listen.h"
#include "cmd/serve/policy.h"
#include "cmd/serve/words.h"
#include "engine/engine.h"
#include "server/server.h"

enum { SERVE_FLAGS_MAX = ENGINE_FLAGS_MAX + 256 };

struct serve_arguments {
    struct engine_options engine;
    struct server_options server;
    struct listen_flags listen;
    struct defaults_flags defaults;
    struct policy_flags policy;
    struct words_flags words;
    struct cli_list names, keys, origins; /* served names and origins (each perhaps a list with commas), API keys */
    const char *key_file;
    const char *speculative; /* vLLM's JSON for --draft-max; NULL: not given */
    bool no_prefix_caching;
    int reasoning_format; /* llama.cpp's: 0 auto, 1 deepseek, 2 none */
    /* vLLM's */
    const char *tokenizer;
    int tensor_parallel, data_parallel;
    int dtype;
    bool has_dtype;
};

void serve_arguments_init(struct serve_arguments *arguments);
void serve_arguments_free(struct serve_arguments *arguments); /* accepts those that were never settled */
void serve_flags(struct serve_arguments *arguments, struct cli_flag flags[SERVE_FLAGS_MAX]);
/* Of them, those that make sense without a connection: for `run-batch`. */
void serve_flags_offline(struct serve_arguments *arguments, struct cli_flag flags[SERVE_FLAGS_MAX]);
/* After parsing: refuses what cannot be had, fills server.names and server.auth. Looks at config.json of the
 * model, and at nothing larger. `model`: without a flag, or NULL. */
int serve_arguments_settle(struct serve_arguments *arguments, const char *model, struct mo_error *error);

/* What of it changes answers to the same request by the same model, as text; nothing where nothing was given. */
void serve_arguments_print(const struct serve_arguments *arguments, struct buffer *text);

#endif
