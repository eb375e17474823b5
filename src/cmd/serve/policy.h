/* cmd/serve/policy.h - the flags of `serve` and `run-batch` that say something about every request but how tokens are chosen. */
#ifndef MOEBIUS_CMD_SERVE_POLICY_H
#define MOEBIUS_CMD_SERVE_POLICY_H

#include "base/buffer.h"
#include "cli/cli.h"
#include "engine/engine.h"
#include "server/api/policy.h"

enum { POLICY_FLAGS_MAX = 12 };

struct policy_flags {
    const char *template_json; /* vLLM's; NULL: not given */
    int reasoning;             /* llama.cpp's: 0 auto, 1 on, 2 off */
    int reasoning_budget;      /* the same once more: 0 off, -1 not */
    bool has_reasoning_budget;
    const char *reasoning_effort; /* NULL: not given */
    json_t *template_variables;   /* of all of these, once they are settled; or NULL */
};

/* Returns how many there are. */
int policy_flags(struct policy_flags *given, struct api_policy *policy, struct cli_flag flags[POLICY_FLAGS_MAX]);
/* After parsing: into `policy`, which points into `given`. */
int policy_flags_settle(struct policy_flags *given, struct api_policy *policy, struct mo_error *error);
/* Once the model's chat template is known: a value that it does not take would be refused in every chat. */
int policy_check(const struct api_policy *policy, const struct engine *engine, struct mo_error *error);
void policy_flags_free(struct policy_flags *given);
/* What changes answers, as " name=value" each; nothing where no flag was given. */
void policy_print(const struct api_policy *policy, struct buffer *text);

#endif
