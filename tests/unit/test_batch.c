/* What `run-batch` reads and remembers: lines at every border of a block, and the table of digests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "cmd/run_batch/digest.h"
#include "cmd/run_batch/lines.h"
#include "cmd/run_batch/output.h"

/* ---- lines ---- */

static FILE *file_of(const char *text, size_t size) {
    FILE *file = tmpfile();
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    assert_int_equal(fflush(file), 0);
    return file;
}

/* Text, where the next one begins, whether it has an end. */
static void assert_line(struct batch_lines *lines, const char *text, size_t size, int64_t next, bool has_end) {
    struct batch_line line;
    assert_int_equal(batch_lines_next(lines, &line, NULL), 1);
    assert_int_equal(line.size, size);
    assert_memory_equal(line.text, text, size);
    assert_int_equal(line.next, next);
    assert_int_equal(line.has_end, has_end);
    assert_false(line.is_too_long);
}

static void assert_end(struct batch_lines *lines) {
    struct batch_line line;
    for (int i = 0; i < 2; i++) assert_int_equal(batch_lines_next(lines, &line, NULL), 0);
}

static void test_lines(void **state) {
    (void)state;
    FILE *file = file_of("one\n\r\n\ntwo\r\nth\rree\0!", 20);
    struct batch_lines lines = {.fd = fileno(file), .path = "lines", .max_bytes = 100};
    for (int round = 0; round < 2; round++) {
        assert_int_equal(batch_lines_rewind(&lines, NULL), 0);
        assert_line(&lines, "one", 3, 4, true);
        assert_line(&lines, "", 0, 6, true);
        assert_line(&lines, "", 0, 7, true);
        assert_line(&lines, "two", 3, 12, true);
        assert_line(&lines, "th\rree\0!", 8, 20, false);
        assert_end(&lines);
    }
    batch_lines_free(&lines);
    fclose(file);
}

/* A line of `size` letters and one behind it, with a limit. */
static void check_long(size_t size, size_t most) {
    char *text = malloc(size + 5);
    assert_non_null(text);
    memset(text, 'x', size);
    memcpy(text + size, "\nend\n", 5);
    FILE *file = file_of(text, size + 5);
    struct batch_lines lines = {.fd = fileno(file), .path = "lines", .max_bytes = most};
    struct batch_line line;
    assert_int_equal(batch_lines_rewind(&lines, NULL), 0);
    assert_int_equal(batch_lines_next(&lines, &line, NULL), 1);
    assert_int_equal(line.is_too_long, size > most);
    assert_int_equal(line.size, size > most ? 0 : size);
    assert_memory_equal(line.text, text, line.size);
    assert_int_equal(line.next, size + 1);
    assert_line(&lines, "end", 3, (int64_t)size + 5, true);
    assert_end(&lines);
    assert_true(lines.capacity < 4 * (most + (1 << 16))); /* however long the line is */
    batch_lines_free(&lines);
    fclose(file);
    free(text);
}

static void test_long_lines(void **state) {
    (void)state;
    static const size_t BLOCK = 1 << 16;
    for (size_t i = 0; i < 12; i++) {
        check_long(BLOCK - 6 + i, 1 << 20);
        check_long(2 * BLOCK - 6 + i, 2 * BLOCK);
        check_long(20 * BLOCK - 6 + i, 10);
    }
}

static void test_unreadable(void **state) {
    (void)state;
    struct mo_error error = {0};
    struct batch_lines lines = {.fd = -1, .path = "nothing", .max_bytes = 10};
    struct batch_line line;
    assert_int_equal(batch_lines_next(&lines, &line, &error), MO_E_IO);
    assert_non_null(strstr(error.message, "nothing"));
    assert_int_equal(batch_lines_rewind(&lines, &error), MO_E_IO);
    batch_lines_free(&lines);
}

/* ---- digests ---- */

static struct batch_digest digest_of(int number) {
    struct batch_digest digest;
    assert_int_equal(batch_digest_make(&digest, "head", 4, &number, sizeof number, NULL), 0);
    return digest;
}

static void test_digests(void **state) {
    (void)state;
    struct batch_digest digest, again;
    char text[BATCH_DIGEST_DIGITS + 1];
    assert_int_equal(batch_digest_make(&digest, "a", 1, "bc", 2, NULL), 0);
    batch_digest_print(&digest, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223"); /* of SHA-256's "abc", as its standard has it */
    assert_int_equal(batch_digest_parse(&again, text), 0);
    assert_memory_equal(&again, &digest, sizeof digest);
    static const char *const WRONG[] = {"", "ba", "ba7816bf8f01cfea414140de5dae22230",
                                        "BA7816bf8f01cfea414140de5dae2223", "ba7816bf8f01cfea414140de5dae222 "};
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++)
        assert_int_equal(batch_digest_parse(&again, WRONG[i]), -1);
}

static void test_table(void **state) {
    (void)state;
    enum { N = 5000 }; /* it grows three times */
    struct batch_table table = {0};
    struct batch_digest digest = digest_of(0);
    assert_int_equal(batch_table_find(&table, &digest), -1);
    for (int i = 0; i < N; i++) {
        digest = digest_of(i);
        assert_int_equal(batch_table_find(&table, &digest), -1);
        assert_int_equal(batch_table_add(&table, &digest, i, NULL), 0);
    }
    for (int i = 0; i < N; i++) {
        digest = digest_of(i);
        assert_int_equal(batch_table_find(&table, &digest), i);
    }
    digest = digest_of(7);
    assert_int_equal(batch_table_add(&table, &digest, 70, NULL), 0);
    assert_int_equal(batch_table_find(&table, &digest), 70);
    assert_int_equal(table.n, N);
    batch_table_free(&table);
}

/* ---- the output ---- */

/* A file that came by the name while the answers were made stays as it is, unless it was to be replaced. */
static void test_name_taken(void **state) {
    (void)state;
    char folder[] = "/tmp/moebius-batch-XXXXXX", path[64], text[16] = "";
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/out", folder);
    for (int overwrites = 0; overwrites < 2; overwrites++) {
        struct batch_output output;
        struct batch_entry entries[2] = {{.at = -1}, {.at = -1}};
        struct batch_input input = {.entries = entries, .n = 2};
        struct mo_error error = {0};
        unlink(path);
        assert_int_equal(batch_output_open(&output, path, overwrites, &error), 0);
        assert_int_equal(batch_output_add(&output, &entries[1], "two\n", 4, &error), 0);
        assert_int_equal(batch_output_add(&output, &entries[0], "one\n", 4, &error), 0);
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        assert_true(fputs("theirs\n", file) >= 0 && fclose(file) == 0);
        assert_int_equal(batch_output_finish(&output, &input, &error), overwrites ? 0 : MO_E_IO);
        batch_output_close(&output);
        file = fopen(path, "r");
        assert_non_null(file);
        size_t n = fread(text, 1, sizeof text - 1, file);
        text[n] = 0;
        fclose(file);
        assert_string_equal(text, overwrites ? "one\ntwo\n" : "theirs\n");
        assert_int_equal(access(output.partial, F_OK), overwrites ? -1 : 0); /* no answer is lost */
        unlink(output.partial);
    }
    unlink(path);
    assert_int_equal(rmdir(folder), 0); /* nothing else is left */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),   cmocka_unit_test(test_long_lines), cmocka_unit_test(test_unreadable),
        cmocka_unit_test(test_digests), cmocka_unit_test(test_table),      cmocka_unit_test(test_name_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
