/* cmd/serve/defaults.h - what requests to `serve` and `run-batch` get where they say nothing: sampling flags by llama-server's names,
 * and vLLM's --override-generation-config. Both stand over the model's own settings. */
#ifndef MOEBIUS_CMD_SERVE_DEFAULTS_H
#define MOEBIUS_CMD_SERVE_DEFAULTS_H

#include "base/buffer.h"
#include "cmd/sampling.h"
#include "model/model.h"

enum { DEFAULTS_FLAGS_MAX = SAMPLING_FLAGS_MAX + 4 };

struct defaults_flags {
    struct sampling_flags sampling;
    int max_tokens;
    bool has_max_tokens;
    const char *json;                  /* vLLM's; NULL: not given */
    struct generation_defaults values; /* of all of these, once they are settled */
};

/* Returns how many there are. */
int defaults_flags(struct defaults_flags *given, struct cli_flag flags[DEFAULTS_FLAGS_MAX]);
/* After parsing: given->values. */
int defaults_flags_settle(struct defaults_flags *given, struct mo_error *error);
/* What is given, as " name=value" each, the same text for the same values. */
void defaults_flags_print(const struct defaults_flags *given, struct buffer *text);

#endif
