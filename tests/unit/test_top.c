/* `moebius top` without a server and a terminal: the text format, what lies between two samples, and whole screens. The samples are
 * those that server/metrics.c writes, so a name that changes there and not here is noticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "server/metrics.h"
#include "cmd/top/fetch.h"
#include "cmd/top/format.h"
#include "cmd/top/json.h"
#include "cmd/top/screen.h"
#include "cmd/top/text.h"

/* ---- the text format ---- */

static struct top_text text_of(const char *text) {
    return (struct top_text){.at = text, .end = text + strlen(text)};
}

static void test_text(void **state) {
    (void)state;
    struct top_text text = text_of("# HELP a b\r\n\n  \na 1\r\nb_total{x=\"1\",le=\"+Inf\",} 2.5e3 1700000000000\n"
                                   "c{model=\"a\\\"b\\\\c\\nd}\", n = \"\"}\t-Inf # {trace=\"x\"} 3\nd NaN");
    struct top_line line;
    char value[32];
    assert_true(top_text_next(&text, &line) && top_line_is(&line, "a") && line.value == 1 && line.labels_size == 0);
    assert_false(top_line_label(&line, "le", value, sizeof value));
    assert_true(top_text_next(&text, &line) && top_line_is(&line, "b_total") && line.value == 2500);
    assert_true(top_line_label(&line, "le", value, sizeof value));
    assert_string_equal(value, "+Inf");
    assert_false(top_line_is(&line, "b_tota") || top_line_is(&line, "b_total_") ||
                 top_line_label(&line, "l", value, sizeof value));
    assert_true(top_text_next(&text, &line) && top_line_is(&line, "c") && line.value == -HUGE_VAL);
    assert_true(top_line_label(&line, "model", value, sizeof value));
    assert_string_equal(value, "a\"b\\c\nd}");
    assert_true(top_line_label(&line, "model", value, 4));
    assert_string_equal(value, "a\"b");
    assert_true(top_line_label(&line, "n", value, sizeof value) && value[0] == 0);
    assert_true(top_text_next(&text, &line) && top_line_is(&line, "d") && isnan(line.value));
    assert_false(top_text_next(&text, &line));
    assert_int_equal(text.n_malformed, 0);
}

static void test_malformed_lines(void **state) {
    (void)state;
    static const char *const LINES[] = {"a",
                                        "a b",
                                        "a{ 1",
                                        "a{x} 1",
                                        "a{x=1} 1",
                                        "a{x=\"} 1",
                                        "a{x=\"\\",
                                        "a{x=\"1\"} ",
                                        "a 1 soon",
                                        "1a 1",
                                        "<html>",
                                        "a{x=\"1\"",
                                        "a{x=\"1\"y=\"2\"} 1",
                                        "a 1x",
                                        "a{=\"1\"} 1",
                                        "a{x=\"1\",,} 1",
                                        "{} 1",
                                        "a{x=\"1\"} 1 2 3x"};
    for (size_t i = 0; i < sizeof LINES / sizeof *LINES; i++) {
        char copy[64];
        struct top_line line;
        snprintf(copy, sizeof copy, "%s\ngood 7\n", LINES[i]);
        struct top_text text = text_of(copy);
        bool found = top_text_next(&text, &line);
        if (i == sizeof LINES / sizeof *LINES - 1) { /* what is behind a time is nobody's business */
            assert_true(found && top_line_is(&line, "a"));
            continue;
        }
        if (!found || !top_line_is(&line, "good") || line.value != 7 || text.n_malformed != 1) fail_msg("%s", LINES[i]);
        assert_false(top_text_next(&text, &line));
    }
}

/* ---- samples ---- */

static void fill(struct sched_histogram *h, int bucket, uint64_t n) {
    h->count[bucket] += n;
    h->total += n;
    h->sum += (double)n * 0.05;
}

/* A server that has worked for `k` units of time. */
static struct top_sample sample_at(int k, double time_s) {
    uint64_t n = (uint64_t)k;
    struct sched_stats s = {.n_running = 3,
                            .n_waiting = 2,
                            .pages_total = 300,
                            .pages_free = 174,
                            .prompt_tokens = 1000 * n,
                            .generated_tokens = 120 * n,
                            .steps = 40 * n,
                            .preemptions = n,
                            .prefix_queried_tokens = 1000 * n,
                            .prefix_found_tokens = 750 * n,
                            .disk_queried_tokens = 250 * n,
                            .disk_found_tokens = 50 * n,
                            .has_disk = true,
                            .disk = {.bytes = 1500000000, .limit_bytes = 10000000000, .read_bytes = 7 * n},
                            .drafts = 10 * n,
                            .draft_tokens = 40 * n,
                            .accepted_tokens = 30 * n,
                            .finished = {[FINISH_STOP] = 2 * n, [FINISH_LENGTH] = n},
                            .step_s = 0.75 * k,
                            .forward_s = 0.6 * k};
    struct store_stats experts = {.hits = 990 * n, .misses = 10 * n, .read_bytes = 120000000 * n, .wait_s = 0.1 * k};
    struct ranks_stats ranks = {
        .exchanges = 27 * n, .sent_bytes = 2500 * n, .received_bytes = 5000 * n, .wait_s = 0.02 * k};
    fill(&s.first_token_s, 8, 3 * n); /* 80 to 100 ms */
    fill(&s.inter_token_s, 4, 110 * n);
    fill(&s.inter_token_s, 9, 10 * n);
    fill(&s.queue_s, 0, 3 * n);
    fill(&s.request_s, SCHED_BUCKETS - 1, 3 * n);
    struct buffer text = {0};
    struct top_sample sample;
    metrics_write(&text, &s, &experts, &ranks, "deep\"seek");
    metrics_write_start(&text, 1700000000);
    top_sample_read(&sample, text.data, text.size);
    buffer_free(&text);
    sample.time_s = time_s;
    return sample;
}

/* Both sides have the same names: nothing that top knows is missing from what the server tells. */
static void test_sample_of_our_server(void **state) {
    (void)state;
    struct top_sample s = sample_at(2, 0);
    assert_int_equal(s.server, TOP_MOEBIUS);
    assert_string_equal(s.model, "deep\"seek");
    assert_false(s.has_more_models || top_sample_is_loading(&s));
    for (int i = 0; i < TOP_VALUES; i++) {
        if (isnan(s.value[i]) != (i == TOP_OTHER)) fail_msg("value %d", i);
    }
    for (int i = 0; i < TOP_TIMES; i++) assert_int_equal(s.time[i].n, SCHED_BUCKETS);
    assert_int_equal(s.n_malformed, 0);
    assert_true(s.value[TOP_PROMPT] == 2000); /* and not llama.cpp's, which counts otherwise */
    assert_true(s.value[TOP_KV_USED] > 0.4199 && s.value[TOP_KV_USED] < 0.4201);
    assert_true(s.value[TOP_STOP] == 4 && s.value[TOP_LENGTH] == 2 && s.value[TOP_ABORT] == 0);
    assert_true(s.value[TOP_START_UNIX_S] == 1700000000);
}

/* Every line has the whole name, as long as the command line takes them. */
static void test_a_long_name(void **state) {
    (void)state;
    enum { NAME = 1023 };
    char name[NAME + 1] = "", label[2 * NAME + 3] = "";
    for (int i = 0; i < NAME; i++) name[i] = '"', memcpy(label + 2 * i, "\\\"", 2);
    memcpy(label + 2 * NAME, "\"", 2);
    struct sched_stats s = {0};
    struct buffer text = {0};
    metrics_write(&text, &s, NULL, NULL, name);
    buffer_add(&text, "", 1);
    assert_false(text.failed);
    int lines = 0;
    for (char *line = strtok(text.data, "\n"); line; line = strtok(NULL, "\n")) {
        if (*line == '#') continue;
        assert_non_null(strstr(line, label));
        lines++;
    }
    assert_true(lines > 100);
    buffer_free(&text);
}

static struct top_sample sample_of(const char *text) {
    struct top_sample sample;
    top_sample_read(&sample, text, strlen(text));
    return sample;
}

static void test_samples_of_others(void **state) {
    (void)state;
    struct top_sample s =
        sample_of("vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\n"
                  "vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 4.0\n"
                  "vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75\n"
                  "vllm:gpu_cache_usage_perc{engine=\"0\"} 0.9\n"
                  "vllm:request_success_total{finished_reason=\"repetition\"} 5\n"
                  "vllm:time_per_output_token_seconds_bucket{le=\"0.1\"} 4\n"
                  "vllm:inter_token_latency_seconds_bucket{le=\"+Inf\",engine=\"0\"} 2\n"
                  "vllm:inter_token_latency_seconds_bucket{le=\"0.5\",engine=\"0\"} 1\n"
                  "vllm:inter_token_latency_seconds_bucket{le=\"0.5\",engine=\"1\"} 1\n"
                  "vllm:inter_token_latency_seconds_bucket{le=\"big\"} 1\n");
    assert_int_equal(s.server, TOP_VLLM);
    assert_true(s.value[TOP_RUNNING] == 7 && s.value[TOP_KV_USED] == 0.5 && s.value[TOP_OTHER] == 5);
    assert_true(isnan(s.value[TOP_STOP]) && isnan(s.value[TOP_KV_PAGES]));
    const struct top_histogram *h = &s.time[TOP_BETWEEN_TOKENS];
    assert_true(h->n == 2 && h->bound[0] == 0.5 && h->count[0] == 2 && isinf(h->bound[1]) && h->count[1] == 2);

    s = sample_of("llamacpp:prompt_tokens_total 5\nllamacpp:requests_processing 1\n");
    assert_true(s.server == TOP_LLAMA && s.value[TOP_PROMPT] == 5 && s.value[TOP_RUNNING] == 1);
    s = sample_of("go_goroutines 8\n<html>\n");
    assert_true(s.server == TOP_UNKNOWN && s.n_malformed == 1);
    s = sample_of("vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\n");
    assert_true(isnan(s.value[TOP_RUNNING]) && isnan(s.value[TOP_WAITING]));
    s = sample_of(
        "moebius:kv_pages_total{model_name=\"a\\u001b\x1b[2J\"} 0\nmoebius:kv_pages_free{model_name=\"b\"} 0\n");
    assert_true(top_sample_is_loading(&s) && s.has_more_models && !strchr(s.model, 27)); /* steers no terminal */
}

static void test_too_many_buckets(void **state) {
    (void)state;
    struct buffer text = {0};
    for (int i = 0; i <= TOP_BUCKETS_MAX; i++)
        buffer_printf(&text, "vllm:time_to_first_token_seconds_bucket{le=\"%d\"} %d\n", i, i);
    struct top_sample s;
    top_sample_read(&s, text.data, text.size);
    assert_int_equal(s.time[TOP_FIRST_TOKEN].n, 0);
    buffer_free(&text);
}

/* ---- between samples ---- */

static struct top_history history_of(double interval_s) {
    struct top_history history;
    assert_int_equal(top_history_open(&history, interval_s, NULL), 0);
    return history;
}

static void add_at(struct top_history *history, int k, double time_s) {
    struct top_sample sample = sample_at(k, time_s);
    top_history_add(history, &sample);
}

static bool is_near(double a, double b) {
    return fabs(a - b) <= 1e-9 * fabs(b);
}

static void test_rates(void **state) {
    (void)state;
    struct top_history h = history_of(1);
    assert_null(top_history_minute(&h));
    add_at(&h, 1, 100);
    assert_null(top_history_minute(&h));
    assert_true(isnan(top_rate(NULL, top_history_get(&h, 0), TOP_PROMPT)));
    for (int i = 1; i < 200; i++) add_at(&h, 1 + i, 100 + i * 2.0);
    const struct top_sample *newest = top_history_get(&h, 0), *before = top_history_get(&h, 1);
    assert_true(newest->time_s == 498 && before->time_s == 496 && top_history_minute(&h)->time_s == 438);
    assert_true(is_near(top_rate(before, newest, TOP_GENERATED), 60));
    assert_true(is_near(top_rate(top_history_minute(&h), newest, TOP_GENERATED), 60));
    assert_true(is_near(top_share(before, newest, TOP_PREFIX_FOUND, TOP_PREFIX_ASKED), 0.75));
    assert_true(is_near(top_part(before, newest, TOP_EXPERT_HITS, TOP_EXPERT_MISSES), 0.99));
    assert_true(isnan(top_share(before, newest, TOP_ABORT, TOP_ERROR))); /* nothing to divide by */
    assert_true(isnan(top_rate(newest, newest, TOP_PROMPT)));
    assert_true(is_near(top_history_at(&h, TOP_STEPS, 497), (before->value[TOP_STEPS] + newest->value[TOP_STEPS]) / 2));
    assert_true(isnan(top_history_at(&h, TOP_STEPS, 498.1)) && isnan(top_history_at(&h, TOP_STEPS, 101)));
    top_history_close(&h);
}

static void test_restart(void **state) {
    (void)state;
    struct top_history h = history_of(1);
    add_at(&h, 5, 1);
    add_at(&h, 6, 2);
    add_at(&h, 1, 3); /* fewer than before */
    assert_true(h.n == 1 && h.n_restarts == 1 && top_history_get(&h, 0)->time_s == 3);
    struct top_sample later = sample_at(9, 4); /* more than before, but another process */
    later.value[TOP_START_UNIX_S] += 5;
    top_history_add(&h, &later);
    assert_true(h.n == 1 && h.n_restarts == 2);
    later.time_s = 5; /* a value that is no longer told is no restart */
    later.value[TOP_PROMPT] = NAN;
    top_history_add(&h, &later);
    assert_true(h.n == 2 && h.n_restarts == 2);
    top_history_close(&h);
}

static struct top_sample with_buckets(const double (*buckets)[2], int n) {
    struct top_sample s = {.time[TOP_QUEUE].n = n};
    for (int i = 0; i < n; i++) {
        s.time[TOP_QUEUE].bound[i] = buckets[i][0];
        s.time[TOP_QUEUE].count[i] = buckets[i][1];
    }
    return s;
}

static void check_quantile(const struct top_sample *a, const struct top_sample *b, double q, double want,
                           bool is_more) {
    struct top_percentile p = top_quantile(a, b, TOP_QUEUE, q);
    if (!(isnan(want) ? isnan(p.seconds) : is_near(p.seconds, want)) || p.is_more != is_more)
        fail_msg("q %g: %g, expected %g", q, p.seconds, want);
}

static void test_percentiles(void **state) {
    (void)state;
    const double old[][2] = {{1, 5}, {2, 5}, {4, 5}, {HUGE_VAL, 5}},
                 new[][2] = {{1, 5}, {2, 9}, {4, 13}, {HUGE_VAL, 15}};
    struct top_sample a = with_buckets(old, 4), b = with_buckets(new, 4), other = with_buckets(old, 3);
    check_quantile(&a, &b, 0.2, 1.5, false);
    check_quantile(&a, &b, 0.4, 2, false);
    check_quantile(&a, &b, 0.5, 2.5, false);
    check_quantile(&a, &b, 0.99, 4, true); /* beyond the last bound */
    check_quantile(&a, &a, 0.5, NAN, false);
    check_quantile(&other, &b, 0.5, NAN, false); /* other buckets: nothing to compare */
    check_quantile(NULL, &b, 0.5, NAN, false);
    assert_true(top_times_added(&a, &b, TOP_QUEUE) == 10);
    const double wrong[][2] = {{1, 9}, {2, 5}, {4, 8}, {HUGE_VAL, 9}}; /* counts that fall */
    b = with_buckets(wrong, 4);
    check_quantile(&a, &b, 0.5, 0.5, false);
    const double lone[][2] = {{HUGE_VAL, 9}}, none[][2] = {{HUGE_VAL, 0}};
    a = with_buckets(none, 1);
    b = with_buckets(lone, 1);
    check_quantile(&a, &b, 0.5, NAN, false);
}

/* ---- figures ---- */

static void test_figures(void **state) {
    (void)state;
    const struct {
        struct top_text_of have;
        const char *want;
    } CASES[] = {
        {top_number(0), "0"},
        {top_number(0.256), "0.26"},
        {top_number(9.994), "9.99"},
        {top_number(9.996), "10.0"},
        {top_number(99.96), "100"},
        {top_number(1234.4), "1,234"},
        {top_number(12345), "12.3 k"},
        {top_number(4.56e6), "4.56 M"},
        {top_number(1e30), "1e+18 T"},
        {top_number(NAN), "-"},
        {top_whole(1234567), "1,234,567"},
        {top_whole(-1234), "-1,234"},
        {top_whole(123), "123"},
        {top_bytes(999), "999 B"},
        {top_bytes(1234567), "1.23 MB"},
        {top_bytes(999.9e6), "1.00 GB"},
        {top_percent(0.424), "42 %"},
        {top_percent(0.9951), "99.5 %"},
        {top_percent(1), "100 %"},
        {top_percent(0.004), "0.4 %"},
        {top_seconds(0.00123, false), "1.23 ms"},
        {top_seconds(0.123, false), "123 ms"},
        {top_seconds(2.5, true), ">2.50 s"},
        {top_seconds(NAN, false), "-"},
        {top_age(59.9), "59 s"},
        {top_age(3700), "1 h 1 min"},
        {top_age(200000), "2 d 7 h"},
        {top_age(NAN), "-"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) assert_string_equal(CASES[i].have.text, CASES[i].want);
    char text[64];
    const double values[] = {NAN, 0, 1, 4, 8};
    top_bar(text, 4, 0.5, false);
    assert_string_equal(text, "##..");
    top_bar(text, 4, 0.001, true);
    assert_string_equal(text, "█░░░");
    top_bar(text, 4, 7, false);
    assert_string_equal(text, "####");
    top_bar(text, 4, NAN, false);
    assert_string_equal(text, "....");
    top_spark(text, values, 5, true);
    assert_string_equal(text, " ▁▁▄█");
    top_spark(text, values, 5, false);
    assert_string_equal(text, " __-#");
}

/* ---- screens ---- */

static struct top_view view_of(const struct top_history *history) {
    return (struct top_view){.history = history,
                             .state = TOP_READY,
                             .url = "http://127.0.0.1:8000/",
                             .trouble = "",
                             .state_s = 65,
                             .now_s = 1061,
                             .now_unix_s = 1700008000,
                             .interval_s = 1,
                             .cols = 80,
                             .rows = 24,
                             .is_utf8 = true,
                             .is_live = true};
}

/* Compares with tests/data/top/NAME.txt; what differs is printed whole. */
static void check_screen(const struct top_view *view, const char *name) {
    struct buffer out = {0};
    char path[64], want[8192];
    snprintf(path, sizeof path, "tests/data/top/%s.txt", name);
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("%s: cannot be read", path);
    size_t n = fread(want, 1, sizeof want - 1, file);
    fclose(file);
    want[n] = 0;
    top_screen_draw(&out, view);
    buffer_add(&out, "", 1);
    assert_false(out.failed);
    if (strcmp(out.data, want) != 0) {
        fprintf(stderr, "--- %s\n%s---\n", path, out.data);
        fail_msg("%s: the screen is another one", path);
    }
    buffer_free(&out);
}

/* A minute of samples, faster and faster. */
static struct top_history busy_minute(void) {
    struct top_history h = history_of(1);
    for (int i = 0, k = 1; i <= 60; i++, k += i < 30 ? 1 : 2) add_at(&h, k, 1000 + i);
    return h;
}

static void test_screen(void **state) {
    (void)state;
    struct top_history h = busy_minute();
    struct top_view view = view_of(&h);
    check_screen(&view, "full");
    top_history_close(&h);
}

/* Little room: blank lines go first, then what is below; lines end at the edge. Much room: the last minute takes it. */
static void test_sizes(void **state) {
    (void)state;
    struct top_history h = busy_minute();
    for (int cols = 1; cols <= 200; cols += 7) {
        for (int rows = 1; rows < 40; rows++) {
            struct top_view view = view_of(&h);
            struct buffer out = {0};
            view.cols = cols;
            view.rows = rows;
            top_screen_draw(&out, &view);
            int n_lines = 0, n = 0;
            for (size_t i = 0; i < out.size; i++) {
                bool is_character = ((unsigned char)out.data[i] & 0xc0) != 0x80 && out.data[i] != '\n';
                n = out.data[i] == '\n' ? 0 : n + is_character;
                n_lines += out.data[i] == '\n';
                if (n > cols) fail_msg("%d columns, %d rows: a line is longer", cols, rows);
            }
            if (n_lines > rows || (rows >= 24 && n_lines != 24)) fail_msg("%d rows: %d lines", rows, n_lines);
            buffer_free(&out);
        }
    }
    struct top_view view = view_of(&h);
    view.rows = 7;
    view.cols = 60;
    view.is_utf8 = false;
    check_screen(&view, "small");
    top_history_close(&h);
}

static void test_screen_without_samples(void **state) {
    (void)state;
    struct top_history h = history_of(1);
    struct top_view view = view_of(&h);
    view.state = TOP_GONE;
    view.trouble = "Couldn't connect";
    check_screen(&view, "gone");
    add_at(&h, 1, 1000);
    view.is_live = false;
    view.is_utf8 = false;
    view.rows = 0;
    view.state = TOP_READY;
    view.trouble = "";
    check_screen(&view, "once");
    top_history_close(&h);
}

/* What another server does not tell has no line. */
static void test_screen_of_others(void **state) {
    (void)state;
    struct top_history h = history_of(1);
    struct top_view view = view_of(&h);
    struct top_sample s =
        sample_of("vllm:num_requests_running{model_name=\"modèle\"} 1\nvllm:prompt_tokens_total 100\nbroken\n");
    s.time_s = 1000;
    top_history_add(&h, &s);
    s.time_s = 1001;
    s.value[TOP_PROMPT] = 150;
    top_history_add(&h, &s);
    view.is_utf8 = false;
    view.state = TOP_SLOW;
    view.trouble = "no answer yet";
    check_screen(&view, "other");
    top_history_close(&h);
}

/* ---- for programs ---- */

static double at(const json_t *root, const char *a, const char *b, const char *c) {
    const json_t *value = json_object_get(json_object_get(root, a), b);
    if (c) value = json_object_get(value, c);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

static void test_json(void **state) {
    (void)state;
    struct top_history h = busy_minute();
    struct top_view view = view_of(&h);
    json_t *root = top_json(&view);
    assert_string_equal(json_string_value(json_object_get(root, "state")), "ready");
    assert_string_equal(json_string_value(json_object_get(root, "server")), "moebius");
    assert_true(json_number_value(json_object_get(root, "uptime_s")) == 8000);
    assert_true(is_near(at(root, "tokens", "generated", "per_s"), 240));
    assert_true(is_near(at(root, "tokens", "generated", "total"), 120 * 92));
    assert_true(is_near(at(root, "experts", "found", NULL), 0.99) && is_near(at(root, "drafts", "right", NULL), 0.75));
    assert_true(is_near(at(root, "times_s", "first_token", "p50"), 0.09));
    assert_true(at(root, "disk_cache", "limit_bytes", NULL) == 1e10 && at(root, "ranks", "n", NULL) == 1);
    json_decref(root);
    struct top_sample s = sample_of("vllm:num_requests_running 1\n");
    s.time_s = 2000;
    top_history_clear(&h);
    top_history_add(&h, &s);
    root = top_json(&view);
    assert_null(json_object_get(root, "experts"));
    assert_true(json_is_null(json_object_get(root, "interval_s")));
    json_decref(root);
    top_history_close(&h);
}

/* ---- addresses ---- */

static void test_addresses(void **state) {
    (void)state;
    static const struct {
        const char *given, *asked, *shown;
    } CASES[] = {
        {"http://127.0.0.1:8000", "http://127.0.0.1:8000/metrics", "http://127.0.0.1:8000/"},
        {"localhost:80", "http://localhost:80/metrics", "http://localhost:80/"},
        {"https://a.example/v1/", "https://a.example/metrics", "https://a.example/"},
        {"https://a.example/llm/v1", "https://a.example/llm/metrics", "https://a.example/llm"},
        {"https://me:secret@a.example/x/?k=1#f", "https://me:secret@a.example/x/metrics?k=1", "https://a.example/x"},
        {"http://[::1]:9/metrics", "http://[::1]:9/metrics", "http://[::1]:9/metrics"},
    };
    struct top_fetch fetch;
    struct mo_error error;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        assert_int_equal(top_fetch_open(&fetch, CASES[i].given, "key", NULL, &error), 0);
        assert_string_equal(fetch.url, CASES[i].asked);
        assert_string_equal(fetch.shown, CASES[i].shown);
        top_fetch_close(&fetch);
    }
    static const char *const WRONG[] = {"",        "ftp://x",     "file:///etc/passwd",
                                        "http://", "http://a b/", "http://x:99999"};
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
        if (top_fetch_open(&fetch, WRONG[i], NULL, NULL, &error) != MO_E_INVALID) fail_msg("%s", WRONG[i]);
    }
    assert_int_equal(top_fetch_open(&fetch, "http://x", "", NULL, &error), MO_E_INVALID);
    assert_int_equal(top_fetch_open(&fetch, "http://x", "a\r\nHost: y", NULL, &error), MO_E_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_malformed_lines),
        cmocka_unit_test(test_sample_of_our_server),
        cmocka_unit_test(test_a_long_name),
        cmocka_unit_test(test_samples_of_others),
        cmocka_unit_test(test_too_many_buckets),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_restart),
        cmocka_unit_test(test_percentiles),
        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_screen),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_screen_without_samples),
        cmocka_unit_test(test_screen_of_others),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
