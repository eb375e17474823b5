/* cmd/plan/check.c - whether a published figure can be true: a token of one sequence needs every active weight once. */
#include <stdio.h>
#include <stdlib.h>
#include "base/json.h"
#include "cmd/plan/plan.h"

/* "14.8B", "350M" */
static const char *read_count(const char *text, double *out) {
    char *end;
    double n = strtod(text, &end);
    if (end == text || !(n > 0) || n > 1e9) return NULL;
    if (*end == 'B' || *end == 'b') {
        n *= 1e9;
        end++;
    } else if (*end == 'M' || *end == 'm') {
        n *= 1e6;
        end++;
    } else if (*end == 'T' || *end == 't') {
        n *= 1e12;
        end++;
    }
    *out = n;
    return end;
}

static int read_params(const char *text, double *total, double *active, struct mo_error *error) {
    const char *at = read_count(text, total);
    *active = *total;
    if (at && *at == ',') at = read_count(at + 1, active);
    if (at && !*at && *active <= *total && *active >= 1e3) return 0;
    return mo_error_set(
        error, MO_E_INVALID,
        "--params: expected parameters and perhaps the active ones, as in 14.8B or 671B,37B; found \"%s\"", text);
}

int plan_run_check(const struct plan_check *check, bool *possible, struct mo_error *error) {
    double total, active;
    if (!check->params || check->bits <= 0 || check->gb_s <= 0 || check->tokens_per_s <= 0)
        return mo_error_set(error, MO_E_INVALID, "--check needs --params, --bits, --bandwidth and --tps");
    int code = read_params(check->params, &total, &active, error);
    if (code) return code;
    double limit = plan_check_limit(active, check->bits, check->gb_s), share = check->tokens_per_s / limit;
    double practical = limit * plan_share(PLAN_GPU_MEMORY), bytes = active * check->bits / 8;
    *possible = check->tokens_per_s <= limit;
    if (!check->json) {
        printf("%s: %.4g tokens/s of one sequence needs %.1f GB/s; %.4g GB a token at %.4g GB/s is %.1f at most (%.0f "
               "%% of\n"
               "it is claimed), and %.1f at the %.0f %% that good kernels reach. %s\n",
               *possible ? "possible" : "not possible", check->tokens_per_s, check->tokens_per_s * bytes * 1e-9,
               bytes * 1e-9, check->gb_s, limit, share * 100, practical, plan_share(PLAN_GPU_MEMORY) * 100,
               *possible ? check->tokens_per_s > practical ? "It would be a record." : ""
                         : "Unless several tokens come out of a step, as with speculative decoding.");
        return 0;
    }
    json_t *root = json_pack("{sb sf sf sf sf}", "possible", *possible, "limit_tokens_per_s", limit,
                             "practical_tokens_per_s", practical, "share", share, "bytes_per_token", bytes);
    return json_print(root, error);
}
