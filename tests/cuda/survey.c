#include "survey.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 8 }; /* lines of a test; a visit keeps so much of what a step says (visit.c) */
static int complaints;

static void say(const char *format, va_list arguments, const char *more) {
    if (complaints++ >= MOST) return;
    fflush(stdout); /* cmocka's own lines */
    fputs("WRONG ", stderr);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "%s\n", more);
}

void complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments, "");
    va_end(arguments);
}

void no_complaints(void) {
    int n = complaints;
    complaints = 0;
    if (n) fail_msg("%d complaints, the first of them above", n);
}

void survey_add(struct survey *s, size_t row, size_t token, double want, double found, double allowed) {
    double error = fabs(want - found), share = error / (allowed > 0 ? allowed : 1e-300);
    s->values++;
    if (error <= allowed) return;
    if (!s->wrong++) {
        s->row = row, s->token = token;
        s->want = want, s->found = found;
    }
    s->not_numbers += !isfinite(found);
    s->row_bits |= 1u << row % 16;
    s->token_bits |= 1u << token % 8;
    if (!(share > s->worst)) return; /* a NaN is counted, but hides nothing */
    s->worst = share;
    s->worst_row = row, s->worst_token = token;
    s->worst_want = want, s->worst_found = found;
}

void survey_bits(struct survey *s, const float *want, const float *found, size_t rows, size_t tokens) {
    for (size_t i = 0; i < rows * tokens; i++) {
        if (memcmp(&want[i], &found[i], sizeof *want)) {
            survey_add(s, i % rows, i / rows, (double)want[i], (double)found[i],
                       -1); /* also where they are equal: 0 and -0 */
        } else {
            s->values++;
        }
    }
}

void survey_tell(const struct survey *s, const char *format, ...) {
    char text[512];
    va_list arguments;
    if (!s->wrong) return;
    int n = snprintf(
        text, sizeof text,
        ": %zu of %zu values, %zu of them no numbers, at rows mod 16 %04x, tokens mod 8 %02x; the first is row %zu, "
        "token %zu: expected %.9g, found %.9g",
        s->wrong, s->values, s->not_numbers, s->row_bits, s->token_bits, s->row, s->token, s->want, s->found);
    if (s->worst > 0) {
        snprintf(text + n, sizeof text - (size_t)n, "; the worst row %zu, token %zu: expected %.9g, found %.9g",
                 s->worst_row, s->worst_token, s->worst_want, s->worst_found);
    }
    va_start(arguments, format);
    say(format, arguments, text);
    va_end(arguments);
}

/* ---- tests after a card that was lost ---- */

static char *program;
static int current = -1; /* test at work */
static bool is_lost;

void card_is_lost(const char *why) {
    is_lost = true;
    fail_msg("%s", why);
    abort(); /* fail_msg does not return, but does not say so */
}

/* Nothing that has to do with the card ends well any more, so the process is replaced as it is. */
static void go_on(void) {
    char from[16];
    snprintf(from, sizeof from, "%d", current);
    char *const words[] = {program, (char[]){"--from"}, from, NULL};
    fprintf(stderr, "the card is lost to this process: going on in a new one\n");
    fflush(NULL);
    execv(program, words);
    perror(program);
    exit(1);
}

static int next_test(void **state) {
    (void)state;
    current++;
    complaints = 0;
    if (is_lost) go_on();
    return 0;
}

int survey_run(int n_arguments, char **arguments, struct CMUnitTest *tests, int n, CMFixtureFunction open,
               CMFixtureFunction close) {
    bool goes_on = n_arguments == 3 && !strcmp(arguments[1], "--from");
    int first = goes_on ? atoi(arguments[2]) : 0;
    program = arguments[0];
    current = first - 1;
    if (n_arguments == 2) cmocka_set_test_filter(arguments[1]);
    for (int i = 0; i < n; i++) tests[i].setup_func = next_test;
    return _cmocka_run_group_tests("tests", tests + first, (size_t)(n - first), open, close) + goes_on;
}
