/* cli/override_flags.h - --hf-overrides and --override-kv (model/overrides.h): the flags, and saying aloud what they change. */
#ifndef MOEBIUS_CLI_OVERRIDE_FLAGS_H
#define MOEBIUS_CLI_OVERRIDE_FLAGS_H

#include <stdio.h>
#include "cli/cli.h"
#include "model/checkpoint.h"
#include "model/overrides.h"

struct override_flags {
    const char *json;
    struct cli_list kv;
};

/* The table's entries for these, into flags [OVERRIDE_FLAGS_MAX]; returns how many. */
enum { OVERRIDE_FLAGS_MAX = 2 };
size_t override_flags_add(struct override_flags *overrides, struct cli_flag *flags);

/* NULL in *out: nothing is said. overrides_free */
int override_flags_read(const struct override_flags *flags, struct overrides **out, struct mo_error *error);

/* "num_experts_per_tok 6 instead of 8, by --hf-overrides": a line for each change, to the log, or to `out` unless that is NULL. */
int override_flags_say(const struct checkpoint *checkpoint, FILE *out, struct mo_error *error);
/* The list of changes, for programs; NULL: no memory. */
json_t *override_flags_json(const struct checkpoint *checkpoint);

#endif
