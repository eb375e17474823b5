#include "cmd/eval/score.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/numbers.h"
#include "forward.h"
#include "sched/kv.h"

enum { DEFAULT_WINDOW = 2048 };

int eval_scorer_open(struct eval_scorer *s, struct engine *engine, int window, struct mo_error *error) {
    int context = engine->options.max_model_len;
    *s = (struct eval_scorer){.engine = engine, .bos = -1};
    if (window > context) {
        return mo_error_set(error, MO_E_LIMIT, "--window %d is longer than the context of %d tokens (--max-model-len)",
                            window, context);
    }
    s->window = window ? window : smaller(DEFAULT_WINDOW, context);
    if (engine->tokenizer) s->bos = tokenizer_bos(engine->tokenizer);
    int n_pages = kv_pages_for(s->window);
    assert(n_pages <= engine->n_pages);
    s->pages = calloc((size_t)n_pages, sizeof *s->pages);
    s->inputs = calloc((size_t)s->window, sizeof *s->inputs);
    s->wanted = calloc((size_t)s->window, sizeof *s->wanted);
    if (!s->pages || !s->inputs || !s->wanted) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the tokens");
    for (int i = 0; i < n_pages; i++) s->pages[i] = i;
    for (int i = 0; i < s->window; i++) s->wanted[i] = i;
    return 0;
}

void eval_scorer_close(struct eval_scorer *s) {
    free(s->pages);
    free(s->inputs);
    free(s->wanted);
    *s = (struct eval_scorer){0};
}

/* `n` inputs from position `first`, with logits for each. */
static int compute(const struct eval_scorer *s, int first, int n, struct mo_error *error) {
    const int32_t *tokens = s->inputs + first;
    const struct batch_seq seq = {.n_rows = n, .first_pos = first, .pages = s->pages, .before = tokens};
    const struct batch batch = {
        .n_rows = n, .token = tokens, .n_seqs = 1, .seqs = &seq, .n_logits = n, .logits_row = s->wanted};
    return forward(s->engine->backend, &s->engine->model, &batch, NULL, error);
}

int eval_score(struct eval_scorer *s, const int32_t *ids, int n, eval_score_row *row, void *context,
               struct mo_error *error) {
    assert(n <= s->window);
    int n_bos = s->bos >= 0, n_inputs = n - 1 + n_bos, code = 0;
    int chunk = smaller(s->engine->options.max_num_batched_tokens, s->engine->options.max_logits);
    size_t vocab = (size_t)s->engine->model.vocab;
    if (n_inputs <= 0) return 0;
    if (n_bos) s->inputs[0] = s->bos;
    memcpy(s->inputs + n_bos, ids, (size_t)(n - 1) * sizeof *ids);
    const int32_t *next = ids + 1 - n_bos;
    for (int at = 0; at < n_inputs && !code; at += chunk) {
        int rows = smaller(chunk, n_inputs - at);
        code = compute(s, at, rows, error);
        const float *logits = s->engine->backend->ops->logits(s->engine->backend);
        for (int i = 0; i < rows && !code; i++) code = row(context, logits + (size_t)i * vocab, next[at + i], error);
        s->done += rows;
        if (s->progress) progress_update(s->progress, (double)s->done);
    }
    return code;
}

double eval_log_sum(const float *logits, int vocab) {
    double largest = (double)logits[sample_argmax(logits, vocab)], sum = 0;
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i] - largest);
    return largest + log(sum);
}

void eval_sums_add(struct eval_sums *sums, const struct engine *engine, const float *logits, int32_t next) {
    int vocab = engine->model.vocab;
    size_t bytes;
    tokenizer_token_bytes(engine->tokenizer, next, &bytes);
    sums->nats += eval_log_sum(logits, vocab) - (double)logits[next];
    sums->right += sample_argmax(logits, vocab) == next;
    sums->bytes += (int64_t)bytes;
    sums->tokens++;
}

double eval_bits_per_byte(const struct eval_sums *sums) {
    return sums->nats / log(2) / (double)sums->bytes;
}
