#include "server/metrics.h"

#include <inttypes.h>
#include <stdio.h>

/* Where samples go, and the label that all of them have. */
struct metrics {
    struct buffer *out;
    char label[2100]; /* model_name="...": the command line takes names of up to 1023 bytes, and each may be escaped */
};

/* A label's value: backslash, quote and line end are escaped. */
static void write_label(char *out, size_t size, const char *name) {
    size_t n = (size_t)snprintf(out, size, "model_name=\"");
    for (; *name && n + 4 < size; name++) {
        if (*name == '\\' || *name == '"' || *name == '\n') out[n++] = '\\';
        out[n++] = *name == '\n' ? 'n' : *name;
    }
    snprintf(out + n, size - n, "\"");
}

static void head(struct metrics *m, const char *name, const char *type, const char *help) {
    buffer_printf(m->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void gauge(struct metrics *m, const char *name, double value, const char *help) {
    head(m, name, "gauge", help);
    buffer_printf(m->out, "%s{%s} %.9g\n", name, m->label, value);
}

static void counter(struct metrics *m, const char *name, uint64_t value, const char *help) {
    head(m, name, "counter", help);
    buffer_printf(m->out, "%s{%s} %" PRIu64 "\n", name, m->label, value);
}

static void seconds(struct metrics *m, const char *name, double value, const char *help) {
    head(m, name, "counter", help);
    buffer_printf(m->out, "%s{%s} %.9g\n", name, m->label, value);
}

static void add_histogram(struct metrics *m, const char *name, const double *bucket, const struct sched_histogram *h,
                          const char *help) {
    uint64_t sum = 0;
    head(m, name, "histogram", help);
    for (int i = 0; i < SCHED_BUCKETS - 1; i++) {
        sum += h->count[i];
        buffer_printf(m->out, "%s_bucket{%s,le=\"%g\"} %" PRIu64 "\n", name, m->label, bucket[i], sum);
    }
    buffer_printf(m->out, "%s_bucket{%s,le=\"+Inf\"} %" PRIu64 "\n", name, m->label, h->total);
    buffer_printf(m->out, "%s_sum{%s} %.9g\n%s_count{%s} %" PRIu64 "\n", name, m->label, h->sum, name, m->label,
                  h->total);
}

static void histogram(struct metrics *m, const char *name, const struct sched_histogram *h, const char *help) {
    add_histogram(m, name, sched_bucket_s, h, help);
}

static void tokens(struct metrics *m, const char *name, const struct sched_histogram *h, const char *help) {
    add_histogram(m, name, sched_bucket_n, h, help);
}

static void write_requests(struct metrics *m, const struct sched_stats *s) {
    histogram(m, "vllm:time_to_first_token_seconds", &s->first_token_s, "From submission to the first token.");
    histogram(m, "vllm:inter_token_latency_seconds", &s->inter_token_s, "Between two tokens of a sequence.");
    histogram(m, "vllm:time_per_output_token_seconds", &s->inter_token_s, "The same under its older name.");
    histogram(m, "vllm:e2e_request_latency_seconds", &s->request_s, "From submission to the last token.");
    histogram(m, "vllm:request_queue_time_seconds", &s->queue_s, "Of it, until the sequence was let in.");
    histogram(m, "vllm:request_prefill_time_seconds", &s->prefill_s, "From there to the first token.");
    histogram(m, "vllm:request_decode_time_seconds", &s->decode_s, "From the first token to the last.");
    histogram(m, "vllm:request_inference_time_seconds", &s->inference_s, "From being let in to the last token.");
    tokens(m, "vllm:request_prompt_tokens", &s->prompt_n, "Tokens of a prompt.");
    tokens(m, "vllm:request_generation_tokens", &s->answer_n, "Tokens of an answer.");
    tokens(m, "vllm:request_max_num_generation_tokens", &s->answer_n, "The same: each of n answers counts for itself.");
    tokens(m, "vllm:request_params_max_tokens", &s->max_n, "Tokens that an answer was allowed.");
    tokens(m, "vllm:iteration_tokens_total", &s->step_n, "Tokens computed in a step.");
}

/* llama.cpp's names. */
static void write_llama(struct metrics *m, const struct sched_stats *s) {
    uint64_t n_prompt = s->prompt_tokens - s->prefix_found_tokens; /* computed */
    int n_pages = s->pages_total - s->pages_free;
    double answer_s = s->inter_token_s.sum;
    counter(m, "llamacpp:prompt_tokens_total", n_prompt, "Prompt tokens computed.");
    seconds(m, "llamacpp:prompt_seconds_total", s->prompt_s, "Time for prompts.");
    counter(m, "llamacpp:tokens_predicted_total", s->generated_tokens, "Tokens generated.");
    seconds(m, "llamacpp:tokens_predicted_seconds_total", answer_s, "Time between tokens.");
    counter(m, "llamacpp:n_decode_total", s->steps, "Batches computed.");
    gauge(m, "llamacpp:prompt_tokens_seconds", s->prompt_s > 0 ? (double)n_prompt / s->prompt_s : 0,
          "Prompt tokens a second.");
    gauge(m, "llamacpp:predicted_tokens_seconds", answer_s > 0 ? (double)s->inter_token_s.total / answer_s : 0,
          "Tokens a second, of one sequence.");
    gauge(m, "llamacpp:kv_cache_usage_ratio", s->pages_total ? (double)n_pages / s->pages_total : 0,
          "Share of pages in use.");
    gauge(m, "llamacpp:kv_cache_tokens", (double)n_pages * KV_PAGE_TOKENS, "Tokens that these pages have room for.");
    gauge(m, "llamacpp:requests_processing", s->n_running, "Sequences in the batch.");
    gauge(m, "llamacpp:requests_deferred", s->n_waiting, "Sequences that wait for a place.");
}

static void write_finished(struct metrics *m, const struct sched_stats *stats) {
    static const struct {
        enum finish_reason reason;
        const char *name;
    } REASONS[] = {
        {FINISH_STOP, "stop"}, {FINISH_LENGTH, "length"}, {FINISH_CANCELLED, "abort"}, {FINISH_ERROR, "error"}};
    const char *name = "vllm:request_success_total";
    head(m, name, "counter", "Answers that ended, by reason.");
    for (size_t i = 0; i < sizeof REASONS / sizeof *REASONS; i++) {
        buffer_printf(m->out, "%s{%s,finished_reason=\"%s\"} %" PRIu64 "\n", name, m->label, REASONS[i].name,
                      stats->finished[REASONS[i].reason]);
    }
}

/* Queries and hits under the names that vLLM has for caches behind the one in memory. */
static void write_disk(struct metrics *m, const struct sched_stats *s) {
    const struct disk_stats *d = &s->disk;
    counter(m, "vllm:external_prefix_cache_queries_total", s->disk_queried_tokens,
            "Prompt tokens looked for on disk: not in memory.");
    counter(m, "vllm:external_prefix_cache_hits_total", s->disk_found_tokens, "Of these, those that came from there.");
    gauge(m, "moebius:disk_cache_files", (double)d->files, "Pages of the cache on disk, 64 tokens each.");
    gauge(m, "moebius:disk_cache_bytes", (double)d->bytes, "Bytes that they take.");
    gauge(m, "moebius:disk_cache_limit_bytes", (double)d->limit_bytes, "Bytes that they may take.");
    counter(m, "moebius:disk_cache_read_bytes_total", d->read_bytes, "Bytes read from there.");
    counter(m, "moebius:disk_cache_written_bytes_total", d->written_bytes, "Bytes written there.");
    counter(m, "moebius:disk_cache_removed_total", d->removed, "Pages removed to stay below the limit.");
    counter(m, "moebius:disk_cache_refused_total", d->refused, "Files removed because they were damaged.");
    counter(m, "moebius:disk_cache_forgotten_total", d->forgotten + s->disk_forgotten_pages,
            "Pages that could not be written, or not in time.");
    seconds(m, "moebius:disk_cache_read_seconds_total", d->read_s, "Time that reading took.");
}

static void write_experts(struct metrics *m, const struct store_stats *s) {
    counter(m, "moebius:expert_cache_hits_total", s->hits, "Experts that were in memory when they were needed.");
    counter(m, "moebius:expert_cache_misses_total", s->misses, "Experts that had to be read, or to be waited for.");
    counter(m, "moebius:expert_cache_read_bytes_total", s->read_bytes, "Bytes read from the model's files.");
    counter(m, "moebius:expert_cache_predicted_total", s->predicted, "Experts read ahead.");
    counter(m, "moebius:expert_cache_predicted_used_total", s->used, "Of these, those that were needed.");
    seconds(m, "moebius:expert_cache_wait_seconds_total", s->wait_s, "Time that steps waited for experts.");
}

static void write_ranks(struct metrics *m, const struct ranks_stats *s) {
    gauge(m, "moebius:ranks", ranks_count(), "Processes that share the routed experts.");
    counter(m, "moebius:rank_exchanges_total", s->exchanges, "Times that the others were asked for experts.");
    counter(m, "moebius:rank_sent_bytes_total", s->sent_bytes, "Bytes sent to them.");
    counter(m, "moebius:rank_received_bytes_total", s->received_bytes, "Bytes that they sent back.");
    seconds(m, "moebius:rank_wait_seconds_total", s->wait_s, "Time that steps waited for them.");
}

void metrics_write(struct buffer *out, const struct sched_stats *s, const struct store_stats *experts,
                   const struct ranks_stats *ranks, const char *model_name) {
    struct metrics m = {.out = out};
    write_label(m.label, sizeof m.label, model_name);
    double used = s->pages_total ? (double)(s->pages_total - s->pages_free) / s->pages_total : 0;
    gauge(&m, "vllm:num_requests_running", s->n_running, "Sequences in the batch.");
    gauge(&m, "vllm:num_requests_waiting", s->n_waiting, "Sequences that wait for a place.");
    gauge(&m, "vllm:kv_cache_usage_perc", used, "Share of the cache's pages in use, 0 to 1.");
    gauge(&m, "vllm:gpu_cache_usage_perc", used, "The same under its older name.");
    head(&m, "vllm:cache_config_info", "gauge", "How the cache is cut up.");
    buffer_printf(out, "vllm:cache_config_info{%s,block_size=\"%d\",num_gpu_blocks=\"%d\"} 1\n", m.label,
                  KV_PAGE_TOKENS, s->pages_total);
    gauge(&m, "moebius:kv_pages_total", s->pages_total, "Pages of the cache, 64 tokens each.");
    gauge(&m, "moebius:kv_pages_free", s->pages_free, "Pages not in use.");
    counter(&m, "vllm:prompt_tokens_total", s->prompt_tokens, "Prompt tokens computed or found in the cache.");
    counter(&m, "vllm:prefix_cache_queries_total", s->prefix_queried_tokens, "Prompt tokens looked for in the cache.");
    counter(&m, "vllm:prefix_cache_hits_total", s->prefix_found_tokens, "Of these, those that were there.");
    counter(&m, "vllm:spec_decode_num_drafts_total", s->drafts, "Times that tokens were guessed (--draft-max).");
    counter(&m, "vllm:spec_decode_num_draft_tokens_total", s->draft_tokens, "Tokens guessed.");
    counter(&m, "vllm:spec_decode_num_accepted_tokens_total", s->accepted_tokens, "Of these, those that were right.");
    counter(&m, "vllm:generation_tokens_total", s->generated_tokens, "Tokens generated.");
    counter(&m, "vllm:num_preemptions_total", s->preemptions,
            "Sequences sent back to wait because the cache was full.");
    write_finished(&m, s);
    counter(&m, "moebius:steps_total", s->steps, "Batches computed.");
    seconds(&m, "moebius:step_seconds_total", s->step_s, "Time inside the scheduler's steps.");
    seconds(&m, "moebius:forward_seconds_total", s->forward_s, "Of it, time inside the model's forward pass.");
    if (experts) write_experts(&m, experts);
    if (ranks) write_ranks(&m, ranks);
    if (s->has_disk) write_disk(&m, s);
    write_requests(&m, s);
    write_llama(&m, s);
}

void metrics_write_start(struct buffer *out, time_t start) {
    buffer_printf(out,
                  "# HELP process_start_time_seconds Unix time at which the server started.\n"
                  "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %lld\n",
                  (long long)start);
}
