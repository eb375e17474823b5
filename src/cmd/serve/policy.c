#include "cmd/serve/policy.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "sched/sched.h"
#include "server/text_api.h"

static const char WHERE[] = "--default-chat-template-kwargs";

int policy_flags(struct policy_flags *given, struct api_policy *policy, struct cli_flag flags[POLICY_FLAGS_MAX]) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "--default-chat-template-kwargs,--chat-template-kwargs", .type = CLI_STRING, .target = &given->template_json, .value = "JSON",
         .help = "variables of the chat template where a request says nothing of them:\n{\"thinking\": true}"},
        {.names = "--reasoning,-rea", .type = CLI_CHOICE, .target = &given->reasoning, .choices = "auto|on|off",
         .help = "on, off: the same as {\"thinking\": true} or false there"},
        {.names = "--reasoning-budget", .type = CLI_INT, .target = &given->reasoning_budget, .given = &given->has_reasoning_budget,
         .min = -1, .max = INT_MAX, .value = "N", .help = "0: as --reasoning off; -1: as the template does"},
        {.names = "--reasoning-effort", .type = CLI_STRING, .target = &given->reasoning_effort, .value = "LEVEL",
         .help = "the same as {\"reasoning_effort\": LEVEL} there, for V4 and V4.1"},
        {.names = "--max-logprobs", .type = CLI_INT, .target = &policy->max_logprobs, .max = SCHED_MAX_LOGPROBS, .value = "N",
         .help = "that a request may ask for (default 20, which is the most)"},
        {.names = "--enable-force-include-usage", .type = CLI_FLAG, .target = &policy->includes_usage,
         .help = "every stream ends with its usage"},
        {.names = "--return-tokens-as-token-ids", .type = CLI_FLAG, .target = &policy->tokens_as_ids,
         .help = "logprobs name tokens as token_id:N"},
    };
    /* clang-format on */
    static_assert(sizeof table / sizeof *table <= POLICY_FLAGS_MAX, "room for all");
    memcpy(flags, table, sizeof table);
    return (int)(sizeof table / sizeof *table);
}

/* What llama.cpp has flags of their own for. */
static int add_reasoning(const struct policy_flags *given, json_t *variables, struct mo_error *error) {
    bool is_off = given->reasoning == 2 || (given->has_reasoning_budget && given->reasoning_budget == 0);
    const char *effort = given->reasoning_effort;
    if (given->has_reasoning_budget && given->reasoning_budget > 0) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "--reasoning-budget %d: expected 0 or -1: a thought is not cut",
                            given->reasoning_budget);
    }
    if (is_off && given->reasoning == 1) {
        return mo_error_set(error, MO_E_INVALID, "--reasoning on and --reasoning-budget 0 exclude each other");
    }
    int failed = 0;
    if (is_off || given->reasoning == 1) failed |= json_object_set_new(variables, "thinking", json_boolean(!is_off));
    if (effort && strcmp(effort, "default") != 0) {
        failed |= json_object_set_new(variables, "reasoning_effort", json_string(effort));
    }
    return failed ? mo_error_set(error, MO_E_INVALID, "--reasoning-effort: not valid UTF-8, or no memory") : 0;
}

int policy_flags_settle(struct policy_flags *given, struct api_policy *policy, struct mo_error *error) {
    const char *text = given->template_json ? given->template_json : "{}";
    int code = json_parse(text, strlen(text), WHERE, &given->template_variables, error);
    if (code) return code;
    if (!json_is_object(given->template_variables)) {
        return mo_error_set(error, MO_E_INVALID, "%s: expected an object, found %s", WHERE,
                            json_type_name(given->template_variables));
    }
    code = add_reasoning(given, given->template_variables, error);
    policy->template_variables = json_object_size(given->template_variables) ? given->template_variables : NULL;
    return code;
}

int policy_check(const struct api_policy *policy, const struct engine *engine, struct mo_error *error) {
    static const char *const name = "";
    const struct api_model model = {.engine = engine, .names = &name, .n_names = 1, .policy = policy};
    struct api_error why = {0};
    if (!policy->template_variables || !engine->tokenizer || !engine->chat) return 0;
    json_t *body = json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user", "content", "x");
    json_t *answer = body ? text_api_apply_template(&model, body, &why) : NULL;
    bool is_taken = answer != NULL;
    json_decref(answer);
    json_decref(body);
    if (is_taken) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s or --reasoning-effort: the chat template does not take it: %s", WHERE,
                        why.message);
}

void policy_flags_free(struct policy_flags *given) {
    json_decref(given->template_variables);
    given->template_variables = NULL;
}

void policy_print(const struct api_policy *policy, struct buffer *text) {
    char *variables =
        policy->template_variables ? json_dumps(policy->template_variables, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (variables) buffer_printf(text, " template=%s", variables);
    free(variables);
    if (policy->max_logprobs != SCHED_MAX_LOGPROBS) buffer_printf(text, " max_logprobs=%d", policy->max_logprobs);
    if (policy->tokens_as_ids) buffer_add_text(text, " tokens_as_ids");
}
