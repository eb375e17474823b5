/* sched/sched_grammar.c - where a sequence stands in its grammar. That follows from the tokens it has generated, so nothing
 * has to be saved when it is preempted, and a grammar may forget its states at any time. */
#include <string.h>
#include "sched/sched_state.h"

/* Generated tokens that the grammar has a say in, from the first on; -1: it has not begun. */
static int count_tokens(struct seq *seq) {
    const int32_t *generated = seq->tokens + seq->request.n_prompt;
    int n = seq->n_tokens - seq->request.n_prompt;
    if (seq->grammar_first < 0 && n > 0 && generated[n - 1] == seq->request.grammar_after) seq->grammar_first = n;
    return seq->grammar_first < 0 ? -1 : n - seq->grammar_first;
}

static int follow(struct seq *seq, int n, struct mo_error *error) {
    const int32_t *generated = seq->tokens + seq->request.n_prompt;
    return grammar_follow(seq->request.grammar, &seq->grammar, generated + seq->grammar_first, n, error);
}

static void allow(struct sched *sched, int32_t token) {
    sched->allowed[token >> 6] |= UINT64_C(1) << (token & 63);
}

int seq_grammar_allow(struct sched *sched, struct seq *seq, struct mo_error *error) {
    struct sampling *sampling = &seq->request.sampling;
    const uint64_t *mask;
    int n = count_tokens(seq);
    sampling->allowed = NULL;
    if (n < 0) { /* it reasons: anything but the end */
        sampling->n_bias = seq->n_bias + seq->n_banned;
        return 0;
    }
    int code = follow(seq, n, error);
    if (!code) code = grammar_mask(seq->request.grammar, &seq->grammar, &mask, error);
    if (code) return code;
    memcpy(sched->allowed, mask, ((size_t)sched->options.model->vocab + 63) / 64 * sizeof *mask);
    bool is_long_enough = seq->n_tokens - seq->request.n_prompt >= seq->request.min_tokens;
    if (is_long_enough && grammar_may_end(seq->request.grammar, &seq->grammar)) {
        for (int i = 0; i < sched->n_eos && !seq->request.ignore_eos; i++) allow(sched, sched->eos[i]);
        for (int i = 0; i < seq->request.n_stop_tokens; i++) allow(sched, seq->request.stop_tokens[i]);
    }
    sampling->allowed = sched->allowed;
    return 0;
}

/* An error shows again, and is told, when the next token is chosen. */
bool seq_grammar_ended(struct seq *seq) {
    int n = seq->request.grammar ? count_tokens(seq) : -1;
    if (n < 0 || follow(seq, n, NULL)) return false;
    return grammar_must_end(seq->request.grammar, &seq->grammar);
}
