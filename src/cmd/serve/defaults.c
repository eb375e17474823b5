#include "cmd/serve/defaults.h"

#include <limits.h>
#include <math.h>
#include <string.h>
#include "base/json.h"

static const char WHERE[] = "--override-generation-config";

/* --- the table ----------------------------------------------------------------------------------- */

int defaults_flags(struct defaults_flags *given, struct cli_flag flags[DEFAULTS_FLAGS_MAX]) {
    /* clang-format off */
    const struct cli_flag more[] = {
        {.names = "--n-predict,--predict,-n", .type = CLI_INT, .target = &given->max_tokens, .given = &given->has_max_tokens, .min = -1,
         .max = INT_MAX, .value = "N", .help = "most tokens of an answer, whatever a request asks for; -1 (default):\nwhat the context holds"},
        {.names = WHERE, .type = CLI_STRING, .target = &given->json, .value = "JSON",
         .help = "the same in vLLM's words: {\"temperature\": 0.6, \"top_p\": 0.95,\n\"max_new_tokens\": N, ...}; a flag goes before it"},
    };
    /* clang-format on */
    int n = 0;
    sampling_flags_table(&given->sampling, flags);
    while (strcmp(flags[n].names, "--logit-bias") != 0) n++; /* from there on it is a request's alone */
    flags[0].names = "Sampling where a request says nothing (default: the model's own settings)";
    memcpy(flags + n, more, sizeof more);
    return n + (int)(sizeof more / sizeof *more);
}

/* --- what was given ------------------------------------------------------------------------------ */

/* The keys of generation_config.json that steer the choice of tokens, or end it. Ranges are those of the flags. */
static const struct key {
    const char *name;
    size_t offset; /* of a double in the values */
    double min, max;
} KEYS[] = {
    {"temperature", offsetof(struct generation_defaults, temperature), 0, 100},
    {"top_p", offsetof(struct generation_defaults, top_p), 0, 1},
    {"min_p", offsetof(struct generation_defaults, min_p), 0, 1},
    {"repetition_penalty", offsetof(struct generation_defaults, repetition_penalty), 0.001, 100},
    {"presence_penalty", offsetof(struct generation_defaults, presence_penalty), -2, 2},
    {"frequency_penalty", offsetof(struct generation_defaults, frequency_penalty), -2, 2},
};
enum { N_KEYS = sizeof KEYS / sizeof *KEYS };

static double *value_of(struct generation_defaults *values, const struct key *key) {
    return (double *)((char *)values + key->offset);
}

static int check_names(json_t *root, struct mo_error *error) {
    const char *name;
    json_t *value;
    json_object_foreach(root, name, value) {
        bool known = !strcmp(name, "top_k") || !strcmp(name, "max_new_tokens") || !strcmp(name, "do_sample");
        for (int i = 0; i < N_KEYS && !known; i++) known = !strcmp(name, KEYS[i].name);
        if (known) continue;
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "%s: \"%.60s\" is not supported: expected temperature, top_p, top_k, min_p, "
                            "repetition_penalty, presence_penalty, frequency_penalty, max_new_tokens or do_sample",
                            WHERE, name);
    }
    return 0;
}

static int read_values(json_t *root, struct generation_defaults *values, struct mo_error *error) {
    bool samples = true;
    int code = check_names(root, error);
    for (int i = 0; i < N_KEYS && !code; i++) {
        code = json_get_double(root, KEYS[i].name, JSON_OPTIONAL_KEY, KEYS[i].min, KEYS[i].max, WHERE,
                               value_of(values, &KEYS[i]), error);
    }
    if (!code) code = json_get_int(root, "top_k", JSON_OPTIONAL_KEY, -1, 1 << 22, WHERE, &values->top_k, error);
    if (!code) {
        code = json_get_int(root, "max_new_tokens", JSON_OPTIONAL_KEY, 1, INT_MAX, WHERE, &values->max_tokens, error);
    }
    if (!code) code = json_get_bool(root, "do_sample", JSON_OPTIONAL_KEY, WHERE, &samples, error);
    if (!samples) values->temperature = 0;
    if (values->top_k < 0 && json_object_get(root, "top_k")) values->top_k = 0; /* -1 is all of them, too */
    return code;
}

static int read_json(const char *text, struct generation_defaults *values, struct mo_error *error) {
    json_t *root = NULL;
    int code = json_parse(text, strlen(text), WHERE, &root, error);
    if (!code && !json_is_object(root)) {
        code = mo_error_set(error, MO_E_INVALID, "%s: expected an object, found %s", WHERE, json_type_name(root));
    }
    if (!code) code = read_values(root, values, error);
    json_decref(root);
    return code;
}

int defaults_flags_settle(struct defaults_flags *given, struct mo_error *error) {
    const struct sampling_flags *s = &given->sampling;
    struct generation_defaults *v = &given->values;
    *v = generation_defaults_none();
    int code = given->json ? read_json(given->json, v, error) : 0;
    if (code) return code;
    if (s->has_temperature) v->temperature = s->temperature;
    if (s->has_top_p) v->top_p = s->top_p;
    if (s->has_min_p) v->min_p = s->min_p;
    if (s->has_repetition) v->repetition_penalty = s->repetition;
    if (s->has_presence) v->presence_penalty = s->presence;
    if (s->has_frequency) v->frequency_penalty = s->frequency;
    if (s->has_top_k) v->top_k = s->top_k < 0 ? 0 : s->top_k;
    if (given->has_max_tokens && given->max_tokens == 0) {
        return mo_error_set(error, MO_E_INVALID, "--n-predict: expected at least 1, or -1 for no limit, found 0");
    }
    if (given->has_max_tokens) v->max_tokens = given->max_tokens < 0 ? 0 : given->max_tokens;
    return 0;
}

void defaults_flags_print(const struct defaults_flags *given, struct buffer *text) {
    struct generation_defaults values = given->values;
    for (int i = 0; i < N_KEYS; i++) {
        double value = *value_of(&values, &KEYS[i]);
        if (!isnan(value)) buffer_printf(text, " %s=%.17g", KEYS[i].name, value);
    }
    if (values.top_k >= 0) buffer_printf(text, " top_k=%d", values.top_k);
    if (values.max_tokens > 0) buffer_printf(text, " max_tokens=%d", values.max_tokens);
}
