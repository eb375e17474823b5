#include "sched/sched_state.h"

#include <assert.h>
#include <stdlib.h>
#include "forward.h"

void seq_list_push_back(struct seq_list *list, struct seq *seq) {
    seq->next = NULL;
    seq->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = seq;
    list->last = seq;
}

void seq_list_push_front(struct seq_list *list, struct seq *seq) {
    seq->previous = NULL;
    seq->next = list->first;
    *(list->first ? &list->first->previous : &list->last) = seq;
    list->first = seq;
}

void seq_list_remove(struct seq_list *list, struct seq *seq) {
    *(seq->previous ? &seq->previous->next : &list->first) = seq->next;
    *(seq->next ? &seq->next->previous : &list->last) = seq->previous;
    seq->previous = seq->next = NULL;
}

static int check_options(const struct sched_options *options, struct mo_error *error) {
    const struct {
        const char *name;
        int value, least;
    } checks[] = {
        {"max_model_len", options->max_model_len, 1},
        {"max_num_seqs", options->max_num_seqs, 1},
        {"max_num_batched_tokens", options->max_num_batched_tokens, options->max_num_seqs},
        {"max_logits", options->max_logits, options->max_num_seqs},
        {"n_pages", options->n_pages, 1},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (checks[i].value >= checks[i].least) continue;
        const char *reason = checks[i].least == 1 ? "" : " (max_num_seqs: every sequence needs a row)";
        return mo_error_set(error, MO_E_INVALID, "%s must be at least %d%s, found %d", checks[i].name, checks[i].least,
                            reason, checks[i].value);
    }
    return 0;
}

/* An id outside the vocabulary can never be chosen, so it is no eos. */
static void copy_eos(struct sched *sched) {
    const struct sched_options *options = &sched->options;
    for (int i = 0; i < options->n_eos; i++) {
        bool known = options->eos[i] >= 0 && options->eos[i] < options->model->vocab;
        if (known) sched->eos[sched->n_eos++] = options->eos[i];
    }
}

static size_t measure_token_text(const struct sched_options *options) {
    if (!options->tokenizer) return 0;
    struct text_stream stream;
    text_stream_init(&stream, options->tokenizer, false);
    stream.n_held = 3; /* the most that can wait for a token to complete it */
    size_t most = 0;
    for (int32_t id = 0; id < options->model->vocab; id++) {
        size_t size = text_stream_bound(&stream, id);
        if (size > most) most = size;
    }
    return most;
}

static bool allocate(struct sched *sched) {
    const struct sched_options *options = &sched->options;
    size_t seqs = (size_t)options->max_num_seqs;
    sched->token_text_size = measure_token_text(options);
    sched->eos = calloc((size_t)options->n_eos + 1, sizeof *sched->eos);
    sched->running = calloc(seqs, sizeof(struct seq *));
    sched->batch_token = calloc((size_t)options->max_num_batched_tokens, sizeof *sched->batch_token);
    sched->batch_seqs = calloc(seqs, sizeof *sched->batch_seqs);
    sched->batch_logits_row = calloc((size_t)options->max_logits, sizeof *sched->batch_logits_row);
    sched->token_text = calloc(sched->token_text_size + 1, 1);
    return sched->eos && sched->running && sched->batch_token && sched->batch_seqs && sched->batch_logits_row &&
           sched->token_text;
}

int sched_create(struct sched **out, const struct sched_options *options, struct mo_error *error) {
    *out = NULL;
    if (check_options(options, error)) return MO_E_INVALID;
    struct sched *sched = calloc(1, sizeof *sched);
    if (!sched) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the scheduler");
    pthread_mutex_init(&sched->lock, NULL);
    pthread_cond_init(&sched->wake, NULL);
    sched->options = *options;
    int code = MO_E_NO_MEMORY;
    if (!allocate(sched)) {
        mo_error_set(error, code, "out of memory for a scheduler of %d sequences", options->max_num_seqs);
        goto fail;
    }
    copy_eos(sched);
    code = kv_pages_init(&sched->kv, options->n_pages, error);
    if (code) goto fail;
    code = sample_scratch_init(&sched->scratch, options->model->vocab, error);
    if (code) goto fail;
    sched->stats.pages_total = sched->stats.pages_free = options->n_pages;
    *out = sched;
    return 0;
fail:
    sched_destroy(sched);
    return code;
}

/* Moves what has arrived to the end of the waiting queue. Returns how many sequences are to be cancelled. */
static int take_inbox(struct sched *sched) {
    pthread_mutex_lock(&sched->lock);
    struct seq_list inbox = sched->inbox;
    sched->inbox = (struct seq_list){0};
    int n_cancels = sched->n_cancels;
    pthread_mutex_unlock(&sched->lock);
    for (struct seq *seq = inbox.first; seq;) {
        struct seq *next = seq->next;
        seq_list_push_back(&sched->waiting, seq);
        seq = next;
    }
    return n_cancels;
}

static bool is_cancelled(struct sched *sched, const struct seq *seq) {
    pthread_mutex_lock(&sched->lock);
    bool cancelled = seq->cancelled;
    pthread_mutex_unlock(&sched->lock);
    return cancelled;
}

/* Ends what is cancelled, or, for `everything`, all sequences. */
static void cancel_seqs(struct sched *sched, bool everything) {
    for (struct seq *seq = sched->waiting.first; seq;) {
        struct seq *next = seq->next;
        if (everything || is_cancelled(sched, seq)) {
            seq_list_remove(&sched->waiting, seq);
            seq_end(sched, seq, FINISH_CANCELLED, NULL);
        }
        seq = next;
    }
    int n = sched->n_running, n_kept = 0;
    for (int i = 0; i < n; i++) {
        struct seq *seq = sched->running[i];
        if (everything || is_cancelled(sched, seq))
            seq_end(sched, seq, FINISH_CANCELLED, NULL);
        else
            sched->running[n_kept++] = seq;
    }
    sched->n_running = n_kept;
}

void sched_destroy(struct sched *sched) {
    if (!sched) return;
    take_inbox(sched);
    cancel_seqs(sched, true);
    kv_pages_free(&sched->kv);
    sample_scratch_free(&sched->scratch);
    free(sched->eos);
    free(sched->running);
    free(sched->batch_token);
    free(sched->batch_seqs);
    free(sched->batch_logits_row);
    free(sched->token_text);
    pthread_cond_destroy(&sched->wake);
    pthread_mutex_destroy(&sched->lock);
    free(sched);
}

static void run_batch(struct sched *sched, double start_s) {
    struct mo_error error = {0};
    double forward_start_s = sched_now(sched);
    int code = forward(sched->options.backend, sched->options.model, &sched->batch, NULL, &error);
    double forward_s = sched_now(sched) - forward_start_s;
    if (code)
        batch_fail(sched, &error);
    else
        batch_commit(sched);
    stats_step(sched, sched_now(sched) - start_s, forward_s);
}

bool sched_step(struct sched *sched) {
    double start_s = sched_now(sched);
    int n_cancels = take_inbox(sched);
    if (n_cancels > 0) cancel_seqs(sched, false);
    batch_plan(sched);
    if (sched->batch.n_rows == 0) return n_cancels > 0;
    run_batch(sched, start_s);
    return true;
}

void sched_wait(struct sched *sched) {
    if (sched->n_running > 0 || sched->waiting.first) return;
    pthread_mutex_lock(&sched->lock);
    while (!sched->woken && !sched->inbox.first && sched->n_cancels == 0) {
        pthread_cond_wait(&sched->wake, &sched->lock);
    }
    sched->woken = false;
    pthread_mutex_unlock(&sched->lock);
}

void sched_wake(struct sched *sched) {
    pthread_mutex_lock(&sched->lock);
    sched->woken = true;
    pthread_cond_signal(&sched->wake);
    pthread_mutex_unlock(&sched->lock);
}
