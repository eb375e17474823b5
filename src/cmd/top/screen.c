#include "cmd/top/screen.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cmd/top/format.h"
#include "cmd/top/lines.h"

/* Where columns stand. */
enum {
    LABEL = 17,
    NOW_END = 27,
    MINUTE_END = 38,
    SPARK = 41,
    TABLE_END = 29,
    TABLE_STEP = 10,
    BAR = 20,
    SPARK_MAX = 60
};

/* What the drawing functions share: the newest sample, the one before, and the oldest of the minute. */
struct drawing {
    const struct top_view *view;
    struct top_lines *lines;
    const struct top_sample *newest, *before, *minute;
};

static const char *const STATES[] = {"connecting", "ready", "loading", "slow", "gone", "refused", "foreign", "failed"};

const char *top_state_name(enum top_state state) {
    return STATES[state];
}

double top_uptime_s(const struct top_sample *sample, double now_unix_s) {
    if (!sample || isnan(sample->value[TOP_START_UNIX_S])) return NAN;
    return fmax(now_unix_s - sample->value[TOP_START_UNIX_S], 0); /* clocks of two machines differ */
}

static bool has(const struct drawing *d, enum top_value value) {
    return !isnan(d->newest->value[value]);
}

static void label(struct drawing *d, const char *text) {
    top_lines_new(d->lines);
    top_lines_add(d->lines, "%s", text);
    top_lines_at(d->lines, LABEL);
}

/* ---- the head ---- */

static void draw_title(struct drawing *d) {
    const struct top_view *v = d->view;
    char state[64];
    snprintf(state, sizeof state, "%s", STATES[v->state]);
    if (v->is_live && v->state_s >= 1)
        snprintf(state, sizeof state, "%s %s", STATES[v->state], top_age(v->state_s).text);
    top_lines_new(d->lines);
    top_lines_add(d->lines, "moebius top");
    int room = v->cols - top_columns("moebius top") - top_columns(state) - 4;
    if (top_columns(v->url) <= room) top_lines_add(d->lines, "  %s", v->url); /* how it goes is told, whatever else */
    top_lines_right(d->lines, v->cols, state);
}

static void draw_trouble(struct drawing *d) {
    const struct top_view *v = d->view;
    if (!*v->trouble) return;
    top_lines_new(d->lines);
    if (v->is_live) {
        top_lines_add(d->lines, "trying on");
        if (d->newest) top_lines_add(d->lines, ", figures as of %s ago", top_age(v->now_s - d->newest->time_s).text);
        top_lines_add(d->lines, ": ");
    }
    top_lines_add(d->lines, "%s", v->trouble);
}

/* A name in another script is shown where the terminal can. */
static void add_name(struct drawing *d, const char *name) {
    char copy[sizeof d->newest->model];
    snprintf(copy, sizeof copy, "%s", *name ? name : "(no name)");
    if (!d->view->is_utf8) {
        char *to = copy;
        for (const char *at = copy; *at; at++) {
            bool is_first = ((unsigned char)*at & 0xc0) != 0x80; /* byte of a character */
            if (is_first) *to++ = (unsigned char)*at < 0x80 ? *at : '?';
        }
        *to = 0;
    }
    top_lines_add(d->lines, "%s", copy);
}

static void draw_model(struct drawing *d) {
    static const char *const SERVERS[] = {"", "llama.cpp", "vLLM", ""};
    const struct top_sample *s = d->newest;
    double uptime_s = top_uptime_s(s, d->view->now_unix_s);
    label(d, "model");
    add_name(d, s->model);
    if (s->has_more_models) top_lines_add(d->lines, " and others");
    if (*SERVERS[s->server]) top_lines_add(d->lines, "   (%s)", SERVERS[s->server]);
    if (!isnan(uptime_s)) top_lines_add(d->lines, "   up %s", top_age(uptime_s).text);
    if (d->view->history->n_restarts) top_lines_add(d->lines, "   started anew %d x", d->view->history->n_restarts);
}

/* ---- requests ---- */

static void draw_bar(struct drawing *d, double share) {
    char bar[3 * BAR + 1];
    top_bar(bar, BAR, share, d->view->is_utf8);
    top_lines_add(d->lines, "%s %6s", bar, top_percent(share).text);
}

static void draw_requests(struct drawing *d) {
    if (!has(d, TOP_RUNNING)) return;
    label(d, "requests");
    top_lines_add(d->lines, "%s running", top_whole(d->newest->value[TOP_RUNNING]).text);
    top_lines_at(d->lines, LABEL + 15);
    if (has(d, TOP_WAITING)) top_lines_add(d->lines, "%s waiting", top_whole(d->newest->value[TOP_WAITING]).text);
    top_lines_at(d->lines, LABEL + 30);
    if (d->newest->value[TOP_PREEMPTIONS] > 0)
        top_lines_add(d->lines, "%s sent back to wait", top_whole(d->newest->value[TOP_PREEMPTIONS]).text);
}

static void draw_finished(struct drawing *d) {
    double total = 0;
    if (!has(d, TOP_STOP) && !has(d, TOP_LENGTH)) return;
    label(d, "  ended a second");
    for (int i = 0; i < TOP_REASONS; i++) {
        enum top_value value = TOP_STOP + i;
        if (!has(d, value)) continue;
        total += d->newest->value[value];
        top_lines_add(d->lines, "%s %s   ", top_reason_names[i],
                      top_number(top_rate(d->minute, d->newest, value)).text);
    }
    top_lines_add(d->lines, "%s in all", top_whole(total).text);
}

static void draw_busy(struct drawing *d) {
    double busy = top_rate(d->before, d->newest, TOP_STEP_S);
    if (!has(d, TOP_STEP_S)) return;
    label(d, "busy");
    draw_bar(d, busy > 1 ? 1 : busy); /* a step that began before the interval is counted when it ends */
    top_lines_add(d->lines, "   %s steps/s", top_number(top_rate(d->before, d->newest, TOP_STEPS)).text);
    double forward = top_share(d->minute, d->newest, TOP_FORWARD_S, TOP_STEP_S);
    if (!isnan(forward)) top_lines_add(d->lines, ", %s in the model", top_percent(forward).text);
}

/* ---- tokens ---- */

/* As many columns as fit, the last one ending now; each is the rate of the time that it stands for. */
static void draw_spark(struct drawing *d, enum top_value value) {
    double rates[SPARK_MAX];
    char spark[3 * SPARK_MAX + 1];
    int n = d->view->cols - SPARK - 1;
    n = n > SPARK_MAX ? SPARK_MAX : n;
    if (n < 8) return;
    double step_s = fmax(TOP_MINUTE_S / n, d->view->interval_s), end_s = d->newest->time_s;
    for (int i = 0; i < n; i++) {
        double from = top_history_at(d->view->history, value, end_s - (n - i) * step_s);
        double to = top_history_at(d->view->history, value, end_s - (n - i - 1) * step_s);
        rates[i] = (to - from) / step_s;
    }
    top_spark(spark, rates, n, d->view->is_utf8);
    top_lines_at(d->lines, SPARK);
    top_lines_add(d->lines, "%s", spark);
}

static void draw_tokens_of(struct drawing *d, const char *name, enum top_value value) {
    if (!has(d, value)) return;
    label(d, name);
    top_lines_right(d->lines, NOW_END, top_number(top_rate(d->before, d->newest, value)).text);
    if (!d->view->is_live) return;
    top_lines_right(d->lines, MINUTE_END, top_number(top_rate(d->minute, d->newest, value)).text);
    draw_spark(d, value);
}

static void draw_tokens(struct drawing *d) {
    if (!has(d, TOP_PROMPT) && !has(d, TOP_GENERATED)) return;
    label(d, "tokens a second");
    top_lines_right(d->lines, NOW_END, "now");
    if (d->view->is_live) {
        top_lines_right(d->lines, MINUTE_END, "minute");
        top_lines_at(d->lines, SPARK);
        top_lines_add(d->lines, "last minute");
    }
    draw_tokens_of(d, "  prompt", TOP_PROMPT);
    draw_tokens_of(d, "  generated", TOP_GENERATED);
}

/* ---- times ---- */

static const double QUANTILES[] = {0.5, 0.9, 0.99};
enum { N_QUANTILES = sizeof QUANTILES / sizeof *QUANTILES };

static void draw_quantiles(struct drawing *d, enum top_time time, const struct top_sample *from, int end) {
    for (int i = 0; i < N_QUANTILES; i++, end += TABLE_STEP) {
        struct top_percentile p = top_quantile(from, d->newest, time, QUANTILES[i]);
        top_lines_right(d->lines, end, top_seconds(p.seconds, p.is_more).text);
    }
}

static void draw_times_head(struct drawing *d) {
    static const char *const NAMES[N_QUANTILES] = {"p50", "p90", "p99"};
    label(d, "time");
    for (int i = 0; i < N_QUANTILES; i++) {
        char text[32];
        snprintf(text, sizeof text, "%s%s", i == 0 ? "now " : "", NAMES[i]);
        top_lines_right(d->lines, TABLE_END + i * TABLE_STEP, text);
    }
    for (int i = 0; i < N_QUANTILES && d->view->is_live; i++) {
        char text[32];
        snprintf(text, sizeof text, "%s%s", i == 0 ? "minute " : "", NAMES[i]);
        top_lines_right(d->lines, TABLE_END + (N_QUANTILES + i) * TABLE_STEP, text);
    }
}

static void draw_times(struct drawing *d) {
    static const char *const NAMES[TOP_TIMES] = {"  first token", "  between tokens", "  in the queue",
                                                 "  whole answer"};
    bool has_head = false;
    for (enum top_time i = 0; i < TOP_TIMES; i++) {
        if (!d->newest->time[i].n) continue;
        if (!has_head) draw_times_head(d);
        has_head = true;
        label(d, NAMES[i]);
        draw_quantiles(d, i, d->before, TABLE_END);
        if (d->view->is_live) draw_quantiles(d, i, d->minute, TABLE_END + N_QUANTILES * TABLE_STEP);
    }
}

/* ---- caches ---- */

static void draw_kv(struct drawing *d) {
    const double *value = d->newest->value;
    if (!has(d, TOP_KV_USED)) return;
    label(d, "KV cache");
    draw_bar(d, value[TOP_KV_USED]);
    if (has(d, TOP_KV_PAGES) && has(d, TOP_KV_FREE))
        top_lines_add(d->lines, "   %s of %s pages", top_whole(value[TOP_KV_PAGES] - value[TOP_KV_FREE]).text,
                      top_whole(value[TOP_KV_PAGES]).text);
}

/* Shares are the minute's: a single second seldom has a prompt. */
static void draw_prefix(struct drawing *d, const char *name, enum top_value found, enum top_value asked) {
    if (!has(d, asked)) return;
    label(d, name);
    draw_bar(d, top_share(d->minute, d->newest, found, asked));
    double ever = d->newest->value[asked] > 0 ? d->newest->value[found] / d->newest->value[asked] : NAN;
    top_lines_add(d->lines, "   ever %s", top_percent(ever).text);
}

static void draw_disk(struct drawing *d) {
    draw_prefix(d, "  on disk", TOP_DISK_FOUND, TOP_DISK_ASKED);
    if (!has(d, TOP_DISK_BYTES)) return;
    top_lines_add(d->lines, "   %s", top_bytes(d->newest->value[TOP_DISK_BYTES]).text);
    if (d->newest->value[TOP_DISK_LIMIT_BYTES] > 0)
        top_lines_add(d->lines, " of %s", top_bytes(d->newest->value[TOP_DISK_LIMIT_BYTES]).text);
}

static void draw_experts(struct drawing *d) {
    if (!has(d, TOP_EXPERT_HITS)) return;
    label(d, "experts found");
    draw_bar(d, top_part(d->minute, d->newest, TOP_EXPERT_HITS, TOP_EXPERT_MISSES));
    top_lines_add(d->lines, "   read %s/s, waiting %s",
                  top_bytes(top_rate(d->before, d->newest, TOP_EXPERT_READ_BYTES)).text,
                  top_percent(top_rate(d->before, d->newest, TOP_EXPERT_WAIT_S)).text);
}

static void draw_ranks(struct drawing *d) {
    if (!has(d, TOP_RANKS)) return;
    label(d, "ranks");
    top_lines_add(d->lines, "%s: %s exchanges/s", top_whole(d->newest->value[TOP_RANKS]).text,
                  top_number(top_rate(d->before, d->newest, TOP_EXCHANGES)).text);
    top_lines_add(d->lines, ", %s/s out", top_bytes(top_rate(d->before, d->newest, TOP_SENT_BYTES)).text);
    top_lines_add(d->lines, ", %s/s in", top_bytes(top_rate(d->before, d->newest, TOP_RECEIVED_BYTES)).text);
    top_lines_add(d->lines, ", waiting %s", top_percent(top_rate(d->before, d->newest, TOP_RANK_WAIT_S)).text);
}

static void draw_drafts(struct drawing *d) {
    if (!(d->newest->value[TOP_DRAFTED] > 0)) return; /* Moebius tells it always: 0 where drafts are off */
    label(d, "drafts right");
    draw_bar(d, top_share(d->minute, d->newest, TOP_ACCEPTED, TOP_DRAFTED));
    top_lines_add(d->lines, "   %s guessed/s", top_number(top_rate(d->before, d->newest, TOP_DRAFTED)).text);
}

/* ---- the whole ---- */

/* A blank line, but never two. */
static void gap(struct drawing *d) {
    if (d->lines->text[d->lines->n - 1][0]) top_lines_new(d->lines);
}

static void draw_figures(struct drawing *d) {
    draw_model(d);
    gap(d);
    draw_requests(d);
    draw_finished(d);
    draw_busy(d);
    gap(d);
    draw_tokens(d);
    gap(d);
    draw_times(d);
    gap(d);
    draw_kv(d);
    draw_prefix(d, "prefixes found", TOP_PREFIX_FOUND, TOP_PREFIX_ASKED);
    draw_disk(d);
    draw_experts(d);
    draw_ranks(d);
    draw_drafts(d);
}

static void draw_foot(struct drawing *d) {
    const struct top_view *v = d->view;
    if (!v->is_live) return;
    top_lines_new(d->lines);
    top_lines_add(d->lines, "q quits   every %g s", v->interval_s);
    if (d->newest && d->newest->n_malformed)
        top_lines_add(d->lines, "   malformed lines in the answer: %d", d->newest->n_malformed);
}

void top_screen_draw(struct buffer *out, const struct top_view *view) {
    struct top_lines *lines = calloc(1, sizeof *lines);
    struct drawing d = {.view = view, .lines = lines};
    if (!lines) {
        out->failed = true;
        return;
    }
    lines->cols = view->cols;
    d.newest = top_history_get(view->history, 0);
    d.before = top_history_get(view->history, 1);
    d.minute = top_history_minute(view->history);
    draw_title(&d);
    draw_trouble(&d);
    if (d.newest) draw_figures(&d);
    draw_foot(&d);
    top_lines_write(lines, view->rows, out);
    free(lines);
}
