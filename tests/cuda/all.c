/* tests/cuda/all.c - the test programs of a bundle in one, which does what it is called: what they share, nearly all of it, is there once.
 * bundle.mk compiles each with its main() called after it, and says which there are: TESTS is X(test_kernels) X(test_prefill) ... */
#include <stdio.h>
#include <string.h>

#define X(name) int name##_main(); /* some take arguments, some do not: called as the C library calls main() */
TESTS
#undef X

static const struct {
    const char *name;
    int (*main)();
} tests[] = {
#define X(name) {#name, name##_main},
    TESTS
#undef X
};
enum { N_TESTS = sizeof tests / sizeof *tests };

int main(int n, char **arguments) {
    const char *slash = strrchr(arguments[0], '/'), *name = slash ? slash + 1 : arguments[0];
    for (int i = 0; i < N_TESTS; i++) {
        if (!strcmp(name, tests[i].name)) return tests[i].main(n, arguments);
    }
    fprintf(stderr, "%s: expected to be called by the name of a test:", arguments[0]);
    for (int i = 0; i < N_TESTS; i++) fprintf(stderr, " %s", tests[i].name);
    fputc('\n', stderr);
    return 2;
}
