/* Parts of `eval` on their own: which lines are asked for, where a function ends, and what Python says of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "cmd/eval/cases.h"
#include "cmd/eval/logits.h"
#include "cmd/eval/python.h"
#include "model/format.h"

/* ---- where a function ends ---- */

static void check_end(const char *text, int indent, bool is_ended, const char *function, bool expect_closed) {
    bool is_closed;
    size_t end = eval_function_end(text, strlen(text), indent, is_ended, &is_closed);
    assert_int_equal(end, strlen(function));
    assert_memory_equal(text, function, end);
    assert_int_equal(is_closed, expect_closed);
}

static void test_function_end(void **state) {
    (void)state;
    check_end("    a = 1\n    return a\n\ndef g():\n    b\n", 0, false, "    a = 1\n    return a\n\n", true);
    check_end("    a = 1\n    return a\nx", 0, false, "    a = 1\n    return a\n", true); /* one letter is enough */
    check_end("    a = 1\n    retu", 0, false, "    a = 1\n", false);                /* the limit: whole lines only */
    check_end("    a = 1\n    return a", 0, true, "    a = 1\n    return a", false); /* the model ended it */
    check_end("    a = 1\n  ", 0, true, "    a = 1\n  ", false);
    check_end("      a\n  ", 4, false, "      a\n", false); /* blanks so far: may still become a deeper line */
    check_end("", 0, false, "", false);
    check_end("a\n", 0, true, "", true);
    check_end("        a\n    b\n", 4, false, "        a\n", true); /* a method: its class goes on at 4 columns */
    check_end("\ta\n    b\n", 4, false, "\ta\n", true);             /* a tab is 8 columns */
    check_end("    \ta\n\n\n\tb\n", 4, false, "    \ta\n\n\n\tb\n", false);
}

static void test_count_lines(void **state) {
    (void)state;
    assert_int_equal(eval_count_lines("", 0), 0);
    assert_int_equal(eval_count_lines("\n \n\t\r\n", 6), 0);
    assert_int_equal(eval_count_lines("a\n\n b", 5), 2);
    assert_int_equal(eval_indent("  \t x", 5), 9);
    assert_int_equal(eval_indent("   ", 3), 3);
}

/* ---- which lines ---- */

static int draw(struct eval_cases *cases, const char *text, enum eval_kind kind, int count) {
    static char copy[4096];
    static struct eval_document document;
    snprintf(copy, sizeof copy, "%s", text);
    document = (struct eval_document){.text = copy, .size = strlen(text)};
    struct eval_documents documents = {.items = &document, .n = 1};
    *cases = (struct eval_cases){0};
    assert_int_equal(eval_cases_draw(cases, &documents, kind, count, 7, NULL), 0);
    return cases->n;
}

static void check_drawn(const char *text, enum eval_kind kind, const char *line) {
    struct eval_cases cases;
    int n = draw(&cases, text, kind, 9);
    assert_int_equal(n, line ? 1 : 0);
    if (line) {
        assert_int_equal(cases.items[0].end - cases.items[0].begin, strlen(line));
        assert_memory_equal(text + cases.items[0].begin, line, strlen(line));
    }
    eval_cases_free(&cases);
}

static void test_lines(void **state) {
    (void)state;
    check_drawn("", EVAL_LINE, NULL);
    check_drawn("a b c d e f g\n", EVAL_LINE, NULL);
    check_drawn("a b c d e f g h\n", EVAL_LINE, "a b c d e f g h");
    check_drawn("x\n  abcdefgh", EVAL_LINE, "  abcdefgh"); /* no newline at the end of the file */
    check_drawn("äöüäöüä\n", EVAL_LINE, NULL);             /* seven characters of two bytes */
    check_drawn("äöüäöüäö\n", EVAL_LINE, "äöüäöüäö");
    check_drawn("same line here\nother line\nsame line here\n", EVAL_LINE, "other line");
    check_drawn("same line here\n same line here\nx\n same line here\n", EVAL_LINE, "same line here");
}

static void test_defs(void **state) {
    (void)state;
    check_drawn("def f(a, b=(1, 2)) -> int:\n", EVAL_DEF, "def f(a, b=(1, 2)) -> int:");
    check_drawn("    async def f(): \n", EVAL_DEF, "    async def f(): ");
    check_drawn("def f():", EVAL_DEF, NULL); /* the prompt needs its newline */
    check_drawn("def f(): return 1\n", EVAL_DEF, NULL);
    check_drawn("def f(a,\n      b):\n", EVAL_DEF, NULL);
    check_drawn("default(a):\n", EVAL_DEF, NULL);
    check_drawn("class A:\n", EVAL_DEF, NULL);
    check_drawn("# def f():\n", EVAL_DEF, NULL);
    check_drawn("\n\n \n", EVAL_DEF, NULL);
}

/* A smaller count gives the first of a larger one's; every line gets its turn. */
static void test_draw(void **state) {
    (void)state;
    struct eval_cases all, some;
    const char *text = "line number 1\nline number 2\nline number 3\nline number 4\nline number 5\n";
    assert_int_equal(draw(&all, text, EVAL_LINE, 100), 5);
    assert_int_equal(draw(&some, text, EVAL_LINE, 3), 3);
    unsigned seen = 0;
    for (int i = 0; i < 5; i++) seen |= 1u << (all.items[i].begin / 14);
    assert_int_equal(seen, 31);
    for (int i = 0; i < 3; i++) assert_int_equal(some.items[i].begin, all.items[i].begin);
    eval_cases_free(&all);
    eval_cases_free(&some);
}

/* ---- half precision ---- */

static void test_f16(void **state) {
    (void)state;
    for (unsigned bits = 0; bits < 0x7C00; bits++) { /* every finite value, and the midpoints between neighbours */
        float value = f16_to_f32((uint16_t)bits);
        assert_int_equal(eval_f32_to_f16(value), bits);
        assert_int_equal(eval_f32_to_f16(-value), bits | 0x8000);
        if (bits == 0x7BFF) break;
        float middle = (value + f16_to_f32((uint16_t)(bits + 1))) / 2;
        assert_int_equal(eval_f32_to_f16(middle), bits + (bits & 1)); /* ties to even */
    }
    assert_int_equal(eval_f32_to_f16(1e9f), 0x7BFF);
    assert_int_equal(eval_f32_to_f16(-1e9f), 0xFBFF);
}

/* ---- python3 ---- */

static void test_python(void **state) {
    (void)state;
    struct eval_python python;
    if (!eval_python_start(&python)) {
        printf("left out: what Python parses: %s\n", python.reason);
        skip();
    }
    json_t *sources = json_pack("[s s s s s s%]", "def f():\n    return '\u20ac'\n", "def f():\n",
                                "if True:\n    def f(self):\n        pass\n", "def f(:\n    pass\n",
                                "def f():\n    return 'a\\d'\n", "x\0y", (size_t)3);
    const bool expected[] = {true, false, true, false, true, false};
    bool found[6];
    assert_true(eval_python_parse(&python, sources, found));
    for (int i = 0; i < 6; i++) assert_int_equal(found[i], expected[i]);
    json_decref(sources);
    eval_python_stop(&python);
}

/* An eval that fails half-way asks nothing: then the child must go without a word. */
static void test_python_unasked(void **state) {
    (void)state;
    struct eval_python python;
    FILE *said = tmpfile();
    int before = dup(STDERR_FILENO);
    assert_non_null(said);
    dup2(fileno(said), STDERR_FILENO);
    bool works = eval_python_start(&python);
    eval_python_stop(&python);
    dup2(before, STDERR_FILENO);
    close(before);
    if (!works) skip();
    assert_int_equal(lseek(fileno(said), 0, SEEK_END), 0);
    fclose(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_function_end), cmocka_unit_test(test_count_lines),    cmocka_unit_test(test_lines),
        cmocka_unit_test(test_defs),         cmocka_unit_test(test_draw),           cmocka_unit_test(test_f16),
        cmocka_unit_test(test_python),       cmocka_unit_test(test_python_unasked),
    };
    return cmocka_run_group_tests_name("eval", tests, NULL, NULL);
}
