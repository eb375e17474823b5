#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "cli/cli.h"
#include "cmd/cmd.h"
#include "cmd/top/fetch.h"
#include "cmd/top/json.h"
#include "cmd/top/screen.h"
#include "cmd/top/terminal.h"

/* After this long without an answer it is said that there is none yet. */
static const double SLOW_S = 2;

struct top {
    const char *url, *key, *certificates;
    double interval_s;
    bool once, json;
    struct top_fetch fetch;
    struct top_history history;
    enum top_state state;
    char trouble[256];
    double state_since_s; /* of the clock */
    double asked_s;       /* when the request on its way was made */
};

static double now_unix_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool is_utf8(void) {
    setlocale(LC_CTYPE, ""); /* numbers stay as C writes them */
    return !strcmp(nl_langinfo(CODESET), "UTF-8");
}

static void set_state(struct top *t, enum top_state state, const char *trouble) {
    if (state != t->state) t->state_since_s = clock_now_s();
    t->state = state;
    snprintf(t->trouble, sizeof t->trouble, "%s", trouble);
}

static struct top_view view_of(const struct top *t) {
    double now_s = clock_now_s();
    return (struct top_view){.history = &t->history,
                             .state = t->state,
                             .url = t->fetch.shown,
                             .trouble = t->trouble,
                             .state_s = now_s - t->state_since_s,
                             .now_s = now_s,
                             .now_unix_s = now_unix_s(),
                             .interval_s = t->interval_s,
                             .cols = 80};
}

static int ask(struct top *t, struct mo_error *error) {
    t->asked_s = clock_now_s();
    return top_fetch_start(&t->fetch, error);
}

/* An answer, or none, as state and sample. */
static void take_answer(struct top *t) {
    set_state(t, t->fetch.state, t->fetch.trouble);
    bool is_sample = t->state == TOP_READY || (t->state == TOP_LOADING && t->fetch.sample.server != TOP_UNKNOWN);
    if (is_sample) top_history_add(&t->history, &t->fetch.sample);
}

/* ---- once ---- */

static int fetch_once(struct top *t, struct mo_error *error) {
    int code = ask(t, error);
    while (!code) code = top_fetch_wait(&t->fetch, NULL, 0, TOP_TIMEOUT_S, error);
    if (code < 0) return code;
    take_answer(t);
    if (t->state == TOP_READY || t->state == TOP_LOADING) return 0;
    return mo_error_set(error, MO_E_IO, "%s: %s: %s", t->fetch.shown, top_state_name(t->state), t->trouble);
}

static int print_once(struct top *t, struct mo_error *error) {
    struct top_view view = view_of(t);
    struct buffer text = {0};
    if (t->json) return json_print(top_json(&view), error);
    top_screen_draw(&text, &view);
    bool failed = text.failed;
    if (!failed) fwrite(text.data, 1, text.size, stdout);
    buffer_free(&text);
    return failed ? mo_error_set(error, MO_E_NO_MEMORY, "no memory for a screen") : 0;
}

static void sleep_s(double seconds) {
    struct timespec time = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - floor(seconds)))};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

static int run_once(struct top *t, struct mo_error *error) {
    int code = fetch_once(t, error);
    if (code) return code;
    double rest_s = t->history.n ? t->interval_s - (clock_now_s() - top_history_get(&t->history, 0)->time_s) : 0;
    if (rest_s > 0) sleep_s(rest_s);
    code = fetch_once(t, error);
    return code ? code : print_once(t, error);
}

/* ---- on a terminal ---- */

static int draw(struct top *t, struct top_terminal *terminal, bool utf8, struct mo_error *error) {
    struct top_view view = view_of(t);
    struct buffer text = {0};
    view.is_live = true;
    view.is_utf8 = utf8;
    view.cols = terminal->cols;
    view.rows = terminal->rows;
    top_screen_draw(&text, &view);
    int code = text.failed ? mo_error_set(error, MO_E_NO_MEMORY, "no memory for a screen")
                           : top_terminal_show(terminal, &text, error);
    buffer_free(&text);
    return code;
}

/* Waits for keys, signals and the answer until `until_s` at most; what the terminal wants comes back in *event. */
static int wait_for_any(struct top *t, struct top_terminal *terminal, double until_s, enum top_event *event,
                        struct mo_error *error) {
    struct curl_waitfd fds[2] = {{.fd = terminal->signal_fd, .events = CURL_WAIT_POLLIN},
                                 {.fd = STDIN_FILENO, .events = CURL_WAIT_POLLIN}};
    int code = top_fetch_wait(&t->fetch, fds, 1 + terminal->has_keys, until_s - clock_now_s(), error);
    if (code < 0) return code;
    *event = top_terminal_read_signals(terminal);
    if (*event != TOP_EVENT_QUIT && terminal->has_keys && fds[1].revents) {
        enum top_event key = top_terminal_read_keys(terminal);
        if (key != TOP_EVENT_NONE) *event = key;
    }
    return code;
}

/* Says that an answer is long in coming, while it is. */
static void note_slowness(struct top *t, double now_s) {
    if (!t->fetch.is_running || now_s - t->asked_s < SLOW_S || t->state == TOP_SLOW) return;
    set_state(t, TOP_SLOW, "no answer yet");
}

static int run_live(struct top *t, struct top_terminal *terminal, struct mo_error *error) {
    bool utf8 = is_utf8();
    double next_s = clock_now_s(), drawn_s = -1e9;
    for (;;) {
        enum top_event event = TOP_EVENT_NONE;
        double now_s = clock_now_s();
        if (!t->fetch.is_running && now_s >= next_s) {
            int code = ask(t, error);
            if (code) return code;
            next_s = fmax(next_s + t->interval_s, now_s); /* those that were missed are not made up for */
        }
        double until_s = fmin(t->fetch.is_running ? HUGE_VAL : next_s, drawn_s + 1);
        int code = wait_for_any(t, terminal, until_s, &event, error);
        if (code < 0) return code;
        if (event == TOP_EVENT_QUIT) return 0;
        if (code > 0) take_answer(t);
        note_slowness(t, clock_now_s());
        if (code == 0 && event == TOP_EVENT_NONE && clock_now_s() < drawn_s + 1) continue;
        code = draw(t, terminal, utf8, error);
        if (code) return code;
        drawn_s = clock_now_s();
    }
}

static int run_on_terminal(struct top *t, struct mo_error *error) {
    struct top_terminal terminal;
    int code = top_terminal_open(&terminal, error);
    if (code) return code;
    code = run_live(t, &terminal, error);
    int last_signal = terminal.last_signal;
    top_terminal_close(&terminal);
    if (!code && last_signal && last_signal != SIGINT)
        raise(last_signal); /* whoever sent it sees that it ended by it */
    return code;
}

/* ---- the command ---- */

/* One that can be drawn on. */
static bool is_terminal(void) {
    const char *kind = getenv("TERM");
    return isatty(STDOUT_FILENO) && kind && *kind && strcmp(kind, "dumb") != 0;
}

static int run(struct top *t, struct mo_error *error) {
    int code = top_fetch_open(&t->fetch, t->url, t->key, t->certificates, error);
    if (code) return code;
    t->state_since_s = clock_now_s();
    code = top_history_open(&t->history, t->interval_s, error);
    if (!code) code = t->once || t->json || !is_terminal() ? run_once(t, error) : run_on_terminal(t, error);
    top_history_close(&t->history);
    top_fetch_close(&t->fetch);
    return code;
}

int cmd_top(int argc, char **argv) {
    struct top top = {.url = "http://127.0.0.1:8000", .key = getenv("MOEBIUS_API_KEY"), .interval_s = 1};
    if (top.key && !*top.key) top.key = NULL;
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--interval,-i", .type = CLI_DOUBLE, .target = &top.interval_s, .min = 0.2, .max = 3600, .value = "S", .help = "seconds between two looks (default 1)"},
        {.names = "--api-key", .type = CLI_STRING, .target = &top.key, .value = "KEY", .help = "the server's key; MOEBIUS_API_KEY is not seen by others on this machine"},
        {.names = "--cacert", .type = CLI_STRING, .target = &top.certificates, .value = "FILE", .help = "certificates to trust, in PEM: of a server that signed its own\n(default: CURL_CA_BUNDLE, SSL_CERT_FILE, the system's)"},
        {.names = "--once", .type = CLI_FLAG, .target = &top.once, .help = "print one interval's figures and end (always so where the output is no terminal)"},
        {.names = "--json", .type = CLI_FLAG, .target = &top.json, .help = "the same for programs: totals, and rates a second; times in seconds"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "top",
        .arguments = "[URL] [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about = "Shows what a running server does: requests, tokens a second, times, caches; from its /metrics.\n"
                 "URL is where it listens (default: http://127.0.0.1:8000), with https:// too, or unix:PATH. A server "
                 "of vLLM is shown "
                 "as far\nas it tells the same, one of llama.cpp (--metrics) a little. q or ctrl-C ends it. \"now\" is "
                 "the last interval;\nshares of caches are the last minute's.",
        .examples = "  moebius top\n  moebius top https://models.example.org --interval 5\n"
                    "  moebius top --once --json | jq .tokens.generated.per_s",
    };
    struct mo_error error = {0};
    int n_positionals, code = cli_parse(&command, argc, argv, &top.url, &n_positionals, &error);
    if (code > 0) return 0;
    if (!code) code = run(&top, &error);
    return code ? cli_fail("top", &error) : 0;
}
