#include "cli/override_flags.h"

#include <stdlib.h>
#include <string.h>
#include "base/log.h"

size_t override_flags_add(struct override_flags *overrides, struct cli_flag *flags) {
    /* clang-format off */
    const struct cli_flag table[OVERRIDE_FLAGS_MAX] = {
        {.names = "--hf-overrides", .type = CLI_STRING, .target = &overrides->json, .value = "JSON",
         .help = "keys of config.json said otherwise: '{\"num_experts_per_tok\": 6}' (also\nmax_position_embeddings, rope_theta, rope_scaling)"},
        {.names = "--override-kv", .type = CLI_LIST, .target = &overrides->kv, .value = "KEY=TYPE:VALUE",
         .help = "the same by GGUF's names: deepseek2.expert_used_count=int:6"},
    };
    /* clang-format on */
    memcpy(flags, table, sizeof table);
    return OVERRIDE_FLAGS_MAX;
}

int override_flags_read(const struct override_flags *flags, struct overrides **out, struct mo_error *error) {
    return overrides_read(out, flags->json, flags->kv.items, flags->kv.n, error);
}

static void say(const json_t *change, FILE *out) {
    const char *key = json_string_value(json_object_get(change, "key"));
    const char *by = json_string_value(json_object_get(change, "by"));
    char *value = json_dumps(json_object_get(change, "value"), JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
    char *old = json_dumps(json_object_get(change, "instead_of"), JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
    if (value && old && out) fprintf(out, "%s: %s instead of %s, by %s\n", key, value, old, by);
    if (value && old && !out) log_info("%s %s instead of %s, by %s", key, value, old, by);
    free(value);
    free(old);
}

int override_flags_say(const struct checkpoint *checkpoint, FILE *out, struct mo_error *error) {
    json_t *changes;
    int code = checkpoint_changes(checkpoint, &changes, error);
    if (code) return code;
    for (size_t i = 0; i < json_array_size(changes); i++) say(json_array_get(changes, i), out);
    json_decref(changes);
    return 0;
}

json_t *override_flags_json(const struct checkpoint *checkpoint) {
    json_t *changes = NULL;
    return checkpoint_changes(checkpoint, &changes, NULL) ? NULL : changes;
}
