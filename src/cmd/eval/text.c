#include "cmd/eval/text.h"

#include <math.h>
#include <stdlib.h>
#include "base/numbers.h"
#include "cmd/eval/logits.h"

struct comparison {
    const struct eval_plan *plan;
    struct eval_result *result;
    struct eval_scorer scorer;
    struct token_list ids;
    struct eval_logits_writer writer;
    struct eval_logits_reader reader;
    float *row;    /* [vocab] of the reference */
    double *apart; /* [rows] divergence of each */
    int64_t n, n_agree;
    double reference_nats;
};

/* Sum of p (log p - log q), p from the reference; log_p and log_q are what the rows' exponentials add up to. In exact
 * arithmetic it is never negative. */
static double divergence(const float *p, double log_p, const float *q, double log_q, int vocab) {
    double sum = 0;
    for (int i = 0; i < vocab; i++) {
        double p_log = (double)p[i] - log_p, q_log = (double)q[i] - log_q, share = exp(p_log);
        if (share > 0) sum += share * (p_log - q_log);
    }
    return sum < 0 ? 0 : sum;
}

static int compare_row(struct comparison *c, const float *logits, int32_t next, struct mo_error *error) {
    int vocab = c->scorer.engine->model.vocab;
    eval_logits_read(&c->reader, c->row);
    double log_p = eval_log_sum(c->row, vocab), log_q = eval_log_sum(logits, vocab);
    double apart = divergence(c->row, log_p, logits, log_q, vocab), nats = log_p - (double)c->row[next];
    if (!isfinite(apart) || !isfinite(nats)) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: row %lld holds a value that is not a finite number",
                            c->plan->reference, (long long)c->n);
    }
    c->apart[c->n++] = apart;
    c->n_agree += sample_argmax(c->row, vocab) == sample_argmax(logits, vocab);
    c->reference_nats += nats;
    return 0;
}

static int on_row(void *context, const float *logits, int32_t next, struct mo_error *error) {
    struct comparison *c = context;
    eval_sums_add(&c->result->text, c->scorer.engine, logits, next);
    int code = c->plan->reference ? compare_row(c, logits, next, error) : 0;
    return code || !c->plan->save ? code : eval_logits_write(&c->writer, logits, error);
}

static int open_files(struct comparison *c, struct mo_error *error) {
    const struct eval_plan *plan = c->plan;
    const struct eval_logits_shape shape = {
        .ids = c->ids.ids,
        .n_tokens = c->ids.n,
        .n_rows = c->ids.n - (c->scorer.bos < 0 ? (uint64_t)c->result->n_windows : 0),
        .vocab = c->scorer.engine->model.vocab,
        .window = c->scorer.window,
        .bos = c->scorer.bos,
    };
    if (shape.n_rows == 0) {
        return mo_error_set(error, MO_E_INVALID, "%s: too short: there is no token to predict", plan->text);
    }
    int code = plan->reference ? eval_logits_open(&c->reader, plan->reference, &shape, error) : 0;
    if (!code && plan->reference) {
        c->row = calloc((size_t)shape.vocab, sizeof *c->row);
        c->apart = calloc(shape.n_rows, sizeof *c->apart);
        if (!c->row || !c->apart) code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for the comparison");
    }
    if (code || !plan->save) return code;
    return eval_logits_create(&c->writer, plan->save, &shape, (enum eval_logits_format)plan->save_format, error);
}

static int score_windows(struct comparison *c, struct mo_error *error) {
    struct progress progress;
    size_t n = c->ids.n, window = (size_t)c->scorer.window;
    int code = 0;
    progress_begin(&progress, "predicting the text", "tokens", 1, (double)n);
    c->scorer.progress = &progress;
    for (size_t at = 0; at < n && !code; at += window) {
        size_t left = n - at;
        code = eval_score(&c->scorer, c->ids.ids + at, (int)(left < window ? left : window), on_row, c, error);
    }
    progress_end(&progress);
    return code;
}

static void settle_divergence(struct comparison *c) {
    struct eval_divergence *d = &c->result->divergence;
    double sum = 0;
    for (int64_t i = 0; i < c->n; i++) sum += c->apart[i];
    qsort(c->apart, (size_t)c->n, sizeof *c->apart, order_doubles);
    d->mean = sum / (double)c->n;
    d->p99 = c->apart[(c->n * 99 + 99) / 100 - 1]; /* the least that 99 % do not exceed */
    d->max = c->apart[c->n - 1];
    d->top1_agreement = (double)c->n_agree / (double)c->n;
    d->reference_nats = c->reference_nats / (double)c->n;
}

static int run(struct comparison *c, struct engine *engine, const char *text, size_t size, struct mo_error *error) {
    int code = tokenizer_encode(engine->tokenizer, text, size, false, &c->ids, error);
    if (code) return mo_error_prefix(error, "%s", c->plan->text);
    code = eval_scorer_open(&c->scorer, engine, c->plan->window, error);
    if (code) return code;
    c->result->window = c->scorer.window;
    c->result->n_windows = (int)((c->ids.n + (size_t)c->scorer.window - 1) / (size_t)c->scorer.window);
    code = open_files(c, error);
    if (!code) code = score_windows(c, error);
    if (!code && c->plan->reference) settle_divergence(c);
    if (!code && c->plan->save) code = eval_logits_finish(&c->writer, error);
    return code;
}

int eval_text(struct engine *engine, const struct eval_plan *plan, const char *text, size_t size,
              struct eval_result *result, struct mo_error *error) {
    struct comparison c = {.plan = plan, .result = result};
    int code = run(&c, engine, text, size, error);
    eval_logits_abandon(&c.writer);
    eval_logits_close(&c.reader);
    eval_scorer_close(&c.scorer);
    token_list_free(&c.ids);
    free(c.row);
    free(c.apart);
    return code;
}
