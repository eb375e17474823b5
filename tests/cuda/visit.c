/* A visit to a machine with a GPU: runs the steps of a list in order, each with a limit and all within a budget of time, and
 * writes one JSON file with everything they said - anew after every step, so that a visit that is cut off still brings results.
 *
 *   visit STEPS.json --out FILE [--bin FOLDER] [--budget SECONDS] [--only NAME,NAME]
 *
 * STEPS.json: {"commit": "...", "steps": [{"name": "card", "command": ["{bin}/moebius", ...], "limit_s": 60,
 * "optional": true, "environment": {"NAME": "value"}}]}. In a command {root} is the folder of STEPS.json, {bin} FOLDER and {report} a file whose JSON becomes the step's
 * "result", also of a step that was stopped. An optional step whose program is not there is left out; one that did not get its turn
 * is listed. It needs no shell and no other program, so that it runs where there is nothing but a driver. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CARDS_MAX = 16 };
enum { TAIL_BYTES = 96 << 10, WORDS_MAX = 64, LEAST_S = 3, KILLS_MAX = 4, NOT_FOUND = 127, DEFAULT_BUDGET_S = 540 };

struct visit {
    const char *out, *only, *bin;
    char root[4096], report[4200];
    double budget_s, start_s;
    json_t *result, *steps, *left_out;
    int passed, failed;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double left_s(const struct visit *v) {
    return v->budget_s - (now_s() - v->start_s);
}

/* By way of a file beside it: who reads it never finds half of it. */
static bool write_result(const struct visit *v) {
    char path[4200];
    snprintf(path, sizeof path, "%.4096s.part", v->out);
    return !json_dump_file(v->result, path, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) && !rename(path, v->out);
}

/* `text` with {root} and {report} filled in; malloc'd. */
static char *fill_in(const struct visit *v, const char *text) {
    static const char *const names[] = {"{bin}", "{root}", "{report}"};
    const char *const values[] = {v->bin, v->root, v->report};
    char *out = strdup(text);
    for (int i = 0; i < 3 && out; i++) {
        for (char *at; out && (at = strstr(out, names[i]));) {
            char *longer = NULL;
            if (asprintf(&longer, "%.*s%s%s", (int)(at - out), out, values[i], at + strlen(names[i])) < 0)
                longer = NULL;
            free(out);
            out = longer;
        }
    }
    return out;
}

/* The last bytes of what a step said. */
struct tail {
    char text[TAIL_BYTES + 1];
    size_t used;
};

static void tail_add(struct tail *tail, const char *text, size_t n) {
    if (n > TAIL_BYTES) {
        text += n - TAIL_BYTES;
        n = TAIL_BYTES;
    }
    size_t drop = tail->used + n > TAIL_BYTES ? tail->used + n - TAIL_BYTES : 0;
    memmove(tail->text, tail->text + drop, tail->used - drop);
    tail->used -= drop;
    memcpy(tail->text + tail->used, text, n);
    tail->used += n;
    tail->text[tail->used] = '\0';
}

/* Bytes that are not UTF-8's plain part become '?', so that JSON takes them. */
static void tail_clean(struct tail *tail) {
    for (size_t i = 0; i < tail->used; i++) {
        unsigned char c = (unsigned char)tail->text[i];
        if (c >= 0x80 || (c < ' ' && c != '\n' && c != '\t')) tail->text[i] = '?';
    }
}

/* `more`: variables of the environment, or NULL. */
static pid_t start(char *const *words, json_t *more, int *output) {
    int ends[2];
    if (pipe(ends)) return -1;
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        const char *name;
        json_t *value;
        json_object_foreach(more, name, value) setenv(name, json_string_value(value), 1);
        execvp(words[0], words);
        _exit(errno == ENOENT || errno == ENOTDIR ? NOT_FOUND : NOT_FOUND - 1);
    }
    close(ends[1]);
    *output = ends[0];
    if (pid < 0) close(ends[0]);
    return pid;
}

/* Reads what the step says until it ends; after `limit` seconds it is asked to end, and then made to. Its whole group is meant: what
 * it started must not go on beside the next step. Returns whether it was stopped. A program that hangs in the driver does not even
 * end when it is made to: it is left behind then. */
static bool listen_to(pid_t pid, int output, double limit_s, struct tail *tail) {
    double end = now_s() + limit_s;
    bool stopped = false;
    int asked = 0;
    char text[4096];
    for (;;) {
        struct pollfd wait = {.fd = output, .events = POLLIN};
        double left = end - now_s();
        int ready = poll(&wait, 1, left > 0 ? (int)(left * 1e3) + 1 : 0);
        if (ready > 0) {
            ssize_t n = read(output, text, sizeof text);
            if (n <= 0) return stopped;
            tail_add(tail, text, (size_t)n);
            fwrite(text, 1, (size_t)n, stdout);
            fflush(stdout);
        } else if (now_s() >= end) {
            if (asked++ == KILLS_MAX) return true;
            kill(-pid, stopped ? SIGKILL : SIGTERM);
            stopped = true;
            end = now_s() + 2;
        }
    }
}

/* A step that was stopped may be one that never ends; then it counts as killed. */
static void wait_for(pid_t pid, int *status, bool stopped) {
    for (int i = 0; waitpid(pid, status, stopped ? WNOHANG : 0) == 0; i++) {
        if (i == 20) {
            *status = SIGKILL;
            return;
        }
        usleep(100000);
    }
}

static void leave_out(struct visit *v, const char *name, const char *why) {
    printf("left out: %s: %s\n", name, why);
    json_array_append_new(v->left_out, json_pack("{ss ss}", "name", name, "why", why));
}

static void note_step(struct visit *v, const json_t *step, const struct tail *tail, int status, bool stopped,
                      double seconds) {
    const char *name = json_string_value(json_object_get(step, "name"));
    int rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    json_t *result = json_load_file(v->report, 0, NULL);
    bool ok = rc == 0 && !stopped;
    json_t *line =
        json_pack("{ss sO si sb sf so ss}", "name", name, "command", json_object_get(step, "command"), "rc", rc,
                  "stopped", stopped, "seconds", seconds, "result", result ? result : json_null(), "said", tail->text);
    json_array_append_new(v->steps, line);
    if (result && !strcmp(name, "card")) json_object_set(v->result, "card", json_object_get(result, "card"));
    v->passed += ok;
    v->failed += !ok;
    printf("== %s: %s, %.1f s (%.0f s left)\n", name, stopped ? "STOPPED" : ok ? "ok" : "FAILED", seconds, left_s(v));
}

static void run_step(struct visit *v, const json_t *step) {
    const char *name = json_string_value(json_object_get(step, "name"));
    const json_t *command = json_object_get(step, "command");
    double limit = json_number_value(json_object_get(step, "limit_s")), begin = now_s();
    static struct tail tail;
    char *words[WORDS_MAX + 1] = {0};
    int status = 0, output = -1;
    tail = (struct tail){.used = 0};
    for (size_t i = 0; i < json_array_size(command) && i < WORDS_MAX; i++) {
        words[i] = fill_in(v, json_string_value(json_array_get(command, i)));
    }
    if (limit > left_s(v)) limit = left_s(v);
    printf("== %s\n", name);
    fflush(stdout);
    unlink(v->report);
    pid_t pid = start(words, json_object_get(step, "environment"), &output);
    bool stopped = pid > 0 && listen_to(pid, output, limit, &tail);
    if (pid > 0) wait_for(pid, &status, stopped);
    if (output >= 0) close(output);
    tail_clean(&tail);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_FOUND && json_is_true(json_object_get(step, "optional"))) {
        leave_out(v, name, "its program is not on this machine");
    } else {
        note_step(v, step, &tail, pid > 0 ? status : NOT_FOUND << 8, stopped, now_s() - begin);
    }
    for (int i = 0; i < WORDS_MAX; i++) free(words[i]);
}

static bool is_wanted(const struct visit *v, const char *name) {
    size_t n = strlen(name);
    for (const char *at = v->only; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : "") {
        if (!strncmp(at, name, n) && (at[n] == ',' || !at[n])) return true;
    }
    return !v->only;
}

static int run_all(struct visit *v, const json_t *plan) {
    const json_t *list = json_object_get(plan, "steps");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *step = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(step, "name"));
        if (!name || !is_wanted(v, name)) continue;
        if (left_s(v) < LEAST_S) {
            leave_out(v, name, "no time was left");
        } else {
            json_object_set_new(v->result, "running", json_string(name)); /* for who finds a visit that was cut off */
            if (write_result(v)) run_step(v, step);
            json_object_del(v->result, "running");
        }
        if (!write_result(v)) {
            fprintf(stderr, "visit: cannot write %s\n", v->out);
            return 2;
        }
    }
    json_object_set_new(v->result, "complete", json_true());
    json_object_set_new(v->result, "seconds", json_real(now_s() - v->start_s));
    if (!write_result(v)) return 2;
    printf("%d passed, %d failed, %zu left out; %s\n", v->passed, v->failed, json_array_size(v->left_out), v->out);
    return v->failed ? 1 : 0;
}

static void begin(struct visit *v, const json_t *plan, const char *path) {
    char *copy = strdup(path), date[32];
    time_t now = time(NULL);
    if (!copy || !realpath(dirname(copy), v->root)) snprintf(v->root, sizeof v->root, ".");
    free(copy);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    snprintf(v->report, sizeof v->report, "%.4096s.step", v->out);
    v->start_s = now_s();
    v->steps = json_array();
    v->left_out = json_array();
    const char *commit = json_string_value(json_object_get(plan, "commit"));
    v->result =
        json_pack("{ss ss ss sf sb so so}", "commit", commit ? commit : "unknown", "began", date, "programs", v->bin,
                  "budget_s", v->budget_s, "complete", false, "steps", v->steps, "left_out", v->left_out);
}

/* Where nobody else has a card open, the driver prepares it anew for every program, which takes seconds: so a process keeps all of
 * them open until the visit ends. One of its own, for a driver that hangs must not hang the visit. */
static pid_t hold_cards(void) {
    char path[32];
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < CARDS_MAX; i++) {
        snprintf(path, sizeof path, "/dev/nvidia%d", i);
        if (open(path, O_RDWR | O_CLOEXEC) < 0) continue;
    }
    for (;;) pause();
}

int main(int argc, char **argv) {
    struct visit v = {.budget_s = DEFAULT_BUDGET_S, .bin = "{root}/bin"};
    json_error_t error;
    for (int i = 2; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--out")) v.out = argv[i + 1];
        if (!strcmp(argv[i], "--bin")) v.bin = argv[i + 1];
        if (!strcmp(argv[i], "--only")) v.only = argv[i + 1];
        if (!strcmp(argv[i], "--budget")) v.budget_s = atof(argv[i + 1]);
    }
    json_t *plan = argc > 1 ? json_load_file(argv[1], 0, &error) : NULL;
    if (!plan || !v.out) {
        fprintf(stderr, "use: visit STEPS.json --out FILE [--bin FOLDER] [--budget SECONDS] [--only NAME,NAME]\n");
        if (argc > 1 && !plan) fprintf(stderr, "visit: %s: %s\n", argv[1], error.text);
        return 2;
    }
    begin(&v, plan, argv[1]);
    fflush(stdout);
    pid_t holder = hold_cards();
    int code = run_all(&v, plan);
    if (holder > 0) kill(holder, SIGKILL);
    unlink(v.report);
    json_decref(v.result);
    json_decref(plan);
    return code;
}
