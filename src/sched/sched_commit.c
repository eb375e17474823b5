/* sched/sched_commit.c - what a batch computed becomes tokens, text and events. */
#include <assert.h>
#include <math.h>
#include "sched/sched_state.h"

static struct sched_event event_of(const struct seq *seq) {
    return (struct sched_event){.id = seq->id,
                                .context = seq->request.context,
                                .token = -1,
                                .logprob = NAN,
                                .stop_token = -1,
                                .text = seq->text,
                                .n_prompt = seq->request.n_prompt,
                                .n_generated = seq->n_tokens - seq->request.n_prompt,
                                .n_cached = seq->n_cached,
                                .prompt_s = seq->prompted_s < 0 ? 0 : seq->prompted_s - seq->started_s,
                                .answer_s = seq->last_token_s < 0 ? 0 : seq->last_token_s - seq->prompted_s};
}

/* Takes into the event's text what stands behind it, `size` bytes, as far as the rules of lines let it. */
static void event_take_text(struct seq *seq, struct sched_event *event, size_t size) {
    event->text_size += line_rule_push(&seq->lines, seq->text + event->text_size, size);
}

/* Adds to the event's text; returns the index of the stop string that this completed, or -1. */
static int event_add_text(struct seq *seq, struct sched_event *event, const char *text, size_t size) {
    size_t certain;
    int found = stop_matcher_push(&seq->stop, text, size, seq->text + event->text_size, &certain);
    event_take_text(seq, event, certain);
    return seq->lines.ended ? -1 : found; /* a string behind the end of the text does not count */
}

/* The text ends here: half code points and what may have become a stop string come out. */
static int event_flush_text(struct seq *seq, struct sched_event *event) {
    char tail[4];
    int found = event_add_text(seq, event, tail, text_stream_finish(&seq->stream, tail));
    if (found < 0) event_take_text(seq, event, stop_matcher_finish(&seq->stop, seq->text + event->text_size));
    return found;
}

void seq_end(struct sched *sched, struct seq *seq, enum finish_reason reason, struct sched_event *event) {
    struct sched_event plain = event_of(seq);
    if (!event) event = &plain;
    if (sched->options.tokenizer && !event->stop_string) {
        int found = event_flush_text(seq, event);
        if (found >= 0 && reason == FINISH_LENGTH) {
            reason = FINISH_STOP;
            event->stop_string = seq->stop.strings[found];
        }
    }
    seq_load_end(sched, seq);
    seq_use_pages(sched, seq);
    if (seq->n_ahead > 0) { /* a row of the step ahead still reads and writes there */
        sched->held[sched->n_held++] = seq->kv;
        seq->kv = (struct kv_seq){0};
    }
    kv_seq_free(&sched->kv, &seq->kv);
    stats_end(sched, seq, reason);
    event->finish = reason;
    seq->request.callback(event);
    seq_free(sched, seq);
}

static void event_add_logprob(struct sched *sched, const struct seq *seq, struct sched_event *event,
                              const float *logits) {
    event->n_top = seq->request.n_logprobs > 0 ? seq->request.n_logprobs : 0;
    event->top = sched->top;
    event->logprob = sample_logprobs(logits, sched->options.model->vocab, event->token, event->n_top, sched->top);
}

/* Tells the owner the prompt tokens that the rows from `first_pos` scored; moves *logits behind their rows.
 */
static void score_prompt(struct sched *sched, struct seq *seq, int first_pos, const float **logits) {
    if (seq->request.prompt_logprobs && seq->n_scored == 0) {
        struct sched_event event = event_of(seq);
        event.is_prompt = true;
        event.token = seq->tokens[0];
        seq->n_scored = 1;
        seq->request.callback(&event);
    }
    for (int position = first_pos; position < seq->n_computed; position++) {
        if (!seq_row_scores(seq, position)) continue;
        assert(seq->n_scored == position + 1);
        struct sched_event event = event_of(seq);
        event.is_prompt = true;
        event.token = seq->tokens[position + 1];
        event_add_logprob(sched, seq, &event, *logits);
        *logits += sched->options.model->vocab;
        seq->n_scored++;
        seq->request.callback(&event);
    }
}

/* The latest tokens, where the penalty of repetition looks at no others. */
static void mark_latest(struct seq *seq, uint8_t mark) {
    int n = seq->request.sampling.repetition_last_n;
    if (n > seq->n_tokens) n = seq->n_tokens;
    for (int i = seq->n_tokens - n; seq->counts.prompt && i < seq->n_tokens; i++) {
        seq->counts.prompt[seq->tokens[i]] = mark;
    }
}

/* A token by the logits, or -1 with an error. */
static int32_t choose_token(struct sched *sched, struct seq *seq, const float *logits, struct mo_error *error) {
    int n_generated = seq->n_tokens - seq->request.n_prompt;
    struct sampling *sampling = &seq->request.sampling;
    sampling->n_bias = seq->n_bias + (n_generated < seq->request.min_tokens ? seq->n_banned : 0);
    if (seq->request.grammar && seq_grammar_allow(sched, seq, error)) return -1;
    mark_latest(seq, 1);
    int32_t token =
        sample_token(sampling, logits, &seq->counts, seq->request.choice, (uint32_t)n_generated, &sched->scratch);
    mark_latest(seq, 0);
    return token;
}

static bool is_stop_token(const struct sched *sched, const struct seq *seq, int32_t token) {
    if (seq->n_tokens - seq->request.n_prompt <= seq->request.min_tokens) return false;
    for (int i = 0; !seq->request.ignore_eos && i < sched->n_eos; i++) {
        if (token == sched->eos[i]) return true;
    }
    for (int i = 0; i < seq->request.n_stop_tokens; i++) {
        if (token == seq->request.stop_tokens[i]) return true;
    }
    return false;
}

/* The prompt is computed: what comes now is the answer's time. */
static void end_prompt(struct sched *sched, struct seq *seq, double now_s) {
    if (seq->prompted_s >= 0) return;
    seq->prompted_s = now_s;
    stats_prompted(sched, now_s - seq->started_s);
}

static void append_token(struct sched *sched, struct seq *seq, int32_t token, double now_s) {
    stats_token(sched, seq, now_s);
    seq->last_token_s = now_s;
    seq->tokens[seq->n_tokens++] = token;
    if (seq->counts.generated) seq->counts.generated[token]++;
}

static void add_token_text(struct sched *sched, struct seq *seq, struct sched_event *event) {
    assert(text_stream_bound(&seq->stream, event->token) <= sched->token_text_size);
    size_t size = text_stream_push(&seq->stream, event->token, sched->token_text);
    int found = event_add_text(seq, event, sched->token_text, size);
    if (found >= 0) event->stop_string = seq->stop.strings[found];
}

/* The token that the backend picked after row `row` of logits, or else the one that these give. */
static int32_t next_token(struct sched *sched, struct seq *seq, int row, const float *logits, struct mo_error *error) {
    struct backend *backend = sched->options.backend;
    const struct pick *pick = sched->now->batch.pick;
    if (!pick || !pick[row].wanted) return choose_token(sched, seq, logits, error);
    return backend->ops->picked(backend)[row];
}

static bool is_late(const struct seq *seq, double now_s) {
    double limit_s = seq->request.line_limit_s;
    return limit_s > 0 && seq->lines.has_break && now_s - seq->prompted_s > limit_s;
}

/* Takes the next token and applies the stop rules. Returns false if the sequence ended. */
static bool take_token(struct sched *sched, struct seq *seq, int32_t token, const float *logits, double now_s) {
    append_token(sched, seq, token, now_s);
    struct sched_event event = event_of(seq);
    event.token = token;
    if (seq->request.n_logprobs >= 0) event_add_logprob(sched, seq, &event, logits);

    bool stop = is_stop_token(sched, seq, token);
    if (sched->options.tokenizer && (!stop || seq->request.include_stop)) add_token_text(sched, seq, &event);
    if (stop) event.stop_token = token, event.stop_string = NULL;

    enum finish_reason reason = FINISH_NONE;
    if (seq->n_tokens == seq->max_total || seq->lines.ended || is_late(seq, now_s)) reason = FINISH_LENGTH;
    if (stop || event.stop_string || seq_grammar_ended(seq)) reason = FINISH_STOP;
    if (reason == FINISH_NONE)
        seq->request.callback(&event);
    else
        seq_end(sched, seq, reason, &event);
    return reason == FINISH_NONE;
}

/* `n_rows` more tokens are in the cache. */
static void move_on(struct sched *sched, struct seq *seq, int n_rows) {
    seq->n_computed += n_rows;
    int n_known = seq->kv.n_known;
    if (sched->options.prefix_caching) kv_seq_publish(&sched->kv, &seq->kv, seq->tokens, seq->n_computed);
    kv_seq_pass(&sched->kv, &seq->kv, seq->n_computed);
    if (seq->kv.n_known > n_known) seq_note_pages(sched, seq);
}

static bool end_failed(struct sched *sched, struct seq *seq, const struct mo_error *error) {
    struct sched_event event = event_of(seq);
    event.error = error;
    seq_end(sched, seq, FINISH_ERROR, &event);
    return false;
}

/* The next token, and as long as it is the one that was guessed, the one after it. False if the sequence ended. */
static bool generate(struct sched *sched, struct seq *seq, const float *logits, double now_s) {
    size_t vocab = (size_t)sched->options.model->vocab;
    int n_drafts = seq->n_drafts, n_right = 0;
    struct mo_error error = {0};
    bool goes_on = true;
    for (int i = 0; goes_on; i++) {
        int32_t token = next_token(sched, seq, seq->first_logit + i, logits, &error);
        if (token < 0) return end_failed(sched, seq, &error);
        bool right = i < n_drafts && token == seq->draft[i];
        n_right += right;
        goes_on = take_token(sched, seq, token, logits, now_s);
        if (!right) break;
        if (goes_on) move_on(sched, seq, 1);
        if (logits) logits += vocab;
    }
    if (n_drafts > 0) stats_drafts(sched, n_drafts, n_right);
    if (goes_on && n_drafts > 0) seq->most_drafts = draft_adapt(n_drafts, n_right, sched->options.max_drafts);
    return goes_on;
}

static bool seq_commit(struct sched *sched, struct seq *seq, const float *logits, double now_s) {
    int first_pos = seq->n_computed;
    move_on(sched, seq, seq->n_rows - seq->n_drafts);
    int known = seq->n_computed < seq->request.n_prompt ? seq->n_computed : seq->request.n_prompt;
    if (known > seq->n_counted) {
        stats_prompt(sched, known - seq->n_counted);
        seq->n_counted = known;
    }
    score_prompt(sched, seq, first_pos, &logits);
    if (seq->n_computed < seq->n_tokens) return true;
    end_prompt(sched, seq, now_s);
    if (seq_row_samples(seq, seq->n_tokens - 1)) return generate(sched, seq, logits, now_s);
    seq_end(sched, seq, FINISH_LENGTH, NULL); /* max_tokens 0 */
    return false;
}

void batch_commit(struct sched *sched) {
    struct backend *backend = sched->options.backend;
    const float *logits = sched->now->batch.n_logits > 0 ? backend->ops->logits(backend) : NULL;
    size_t vocab = (size_t)sched->options.model->vocab;
    double now_s = sched_now(sched);
    int n = sched->n_running, n_kept = 0;
    for (int i = 0; i < n; i++) {
        struct seq *seq = sched->running[i];
        const float *row = logits ? logits + (size_t)seq->first_logit * vocab : NULL;
        if (seq->n_rows == 0 || seq_commit(sched, seq, row, now_s)) sched->running[n_kept++] = seq;
    }
    sched->n_running = n_kept;
}

/* The pages of the sequence that owns `row`; NULL for no row. */
static const int32_t *pages_of_row(const struct batch *batch, int row) {
    for (int i = 0; row >= 0 && i < batch->n_seqs; i++) {
        const struct batch_seq *seq = &batch->seqs[i];
        if (row >= seq->first_row && row < seq->first_row + seq->n_rows) return seq->pages;
    }
    return NULL;
}

/* The step's rows of this sequence will be computed again. Where pages hold what their tokens were summed up to (V4's compressors),
 * these were added already: it goes back to its page's beginning, which goes on from the page before. */
static void go_back(const struct sched *sched, struct seq *seq) {
    if (model_is_hybrid(sched->options.model)) seq->n_computed -= seq->n_computed % KV_PAGE_TOKENS;
}

/* One bad row ends its own sequence only: the others have not moved on, and run again with the next step. */
void batch_fail(struct sched *sched, int row, const struct mo_error *error) {
    const int32_t *guilty = pages_of_row(&sched->now->batch, row);
    int n = sched->n_running, n_kept = 0;
    for (int i = 0; i < n; i++) {
        struct seq *seq = sched->running[i];
        if (seq->n_rows == 0 || (guilty && seq->kv.pages != guilty)) {
            if (seq->n_rows > 0) go_back(sched, seq);
            sched->running[n_kept++] = seq;
            continue;
        }
        struct sched_event event = event_of(seq);
        event.error = error;
        seq_end(sched, seq, FINISH_ERROR, &event);
    }
    sched->n_running = n_kept;
}
