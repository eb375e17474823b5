/* The ground everything stands on: arenas, the thread pool, files, JSON with limits, error sentences. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/arena.h"
#include "base/build_id.h"
#include "base/file.h"
#include "base/group.h"
#include "base/json.h"
#include "base/pool.h"
#include "base/text.h"

enum { MANY = 1000 };

static void test_arena(void **state) {
    (void)state;
    struct arena *arena = arena_create();
    uint8_t *blocks[MANY];
    for (int i = 0; i < MANY; i++) {
        size_t n = (size_t)(i * 37 % 5000 + (i % 50 == 0 ? 200000 : 0));
        blocks[i] = arena_alloc(arena, n + 1);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % 64, 0);
        for (size_t k = 0; k <= n; k++) assert_int_equal(blocks[i][k], 0);
        memset(blocks[i], i % 251 + 1, n + 1);
    }
    for (int i = 0; i < MANY; i++) assert_int_equal(blocks[i][i * 37 % 5000], i % 251 + 1); /* none overlaps another */
    assert_null(arena_alloc_array(arena, SIZE_MAX / 2, 3));
    assert_null(arena_alloc(arena, SIZE_MAX - 10));
    assert_string_equal(arena_strndup(arena, "abcdef", 3), "abc");
    arena_destroy(arena);
}

struct tally {
    atomic_int times[MANY];
    atomic_int busy[8]; /* by worker: two tasks of one worker never run at once */
    atomic_int clashes;
    int n_threads;
};

static void count_task(void *context, int index, int worker) {
    struct tally *tally = context;
    if (worker >= tally->n_threads || atomic_fetch_add(&tally->busy[worker], 1) != 0)
        atomic_fetch_add(&tally->clashes, 1);
    atomic_fetch_add(&tally->times[index], 1);
    for (volatile int i = 0; i < index % 100; i++) {
    }
    atomic_fetch_sub(&tally->busy[worker], 1);
}

/* Every task once, also with more threads than processors, in jobs that follow each other without a pause. */
static void test_pool(void **state) {
    (void)state;
    int processors = pool_default_threads();
    for (int threads = 1; threads <= 8; threads++) {
        struct pool *pool;
        struct mo_error error;
        static struct tally tally;
        tally.n_threads = threads;
        assert_int_equal(pool_create(&pool, threads, &error), 0);
        assert_int_equal(pool_threads(pool), threads);
        pool_pin(pool, (enum affinity)(threads % 3));
        for (int job = 0; job < 300; job++) {
            int n = job * 31 % MANY;
            memset(tally.times, 0, sizeof tally.times);
            pool_run(pool, n, count_task, &tally);
            for (int i = 0; i < MANY; i++) assert_int_equal(tally.times[i], i < n);
            if (job % 100 == 99) usleep(2000); /* long enough to fall asleep */
        }
        assert_int_equal(tally.clashes, 0);
        pool_destroy(pool);
        assert_int_equal(pool_default_threads(), processors); /* the caller may be anywhere again */
    }
}

static void test_files(void **state) {
    (void)state;
    char folder[] = "/tmp/moebius-test-XXXXXX", file[64], link[64], missing[80];
    struct mo_error error = {0};
    char *text;
    size_t size;
    assert_non_null(mkdtemp(folder));
    snprintf(file, sizeof file, "%s/a", folder);
    snprintf(link, sizeof link, "%s/b", folder);
    snprintf(missing, sizeof missing, "%s/none/c", folder);
    assert_int_equal(file_write(file, "one", 3, &error), 0);
    assert_int_equal(symlink(file, link), 0);
    struct stat info;
    assert_int_equal(chmod(file, 0600), 0);
    assert_int_equal(file_write(link, "second", 6, &error), 0);
    assert_int_equal(stat(file, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(lstat(link, &info), 0);
    assert_true(S_ISLNK(info.st_mode)); /* the link is still one */
    assert_int_equal(file_read(file, 100, &text, &size, &error), 0);
    assert_int_equal(size, 6);
    assert_string_equal(text, "second");
    free(text);
    assert_int_equal(file_read(file, 5, &text, &size, &error), MO_E_LIMIT);
    assert_int_equal(file_write(missing, "x", 1, &error), MO_E_IO);
    assert_non_null(strstr(error.message, missing));
    struct file_map map;
    assert_int_equal(file_map_open(&map, folder, &error), MO_E_IO);
    assert_int_equal(file_map_open(&map, file, &error), 0);
    assert_memory_equal(map.data, "second", 6);
    file_map_close(&map);
    unlink(link);
    unlink(file);
    rmdir(folder);
}

/* A pipe that does not wait, to a reader that takes its time. */
static void test_write_all(void **state) {
    (void)state;
    enum { BYTES = 1 << 20 };
    static char out[BYTES], in[BYTES];
    int ends[2];
    for (int i = 0; i < BYTES; i++) out[i] = (char)(i * 7 + i / 256);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    pid_t child = fork();
    if (!child) {
        close(ends[0]);
        _exit(file_write_all(ends[1], out, BYTES) != 0);
    }
    close(ends[1]);
    usleep(50000); /* the pipe is full */
    ssize_t n = 0, got;
    while ((got = read(ends[0], in + n, BYTES - (size_t)n)) > 0) n += got;
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(n, BYTES);
    assert_memory_equal(in, out, BYTES);
    errno = 0;
    assert_int_equal(file_write_all(-1, out, 1), -1);
    assert_int_equal(errno, EBADF);
    file_sync_folder("a name");
    file_sync_folder("/no such folder/a name");
}

static void test_texts(void **state) {
    (void)state;
    char hex[9] = "********";
    assert_true(text_ends_with("a.gguf", ".gguf") && text_ends_with("x", "") && text_ends_with("", ""));
    assert_false(text_ends_with("gguf", ".gguf") || text_ends_with("a.gguf.x", ".gguf"));
    text_print_hex((const uint8_t[]){0x00, 0x7f, 0xa0, 0xff}, 4, hex);
    assert_string_equal(hex, "007fa0ff");
    text_print_hex(NULL, 0, hex);
    assert_string_equal(hex, "");
}

static void put_number(const char *folder, const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(file_write(path, text, strlen(text), NULL), 0);
}

/* Limits of control groups: what others in the group use is gone, pages of files are not. */
static void test_groups(void **state) {
    (void)state;
    char root[] = "/tmp/moebius-test-XXXXXX", inner[64], command[96];
    assert_non_null(mkdtemp(root));
    snprintf(inner, sizeof inner, "%s/a", root);
    mkdir(inner, 0777);
    assert_true(group_least_at(root, "/a\n", false, group_memory_left, 7) == 7);
    put_number(root, "memory.max", "max\n");
    put_number(root, "memory.current", "4900\n");
    put_number(inner, "memory.max", "1000\n");
    assert_true(group_least_at(root, "/a\n", false, group_memory_left, 5000) == 1000);
    assert_true(group_least_at(root, "/a\n", false, group_memory_limit, 5000) == 1000);
    assert_true(group_least_at(root, "", false, group_memory_limit, 5000) == 5000);
    put_number(inner, "memory.current", "700\n");
    put_number(inner, "memory.stat", "anon 1\ninactive_file 250\nactive_file 150\n");
    assert_true(group_least_at(root, "/a\n", false, group_memory_left, 5000) == 700);
    put_number(root, "memory.max", "800\n"); /* the group around it */
    put_number(root, "memory.current", "400\n");
    assert_true(group_least_at(root, "/a\n", false, group_memory_left, 5000) == 400);
    assert_true(group_least_at(root, "/not/here\n", false, group_memory_left, 5000) == 400);
    put_number(root, "memory.current", "900\n");
    assert_true(group_least_at(root, "", false, group_memory_left, 5000) == 0);
    put_number(root, "memory.limit_in_bytes", "600");
    put_number(root, "memory.usage_in_bytes", "100");
    assert_true(group_least_at(root, "/a", true, group_memory_left, 5000) == 500);
    assert_true(group_least_at(root, "/a", true, group_memory_limit, 5000) == 600);
    assert_true(group_least_at(root, "/a\n", false, group_processors, 64) == 64);
    put_number(root, "cpu.max", "max 100000\n");
    assert_true(group_least_at(root, "/a\n", false, group_processors, 64) == 64);
    put_number(inner, "cpu.max", "250000 100000\n");
    assert_true(group_least_at(root, "/a\n", false, group_processors, 64) == 2.5);
    put_number(root, "cpu.max", "100000 200000\n");
    assert_true(group_least_at(root, "/a\n", false, group_processors, 64) == 0.5);
    put_number(root, "cpu.cfs_quota_us", "-1\n");
    put_number(root, "cpu.cfs_period_us", "100000\n");
    assert_true(group_least_at(root, "", true, group_processors, 64) == 64);
    put_number(inner, "cpu.cfs_quota_us", "400000\n");
    put_number(inner, "cpu.cfs_period_us", "100000\n");
    assert_true(group_least_at(root, "/a\n", true, group_processors, 64) == 4);
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

/* A map whose file is cut short says so and ends the program, instead of a bare signal. */
static void test_cut_while_mapped(void **state) {
    (void)state;
    char path[] = "/tmp/moebius-test-XXXXXX", said[512] = "";
    int fd = mkstemp(path), pipes[2], status;
    struct mo_error error;
    assert_true(fd >= 0 && ftruncate(fd, 3 << 20) == 0 && pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        struct file_map map;
        dup2(pipes[1], STDERR_FILENO);
        if (file_map_open(&map, path, &error) || ftruncate(fd, 100)) _exit(9);
        _exit(((const volatile uint8_t *)map.data)[2 << 20] ? 8 : 7);
    }
    close(pipes[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(read(pipes[0], said, sizeof said - 1) > 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_non_null(strstr(said, path));
    assert_non_null(strstr(said, "cut short"));
    close(pipes[0]);
    close(fd);
    unlink(path);
}

/* The id that the linker wrote, if it did: what `readelf -n` shows. */
static void test_build_id(void **state) {
    (void)state;
    char id[BUILD_ID_BYTES], line[512], command[64];
    bool is_there = false, has_one = false;
    snprintf(command, sizeof command, "readelf -n /proc/%d/exe", (int)getpid());
    FILE *notes = popen(command, "r");
    assert_non_null(notes);
    build_id(id);
    while (fgets(line, sizeof line, notes)) {
        has_one |= strstr(line, "Build ID:") != NULL;
        is_there |= *id && strstr(line, id) != NULL;
    }
    assert_int_equal(pclose(notes), 0);
    assert_int_equal(is_there, has_one);
    assert_int_equal(strspn(id, "0123456789abcdef"), strlen(id));
}

static void test_json(void **state) {
    (void)state;
    struct mo_error error = {0};
    json_t *root;
    int number = 7;
    bool flag = true;
    const char *good = "{\"n\": 3, \"s\": \"x\", \"f\": null, \"big\": 1e300}", *twice = "{\"n\": 1, \"n\": 2}";
    assert_true(json_parse(twice, strlen(twice), "here", &root, &error) < 0);
    assert_non_null(strstr(error.message, "here"));
    assert_true(json_parse("{\"a\": ", 6, "here", &root, &error) < 0);
    assert_int_equal(json_parse(good, strlen(good), "here", &root, &error), 0);
    assert_int_equal(json_get_int(root, "n", JSON_REQUIRED_KEY, 0, 5, "here", &number, &error), 0);
    assert_int_equal(number, 3);
    assert_int_equal(json_get_int(root, "none", JSON_OPTIONAL_KEY, 0, 5, "here", &number, &error), 0);
    assert_int_equal(number, 3);
    assert_int_equal(json_get_bool(root, "f", JSON_OPTIONAL_KEY, "here", &flag, &error), 0);
    assert_true(flag);
    assert_int_equal(json_get_int(root, "n", JSON_REQUIRED_KEY, 4, 5, "here", &number, &error), MO_E_INVALID);
    assert_int_equal(json_get_int(root, "s", JSON_REQUIRED_KEY, 0, 5, "here", &number, &error), MO_E_INVALID);
    assert_int_equal(json_get_int(root, "big", JSON_REQUIRED_KEY, 0, 5, "here", &number, &error), MO_E_INVALID);
    assert_int_equal(json_get_int(root, "none", JSON_REQUIRED_KEY, 0, 5, "here", &number, &error), MO_E_NOT_FOUND);
    assert_non_null(strstr(error.message, "\"none\""));
    json_decref(root);
}

static void test_errors(void **state) {
    (void)state;
    struct mo_error error;
    char longer[3000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_int_equal(mo_error_set(&error, MO_E_LIMIT, "%s", longer), MO_E_LIMIT);
    assert_int_equal(strlen(error.message), sizeof error.message - 1);
    mo_error_set(&error, MO_E_CORRUPT, "inner");
    assert_int_equal(mo_error_prefix(&error, "outer %d", 1), MO_E_CORRUPT);
    assert_string_equal(error.message, "outer 1: inner");
    assert_int_equal(mo_error_set(NULL, MO_E_IO, "nobody asks"), MO_E_IO);
}

/* Whatever a file or a tensor is called, a message is UTF-8 that a terminal only shows; cut, it ends with a whole character. */
static void test_messages_are_clean(void **state) {
    (void)state;
    struct mo_error error;
    char longer[2 * sizeof error.message];
    mo_error_set(&error, MO_E_IO, "%s",
                 "a\xff"
                 "b\x1b[31m\n\x7f\xc2\x9b \xe2\x82\xac caf\xc3");
    assert_string_equal(error.message, "a?b?[31m????"
                                       " \xe2\x82\xac caf");
    mo_error_prefix(&error, "%s", "\x07\xc0\xaf");
    assert_string_equal(error.message, "???: a?b?[31m????"
                                       " \xe2\x82\xac caf");
    for (size_t i = 0; i + 3 < sizeof longer; i += 3) memcpy(longer + i, "\xe2\x82\xac", 4);
    mo_error_set(&error, MO_E_IO, "%s", longer);
    assert_int_equal(strlen(error.message), (sizeof error.message - 1) / 3 * 3);
}

static void test_json_output(void **state) {
    (void)state;
    struct mo_error error;
    json_t *name = json_lossy("mod\xff"
                              "el \xc3\xa9 \xe2\x82"),
           *none = json_finite(1.0 / 0.0), *one = json_finite(1);
    assert_string_equal(json_string_value(name), "mod\xef\xbf\xbd"
                                                 "el \xc3\xa9 ");
    assert_true(json_is_null(none) && json_is_real(one));
    assert_int_equal(json_print(NULL, &error), MO_E_NO_MEMORY);
    json_decref(name);
    json_decref(none);
    json_decref(one);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_write_all),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_cut_while_mapped),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_build_id),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_messages_are_clean),
        cmocka_unit_test(test_json_output),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
