/* tests/cuda/survey.h - says of a test on a card all that is wrong, not the first thing alone: a visit to a card is short, and what is
 * found out on one should do to mend a kernel without another. A complaint is a line that begins with "WRONG"; the test goes on, and fails
 * at its end. A kernel that faults takes the process's card with it, so the tests behind it are run in a new process. */
#ifndef MOEBIUS_TESTS_CUDA_SURVEY_H
#define MOEBIUS_TESTS_CUDA_SURVEY_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

/* Values of a result [tokens][rows], found and expected, one after another. */
struct survey {
    size_t values, wrong, not_numbers;
    size_t row, token, worst_row, worst_token; /* of the first wrong one, and of the worst */
    double want, found, worst_want, worst_found;
    double worst;                  /* error as a share of what is allowed */
    unsigned row_bits, token_bits; /* bit i: some wrong one is at a row of i mod 16, at a token of i mod 8 */
};

void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Fails the test if it has complained. */
void no_complaints(void);

void survey_add(struct survey *s, size_t row, size_t token, double want, double found, double allowed);
/* Bits that should be the same: every float that is not is a wrong one. */
void survey_bits(struct survey *s, const float *want, const float *found, size_t rows, size_t tokens);
/* Complains of what is wrong, if anything is. */
void survey_tell(const struct survey *s, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The process can do nothing more with the card: fails this test; survey_run goes on in a new process. */
void card_is_lost(const char *why) __attribute__((noreturn));
/* main() of a program of tests: all; those whose names fit the argument, a pattern; or (--from N) what was left in a process whose
 * card is lost, which counts as a failure. */
int survey_run(int n_arguments, char **arguments, struct CMUnitTest *tests, int n, CMFixtureFunction open,
               CMFixtureFunction close);

#endif
