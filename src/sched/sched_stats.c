/* sched/sched_stats.c - counters and histograms, kept under the lock so that any thread reads a consistent
 * copy. */
#include "base/clock.h"
#include "sched/sched_state.h"

const double sched_bucket_s[SCHED_BUCKETS - 1] = {0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08,
                                                  0.1,   0.25,   0.5,   0.75, 1,    2.5,  5,    7.5,
                                                  10,    20,     40,    80,   160,  640,  2560};

double sched_now(const struct sched *sched) {
    if (sched->options.clock) return sched->options.clock(sched->options.clock_context);
    return clock_now_s();
}

const double sched_bucket_n[SCHED_BUCKETS - 1] = {1,   2,   5,   10,  20,  50,  100, 200, 500, 1000, 2000, 5000,
                                                  1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7,  2e7};

static void add_value(struct sched_histogram *histogram, const double *bucket, double value) {
    int i = 0;
    while (i < SCHED_BUCKETS - 1 && value > bucket[i]) i++;
    histogram->count[i]++;
    histogram->total++;
    histogram->sum += value;
}

static void histogram_add(struct sched_histogram *histogram, double value_s) {
    add_value(histogram, sched_bucket_s, value_s);
}

void stats_token(struct sched *sched, const struct seq *seq, double now_s) {
    struct sched_stats *stats = &sched->stats;
    bool first = seq->n_tokens == seq->request.n_prompt;
    pthread_mutex_lock(&sched->lock);
    stats->generated_tokens++;
    if (first)
        histogram_add(&stats->first_token_s, now_s - seq->submitted_s);
    else
        histogram_add(&stats->inter_token_s, now_s - seq->last_token_s);
    pthread_mutex_unlock(&sched->lock);
}

void stats_prompt(struct sched *sched, int n_tokens) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.prompt_tokens += (uint64_t)n_tokens;
    pthread_mutex_unlock(&sched->lock);
}

void stats_prompted(struct sched *sched, double prompt_s) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.prompt_s += prompt_s;
    pthread_mutex_unlock(&sched->lock);
}

void stats_preempt(struct sched *sched) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.preemptions++;
    sched->stats.n_running--;
    sched->stats.n_waiting++;
    pthread_mutex_unlock(&sched->lock);
}

void stats_admit(struct sched *sched) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.n_running++;
    sched->stats.n_waiting--;
    pthread_mutex_unlock(&sched->lock);
}

void stats_prefix(struct sched *sched, int n_tokens, int n_found) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.prefix_queried_tokens += (uint64_t)n_tokens;
    sched->stats.prefix_found_tokens += (uint64_t)n_found;
    pthread_mutex_unlock(&sched->lock);
}

void stats_disk(struct sched *sched, int n_tokens, int n_found) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.disk_queried_tokens += (uint64_t)n_tokens;
    sched->stats.disk_found_tokens += (uint64_t)n_found;
    sched->stats.prefix_found_tokens += (uint64_t)n_found;
    pthread_mutex_unlock(&sched->lock);
}

void stats_drafts(struct sched *sched, int n, int n_right) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.drafts++;
    sched->stats.draft_tokens += (uint64_t)n;
    sched->stats.accepted_tokens += (uint64_t)n_right;
    pthread_mutex_unlock(&sched->lock);
}

void stats_end(struct sched *sched, const struct seq *seq, enum finish_reason reason) {
    struct sched_stats *stats = &sched->stats;
    double now_s = sched_now(sched);
    pthread_mutex_lock(&sched->lock);
    *registry_find(sched, seq->id) = seq->chain;
    if (seq->cancelled) sched->n_cancels--;
    if (seq->running)
        stats->n_running--;
    else
        stats->n_waiting--;
    stats->pages_free = sched->kv.n_free;
    stats->finished[reason]++;
    if (reason == FINISH_STOP || reason == FINISH_LENGTH) {
        histogram_add(&stats->request_s, now_s - seq->submitted_s);
        histogram_add(&stats->queue_s, seq->started_s - seq->submitted_s);
        histogram_add(&stats->prefill_s, seq->prompted_s - seq->started_s);
        histogram_add(&stats->decode_s, now_s - seq->prompted_s);
        histogram_add(&stats->inference_s, now_s - seq->started_s);
        add_value(&stats->prompt_n, sched_bucket_n, seq->request.n_prompt);
        add_value(&stats->answer_n, sched_bucket_n, seq->n_tokens - seq->request.n_prompt);
        add_value(&stats->max_n, sched_bucket_n, seq->max_total - seq->request.n_prompt);
    }
    pthread_mutex_unlock(&sched->lock);
}

void stats_forgotten(struct sched *sched) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.disk_forgotten_pages++;
    pthread_mutex_unlock(&sched->lock);
}

void stats_pages(struct sched *sched) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.pages_free = sched->kv.n_free;
    pthread_mutex_unlock(&sched->lock);
}

void stats_step(struct sched *sched, int n_rows, double step_s, double forward_s) {
    pthread_mutex_lock(&sched->lock);
    sched->stats.steps++;
    add_value(&sched->stats.step_n, sched_bucket_n, n_rows);
    sched->stats.step_s += step_s;
    sched->stats.forward_s += forward_s;
    sched->stats.pages_free = sched->kv.n_free;
    pthread_mutex_unlock(&sched->lock);
}

void sched_stats_get(struct sched *sched, struct sched_stats *stats) {
    pthread_mutex_lock(&sched->lock);
    *stats = sched->stats;
    pthread_mutex_unlock(&sched->lock);
    stats->has_disk = sched->options.disk != NULL;
    if (stats->has_disk) disk_stats_get(sched->options.disk, &stats->disk);
}
