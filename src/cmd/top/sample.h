/* cmd/top/sample.h - one look at a server: what /metrics told, under our own indices. Moebius and vLLM share most names, llama.cpp has
 * a few; the first known name of a value wins. Samples that differ in labels alone (engines of one vLLM) are added up. */
#ifndef MOEBIUS_CMD_TOP_SAMPLE_H
#define MOEBIUS_CMD_TOP_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>

enum top_server { TOP_UNKNOWN, TOP_LLAMA, TOP_VLLM, TOP_MOEBIUS };

enum top_value {
    TOP_START_UNIX_S,
    TOP_RUNNING,
    TOP_WAITING,
    TOP_KV_USED, /* share, 0 to 1 */
    TOP_KV_PAGES,
    TOP_KV_FREE,
    TOP_RANKS,
    TOP_DISK_BYTES,
    TOP_DISK_LIMIT_BYTES,
    TOP_COUNTERS, /* from here on values only grow, while the server is the same one */
    TOP_PROMPT = TOP_COUNTERS,
    TOP_GENERATED,
    TOP_PREEMPTIONS,
    TOP_PREFIX_ASKED,
    TOP_PREFIX_FOUND,
    TOP_DISK_ASKED,
    TOP_DISK_FOUND,
    TOP_DISK_READ_BYTES,
    TOP_EXPERT_HITS,
    TOP_EXPERT_MISSES,
    TOP_EXPERT_READ_BYTES,
    TOP_EXPERT_WAIT_S,
    TOP_EXCHANGES,
    TOP_SENT_BYTES,
    TOP_RECEIVED_BYTES,
    TOP_RANK_WAIT_S,
    TOP_DRAFTED,
    TOP_ACCEPTED,
    TOP_STEPS,
    TOP_STEP_S,
    TOP_FORWARD_S,
    TOP_STOP, /* answers that ended, by reason */
    TOP_LENGTH,
    TOP_ABORT,
    TOP_ERROR,
    TOP_OTHER,
    TOP_VALUES,
    TOP_REASONS = TOP_VALUES - TOP_STOP,
};

extern const char *const top_reason_names[TOP_REASONS];

enum top_time { TOP_FIRST_TOKEN, TOP_BETWEEN_TOKENS, TOP_QUEUE, TOP_REQUEST, TOP_TIMES };

enum { TOP_BUCKETS_MAX = 64 };
struct top_histogram {
    int n, rank;                   /* n == 0: there is none, or it has more buckets than there is room for */
    double bound[TOP_BUCKETS_MAX]; /* [n] ascending; the last may be infinite */
    double count[TOP_BUCKETS_MAX]; /* [n] of values up to it */
};

struct top_sample {
    double time_s; /* of clock_now_s */
    enum top_server server;
    char model[128];
    bool has_more_models;
    double value[TOP_VALUES]; /* NaN: not told */
    struct top_histogram time[TOP_TIMES];
    int n_malformed; /* lines that were not even well-formed */
};

/* Whatever is in text [size]. */
void top_sample_read(struct top_sample *sample, const char *text, size_t size);

/* A server that takes requests already, but has no model yet. */
bool top_sample_is_loading(const struct top_sample *sample);

#endif
