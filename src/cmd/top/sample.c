#include "cmd/top/sample.h"

#include <math.h>
#include <string.h>
#include "base/utf8.h"
#include "cmd/top/text.h"

const char *const top_reason_names[TOP_REASONS] = {"stop", "length", "abort", "error", "other"};

enum { NAMES_MAX = 3 };

/* The first of the names that a server has is taken. The values by reason share a name: read_finished. */
static const char *const NAMES[TOP_VALUES][NAMES_MAX] = {
    [TOP_START_UNIX_S] = {"process_start_time_seconds"},
    [TOP_RUNNING] = {"vllm:num_requests_running", "llamacpp:requests_processing"},
    [TOP_WAITING] = {"vllm:num_requests_waiting", "llamacpp:requests_deferred"},
    [TOP_KV_USED] = {"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio"},
    [TOP_KV_PAGES] = {"moebius:kv_pages_total"},
    [TOP_KV_FREE] = {"moebius:kv_pages_free"},
    [TOP_RANKS] = {"moebius:ranks"},
    [TOP_DISK_BYTES] = {"moebius:disk_cache_bytes"},
    [TOP_DISK_LIMIT_BYTES] = {"moebius:disk_cache_limit_bytes"},
    [TOP_PROMPT] = {"vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total"},
    [TOP_GENERATED] = {"vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"},
    [TOP_PREEMPTIONS] = {"vllm:num_preemptions_total"},
    [TOP_PREFIX_ASKED] = {"vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"},
    [TOP_PREFIX_FOUND] = {"vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"},
    [TOP_DISK_ASKED] = {"vllm:external_prefix_cache_queries_total"},
    [TOP_DISK_FOUND] = {"vllm:external_prefix_cache_hits_total"},
    [TOP_DISK_READ_BYTES] = {"moebius:disk_cache_read_bytes_total"},
    [TOP_EXPERT_HITS] = {"moebius:expert_cache_hits_total"},
    [TOP_EXPERT_MISSES] = {"moebius:expert_cache_misses_total"},
    [TOP_EXPERT_READ_BYTES] = {"moebius:expert_cache_read_bytes_total"},
    [TOP_EXPERT_WAIT_S] = {"moebius:expert_cache_wait_seconds_total"},
    [TOP_EXCHANGES] = {"moebius:rank_exchanges_total"},
    [TOP_SENT_BYTES] = {"moebius:rank_sent_bytes_total"},
    [TOP_RECEIVED_BYTES] = {"moebius:rank_received_bytes_total"},
    [TOP_RANK_WAIT_S] = {"moebius:rank_wait_seconds_total"},
    [TOP_DRAFTED] = {"vllm:spec_decode_num_draft_tokens_total"},
    [TOP_ACCEPTED] = {"vllm:spec_decode_num_accepted_tokens_total"},
    [TOP_STEPS] = {"moebius:steps_total", "llamacpp:n_decode_total"},
    [TOP_STEP_S] = {"moebius:step_seconds_total"},
    [TOP_FORWARD_S] = {"moebius:forward_seconds_total"},
};

static const char *const TIMES[TOP_TIMES][NAMES_MAX] = {
    [TOP_FIRST_TOKEN] = {"vllm:time_to_first_token_seconds_bucket"},
    [TOP_BETWEEN_TOKENS] = {"vllm:inter_token_latency_seconds_bucket", "vllm:time_per_output_token_seconds_bucket"},
    [TOP_QUEUE] = {"vllm:request_queue_time_seconds_bucket"},
    [TOP_REQUEST] = {"vllm:e2e_request_latency_seconds_bucket"},
};

/* While a sample is read: which name each value has come from, and how often. */
struct reader {
    struct top_sample *sample;
    int rank[TOP_VALUES], n[TOP_VALUES];
};

/* The index of the line's name among `names`; -1: none of them. */
static int rank_of(const struct top_line *line, const char *const names[NAMES_MAX]) {
    for (int i = 0; i < NAMES_MAX && names[i]; i++) {
        if (top_line_is(line, names[i])) return i;
    }
    return -1;
}

static void add_value(struct reader *r, int index, int rank, double value) {
    double *at = &r->sample->value[index];
    if (r->n[index] && rank > r->rank[index]) return;
    if (!r->n[index] || rank < r->rank[index]) {
        *at = 0;
        r->n[index] = 0;
    }
    r->rank[index] = rank;
    r->n[index]++;
    *at += value;
}

static bool read_finished(struct reader *r, const struct top_line *line) {
    char reason[16] = "";
    int index = TOP_OTHER;
    if (!top_line_is(line, "vllm:request_success_total")) return false;
    top_line_label(line, "finished_reason", reason, sizeof reason);
    for (int i = 0; i < TOP_REASONS - 1; i++) {
        if (!strcmp(reason, top_reason_names[i])) index = TOP_STOP + i;
    }
    add_value(r, index, 0, line->value);
    return true;
}

static bool read_value(struct reader *r, const struct top_line *line) {
    for (int i = 0; i < TOP_VALUES; i++) {
        int rank = rank_of(line, NAMES[i]);
        if (rank < 0) continue;
        add_value(r, i, rank, line->value);
        return true;
    }
    return read_finished(r, line);
}

/* Bounds stay sorted, whatever order they come in. One too many, and the histogram is given up: n stays 0. */
static void add_bucket(struct top_histogram *h, double bound, double count) {
    int i = 0;
    if (h->n < 0) return;
    while (i < h->n && h->bound[i] < bound) i++;
    if (i < h->n && h->bound[i] == bound) {
        h->count[i] += count;
        return;
    }
    if (h->n == TOP_BUCKETS_MAX) {
        h->n = -1;
        return;
    }
    size_t n_after = (size_t)(h->n - i);
    memmove(h->bound + i + 1, h->bound + i, n_after * sizeof *h->bound);
    memmove(h->count + i + 1, h->count + i, n_after * sizeof *h->count);
    h->bound[i] = bound;
    h->count[i] = count;
    h->n++;
}

static bool read_bucket(struct reader *r, const struct top_line *line) {
    for (int i = 0; i < TOP_TIMES; i++) {
        struct top_histogram *h = &r->sample->time[i];
        char text[64];
        double bound;
        int rank = rank_of(line, TIMES[i]);
        if (rank < 0) continue;
        if (!top_line_label(line, "le", text, sizeof text) || !top_text_number(text, strlen(text), &bound))
            return false;
        bool is_bound = fabs(bound) < 1e12 || bound == HUGE_VAL; /* else there is no reckoning with it */
        if (!is_bound || (h->n && rank > h->rank)) return true;
        if (h->n && rank < h->rank) h->n = 0;
        h->rank = rank;
        add_bucket(h, bound, line->value);
        return true;
    }
    return false;
}

static bool starts_with(const struct top_line *line, const char *prefix) {
    return line->name_size >= strlen(prefix) && memcmp(line->name, prefix, strlen(prefix)) == 0;
}

static void note_server(struct top_sample *sample, const struct top_line *line) {
    static const char *const PREFIXES[] = {[TOP_LLAMA] = "llamacpp:", [TOP_VLLM] = "vllm:", [TOP_MOEBIUS] = "moebius:"};
    for (enum top_server i = TOP_LLAMA; i <= TOP_MOEBIUS; i++) {
        if (i > sample->server && starts_with(line, PREFIXES[i])) sample->server = i;
    }
}

static void note_model(struct top_sample *sample, const struct top_line *line) {
    char name[sizeof sample->model];
    if (!top_line_label(line, "model_name", name, sizeof name)) return;
    utf8_clean(name);
    if (!sample->model[0]) {
        memcpy(sample->model, name, sizeof name);
    } else if (strcmp(sample->model, name) != 0) {
        sample->has_more_models = true;
    }
}

/* A share is not added up: it is the engines' mean. When they started is the same. */
static void take_means(struct reader *r) {
    static const enum top_value MEANS[] = {TOP_KV_USED, TOP_START_UNIX_S};
    for (size_t i = 0; i < sizeof MEANS / sizeof *MEANS; i++) {
        if (r->n[MEANS[i]] > 1) r->sample->value[MEANS[i]] /= r->n[MEANS[i]];
    }
}

void top_sample_read(struct top_sample *sample, const char *text, size_t size) {
    struct reader reader = {.sample = sample};
    struct top_text lines = {.at = text, .end = size ? text + size : text};
    struct top_line line;
    *sample = (struct top_sample){0};
    for (int i = 0; i < TOP_VALUES; i++) sample->value[i] = NAN;
    while (top_text_next(&lines, &line)) {
        if (!isfinite(line.value)) continue; /* what cannot be drawn counts as not told */
        note_server(sample, &line);
        if (read_value(&reader, &line) || read_bucket(&reader, &line)) note_model(sample, &line);
    }
    take_means(&reader);
    for (int i = 0; i < TOP_TIMES; i++) {
        if (sample->time[i].n < 0) sample->time[i].n = 0;
    }
    sample->n_malformed = lines.n_malformed;
}

bool top_sample_is_loading(const struct top_sample *sample) {
    return sample->server == TOP_MOEBIUS && sample->value[TOP_KV_PAGES] == 0;
}
