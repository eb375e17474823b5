/* cmd/serve/words.h - flags from the command lines of vLLM and llama-server: those that mean something here by another word, those
 * that change nothing and say why, and those that are refused with the reason, so that none is ignored silently. */
#ifndef MOEBIUS_CMD_SERVE_WORDS_H
#define MOEBIUS_CMD_SERVE_WORDS_H

#include "cli/cli.h"
#include "engine/engine.h"

enum { WORDS_MEANT_MAX = 8, WORDS_OTHER_MAX = 128 };

struct words_flags {
    int context;            /* llama.cpp's: 0 stands for what there is */
    const char *gpu_layers; /* a number, "all", "auto"; NULL: not given */
    int only;               /* of flags with one value that can be had */
};

/* Return how many there are: those that mean something, which go before the engine's own; and all others. */
int words_flags(struct words_flags *given, struct cli_flag flags[WORDS_MEANT_MAX]);
int words_flags_other(struct cli_flag flags[WORDS_OTHER_MAX]);
/* After parsing: into `engine`. */
int words_flags_settle(const struct words_flags *given, struct engine_options *engine, struct mo_error *error);
/* Once it is known what the model is: whether a card may take as much of it as was asked for. */
int words_flags_check(const struct words_flags *given, const struct engine_options *engine, const struct model *model,
                      struct mo_error *error);

#endif
