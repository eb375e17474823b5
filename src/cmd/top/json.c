#include "cmd/top/json.h"

#include <math.h>

/* The two samples that all figures come from; `from` may be NULL. */
struct span {
    const struct top_sample *from, *to;
};

static bool has(const struct span *s, enum top_value value) {
    return !isnan(s->to->value[value]);
}

/* Whole numbers stay whole, as far as a double holds them. */
static json_t *number(double value) {
    if (fabs(value) < 9e15 && value == floor(value)) return json_integer((json_int_t)value);
    return json_finite(value);
}

static void set_value(json_t *object, const char *key, const struct span *s, enum top_value value) {
    if (has(s, value)) json_object_set_new(object, key, number(s->to->value[value]));
}

static json_t *counter(const struct span *s, enum top_value value) {
    json_t *object = json_object();
    json_object_set_new(object, "total", number(s->to->value[value]));
    json_object_set_new(object, "per_s", json_finite(top_rate(s->from, s->to, value)));
    return object;
}

static void set_counter(json_t *object, const char *key, const struct span *s, enum top_value value) {
    if (has(s, value)) json_object_set_new(object, key, counter(s, value));
}

/* Only groups that have something are shown. */
static void set_group(json_t *root, const char *key, json_t *group) {
    if (json_object_size(group)) {
        json_object_set_new(root, key, group);
    } else {
        json_decref(group);
    }
}

static json_t *requests(const struct span *s) {
    json_t *group = json_object(), *finished = json_object();
    set_value(group, "running", s, TOP_RUNNING);
    set_value(group, "waiting", s, TOP_WAITING);
    set_counter(group, "preempted", s, TOP_PREEMPTIONS);
    for (int i = 0; i < TOP_REASONS; i++) set_counter(finished, top_reason_names[i], s, TOP_STOP + i);
    set_group(group, "finished", finished);
    return group;
}

static json_t *tokens(const struct span *s) {
    json_t *group = json_object();
    set_counter(group, "prompt", s, TOP_PROMPT);
    set_counter(group, "generated", s, TOP_GENERATED);
    return group;
}

static json_t *quantiles(const struct span *s, enum top_time time) {
    static const struct {
        const char *key;
        double q;
    } QUANTILES[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};
    json_t *object = json_object();
    json_object_set_new(object, "n", number(top_times_added(s->from, s->to, time)));
    for (size_t i = 0; i < sizeof QUANTILES / sizeof *QUANTILES; i++) {
        struct top_percentile p = top_quantile(s->from, s->to, time, QUANTILES[i].q);
        json_object_set_new(object, QUANTILES[i].key, json_finite(p.seconds));
    }
    return object;
}

static json_t *times(const struct span *s) {
    static const char *const KEYS[TOP_TIMES] = {"first_token", "between_tokens", "queue", "request"};
    json_t *group = json_object();
    for (enum top_time i = 0; i < TOP_TIMES; i++) {
        if (s->to->time[i].n) json_object_set_new(group, KEYS[i], quantiles(s, i));
    }
    return group;
}

static json_t *kv_cache(const struct span *s) {
    json_t *group = json_object();
    set_value(group, "used", s, TOP_KV_USED);
    set_value(group, "pages", s, TOP_KV_PAGES);
    set_value(group, "pages_free", s, TOP_KV_FREE);
    return group;
}

static json_t *prefix_cache(const struct span *s, enum top_value asked, enum top_value found) {
    json_t *group = json_object();
    if (!has(s, asked)) return group;
    set_counter(group, "asked_tokens", s, asked);
    set_counter(group, "found_tokens", s, found);
    json_object_set_new(group, "found", json_finite(top_share(s->from, s->to, found, asked)));
    return group;
}

static json_t *disk_cache(const struct span *s) {
    json_t *group = prefix_cache(s, TOP_DISK_ASKED, TOP_DISK_FOUND);
    set_value(group, "bytes", s, TOP_DISK_BYTES);
    set_value(group, "limit_bytes", s, TOP_DISK_LIMIT_BYTES);
    set_counter(group, "read_bytes", s, TOP_DISK_READ_BYTES);
    return group;
}

static json_t *experts(const struct span *s) {
    json_t *group = json_object();
    if (!has(s, TOP_EXPERT_HITS)) return group;
    set_counter(group, "hits", s, TOP_EXPERT_HITS);
    set_counter(group, "misses", s, TOP_EXPERT_MISSES);
    json_object_set_new(group, "found", json_finite(top_part(s->from, s->to, TOP_EXPERT_HITS, TOP_EXPERT_MISSES)));
    set_counter(group, "read_bytes", s, TOP_EXPERT_READ_BYTES);
    set_counter(group, "wait_s", s, TOP_EXPERT_WAIT_S);
    return group;
}

static json_t *ranks(const struct span *s) {
    json_t *group = json_object();
    set_value(group, "n", s, TOP_RANKS);
    set_counter(group, "exchanges", s, TOP_EXCHANGES);
    set_counter(group, "sent_bytes", s, TOP_SENT_BYTES);
    set_counter(group, "received_bytes", s, TOP_RECEIVED_BYTES);
    set_counter(group, "wait_s", s, TOP_RANK_WAIT_S);
    return group;
}

static json_t *drafts(const struct span *s) {
    json_t *group = json_object();
    if (!has(s, TOP_DRAFTED)) return group;
    set_counter(group, "drafted", s, TOP_DRAFTED);
    set_counter(group, "accepted", s, TOP_ACCEPTED);
    json_object_set_new(group, "right", json_finite(top_share(s->from, s->to, TOP_ACCEPTED, TOP_DRAFTED)));
    return group;
}

static json_t *steps(const struct span *s) {
    json_t *group = json_object();
    set_counter(group, "n", s, TOP_STEPS);
    set_counter(group, "busy_s", s, TOP_STEP_S);
    set_counter(group, "forward_s", s, TOP_FORWARD_S);
    return group;
}

static void set_groups(json_t *root, const struct span *s) {
    set_group(root, "requests", requests(s));
    set_group(root, "tokens", tokens(s));
    set_group(root, "times_s", times(s));
    set_group(root, "steps", steps(s));
    set_group(root, "kv_cache", kv_cache(s));
    set_group(root, "prefix_cache", prefix_cache(s, TOP_PREFIX_ASKED, TOP_PREFIX_FOUND));
    set_group(root, "disk_cache", disk_cache(s));
    set_group(root, "experts", experts(s));
    set_group(root, "ranks", ranks(s));
    set_group(root, "drafts", drafts(s));
}

json_t *top_json(const struct top_view *view) {
    static const char *const SERVERS[] = {"unknown", "llama.cpp", "vllm", "moebius"};
    struct span span = {top_history_get(view->history, 1), top_history_get(view->history, 0)};
    json_t *root = json_object();
    json_object_set_new(root, "url", json_lossy(view->url));
    json_object_set_new(root, "state", json_string(top_state_name(view->state)));
    if (!span.to) return root;
    json_object_set_new(root, "server", json_string(SERVERS[span.to->server]));
    json_object_set_new(root, "model", json_lossy(span.to->model));
    double uptime_s = top_uptime_s(span.to, view->now_unix_s);
    if (!isnan(uptime_s)) json_object_set_new(root, "uptime_s", json_finite(uptime_s));
    json_object_set_new(root, "interval_s", json_finite(span.from ? span.to->time_s - span.from->time_s : NAN));
    set_groups(root, &span);
    return root;
}
