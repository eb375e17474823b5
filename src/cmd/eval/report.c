#include "cmd/eval/report.h"

#include <math.h>
#include <stdio.h>
#include "base/json.h"

static double top1(const struct eval_sums *sums) {
    return (double)sums->right / (double)sums->tokens;
}

static double nats_per_token(const struct eval_sums *sums) {
    return sums->nats / (double)sums->tokens;
}

/* ---- for programs ---- */

static json_t *share_json(const struct eval_share *share) {
    return share->tried ? json_real((double)share->right / share->tried) : json_null();
}

static json_t *reason_json(const struct eval_share *share) {
    return share->reason[0] ? json_string(share->reason) : json_null();
}

/* What every row has. */
static json_t *common_json(const struct engine *engine, const struct eval_result *r, const struct eval_result *first) {
    double bits = eval_bits_per_byte(&r->text);
    return json_pack("{ss ss ss so so sf sI sI sI si sf so ss ss}", "weights", r->weights, "kv", r->kv, "compute",
                     r->compute, "bits_per_byte", json_finite(bits), "bits_per_byte_change",
                     json_finite(bits - eval_bits_per_byte(&first->text)), "top1", top1(&r->text), "tokens",
                     (json_int_t)r->text.tokens, "bytes", (json_int_t)r->text.bytes, "top1_right",
                     (json_int_t)r->text.right, "window_tokens", r->window, "seconds", r->seconds, "model",
                     json_lossy(engine->path), "model_hash", r->hash, "version", MOEBIUS_VERSION);
}

static json_t *heldout_json(const struct eval_plan *plan, const struct eval_result *r) {
    return json_pack("{so so so so si si si si ss? si sI so}", "fim_exact_line", share_json(&r->lines), "fim_reason",
                     reason_json(&r->lines), "parseable", share_json(&r->functions), "parseable_reason",
                     reason_json(&r->functions), "fim_tried", r->lines.tried, "fim_right", r->lines.right,
                     "parseable_tried", r->functions.tried, "parseable_right", r->functions.right, "python",
                     r->python[0] ? r->python : NULL, "documents", r->n_documents, "seed", (json_int_t)plan->seed,
                     "heldout", json_lossy(plan->heldout));
}

static json_t *text_json(const struct eval_plan *plan, const struct eval_result *r) {
    const struct eval_divergence *d = &r->divergence;
    json_t *root = json_pack("{so si sf so}", "text", json_lossy(plan->text), "windows", r->n_windows, "nats_per_token",
                             nats_per_token(&r->text), "perplexity", json_finite(exp(nats_per_token(&r->text))));
    if (!root || !plan->reference) return root;
    json_t *reference = json_pack("{so sf sf sf sf so}", "file", json_lossy(plan->reference), "kl_mean", d->mean,
                                  "kl_p99", d->p99, "kl_max", d->max, "top1_agreement", d->top1_agreement, "perplexity",
                                  json_finite(exp(d->reference_nats)));
    if (json_object_set_new(root, "reference", reference) == 0) return root;
    json_decref(root);
    return NULL;
}

json_t *eval_report_json(const struct engine *engine, const struct eval_plan *plan, const struct eval_result *result,
                         const struct eval_result *first) {
    json_t *root = common_json(engine, result, first);
    json_t *own = plan->text ? text_json(plan, result) : heldout_json(plan, result);
    bool failed = !root || !own || json_object_update(root, own);
    json_decref(own);
    if (!failed) return root;
    json_decref(root);
    return NULL;
}

/* ---- for people ---- */

static void print_share(const struct eval_share *share) {
    if (share->tried) {
        printf("  %7.1f %% of %-5d", 100.0 * share->right / share->tried, share->tried);
    } else {
        printf("  %18s", "-        ");
    }
}

static void print_head(const struct engine *engine, const struct eval_plan *plan, const struct eval_result *r) {
    printf("%s, hash %.12s (moebius " MOEBIUS_VERSION ")\n", engine->path, r->hash);
    if (plan->text) {
        printf("%s: %lld tokens, %lld bytes, %d windows of %d tokens\n\n", plan->text, (long long)r->text.tokens,
               (long long)r->text.bytes, r->n_windows, r->window);
        printf("%-9s %-5s %-7s %10s %9s %10s %11s %8s", "weights", "cache", "compute", "bits/byte", "change",
               "nats/token", "perplexity", "top-1");
        if (plan->reference) printf(" %10s %10s %10s %9s", "KL mean", "KL p99", "KL max", "same top");
        printf(" %9s\n", "seconds");
        return;
    }
    printf("%s: %d documents, %lld tokens, %lld bytes, up to %d tokens of each\n\n", plan->heldout, r->n_documents,
           (long long)r->text.tokens, (long long)r->text.bytes, r->window);
    printf("%-9s %-5s %-7s %10s %9s %8s  %18s  %18s %9s\n", "weights", "cache", "compute", "bits/byte", "change",
           "top-1", "lines filled in", "functions parse", "seconds");
}

void eval_report_print(const struct engine *engine, const struct eval_plan *plan, const struct eval_result *r,
                       const struct eval_result *first) {
    const struct eval_divergence *d = &r->divergence;
    double bits = eval_bits_per_byte(&r->text);
    if (r == first) print_head(engine, plan, r);
    printf("%-9s %-5s %-7s %10.4f %+9.4f", r->weights, r->kv, r->compute, bits,
           bits - eval_bits_per_byte(&first->text));
    if (plan->text) {
        printf(" %10.4f %11.4f %6.2f %%", nats_per_token(&r->text), exp(nats_per_token(&r->text)),
               100 * top1(&r->text));
        if (plan->reference) printf(" %10.3e %10.3e %10.3e %7.2f %%", d->mean, d->p99, d->max, 100 * d->top1_agreement);
    } else {
        printf(" %6.2f %%", 100 * top1(&r->text));
        print_share(&r->lines);
        print_share(&r->functions);
    }
    printf(" %9.1f\n", r->seconds);
    fflush(stdout);
}

void eval_report_print_reasons(const struct eval_result *r) {
    if (r->lines.reason[0]) printf("\nlines were not filled in: %s", r->lines.reason);
    if (r->functions.reason[0]) printf("\nfunctions were not parsed: %s", r->functions.reason);
    if (r->lines.reason[0] || r->functions.reason[0]) putchar('\n');
}
