/* Reading parts of files with several threads: every byte in its place whatever the system's read does, what is needed now before what is
 * predicted, and a sentence for everything that fails. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "expert/stream.h"
#include "random_below.h"

enum { FILE_BYTES = (5 << 20) + 1234, MAX_READS = 16, MAX_PARTS = 9 };

static char g_path[64], g_other_path[64]; /* two files; the second one's bytes go on where the first one's end */

static uint8_t byte_at(int64_t at) {
    uint64_t x = (uint64_t)at * 0x9e3779b97f4a7c15u;
    return (uint8_t)(x >> 56);
}

static void make_file(char path[64], const char *folder, int64_t first) {
    uint8_t *data = malloc(FILE_BYTES);
    for (int i = 0; i < FILE_BYTES; i++) data[i] = byte_at(first + i);
    snprintf(path, sizeof g_path, "%s/moebius-stream-XXXXXX", folder);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, FILE_BYTES), FILE_BYTES);
    close(fd);
    free(data);
}

static int setup(void **state) {
    (void)state;
    make_file(g_path, "/tmp", 0);
    make_file(g_other_path, "/tmp", FILE_BYTES);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return unlink(g_path) | unlink(g_other_path);
}

static struct stream *open_stream(int threads, stream_pread *read) {
    struct stream *stream;
    struct mo_error error;
    const char *paths[] = {g_path, g_other_path};
    struct stream_options options = {.paths = paths, .n_paths = 2, .threads = threads, .pread = read};
    assert_int_equal(stream_open(&stream, &options, &error), 0);
    return stream;
}

/* Of so many parts, which are all still zero. */
static struct stream_part *make_parts(int n) {
    return calloc((size_t)n, sizeof(struct stream_part));
}

/* Gives the parts places one behind the other, in memory that is just large enough. */
static struct stream_read make_read_of(struct stream_part *parts, int n) {
    size_t size = 0;
    for (int i = 0; i < n; i++) {
        parts[i].at = size;
        size += stream_span(parts[i].offset, parts[i].bytes);
    }
    struct stream_read read = {.parts = parts, .n_parts = n, .layer = 3, .expert = 7};
    read.to = aligned_alloc(STREAM_ALIGN, size);
    memset(read.to, 0xee, size);
    return read;
}

static struct stream_read make_read(int64_t offset, size_t bytes) {
    struct stream_part *part = make_parts(1);
    *part = (struct stream_part){.offset = offset, .bytes = bytes};
    return make_read_of(part, 1);
}

static void free_read(struct stream_read *read) {
    free(read->to);
    free((void *)read->parts);
}

static void check_bytes(const struct stream_read *read) {
    for (int k = 0; k < read->n_parts; k++) {
        const struct stream_part *part = &read->parts[k];
        const uint8_t *data = stream_part_data(part, read->to);
        int64_t first = part->offset + (int64_t)part->file * FILE_BYTES;
        for (size_t i = 0; i < part->bytes; i++) {
            if (data[i] != byte_at(first + (int64_t)i)) fail_msg("part %d, byte %zu of %zu", k, i, part->bytes);
        }
    }
}

static void check_one(struct stream *stream, int64_t offset, size_t bytes) {
    struct mo_error error = {0};
    struct stream_read read = make_read(offset, bytes);
    stream_begin(stream, &read, STREAM_NOW);
    assert_int_equal(stream_wait(stream, &read, &error), 0);
    assert_true(stream_is_done(stream, &read));
    check_bytes(&read);
    free_read(&read);
}

/* Starts and ends beside, at and across the borders of blocks, pieces and the file. */
static void check_sizes(struct stream *stream) {
    static const int64_t offsets[] = {0, 1, 4095, 4096, 1048575, 1048576, 1050000, FILE_BYTES - 5000, FILE_BYTES - 1};
    static const size_t sizes[] = {1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, (3 << 20) + 77, FILE_BYTES};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
            int64_t left = FILE_BYTES - offsets[i];
            check_one(stream, offsets[i], (int64_t)sizes[k] < left ? sizes[k] : (size_t)left);
        }
    }
}

static void test_sizes(void **state) {
    (void)state;
    for (int threads = 1; threads <= 8; threads += 7) {
        struct stream *stream = open_stream(threads, NULL);
        check_sizes(stream);
        stream_close(stream);
    }
}

/* ---- parts ---- */

/* Anywhere in two files: within a block, at its border, over several pieces, up to the file's end. */
static struct stream_part random_part(void) {
    static const int sizes[] = {1, 4096, 5000, 300000, STREAM_PIECE, STREAM_PIECE + 4097};
    size_t bytes = (size_t)sizes[random_below(6)];
    int last = FILE_BYTES - (int)bytes;
    int64_t offset = random_below(4) ? random_below(last) : random_below(2) ? last : last / 4096 * 4096;
    return (struct stream_part){.file = random_below(2), .offset = offset, .bytes = bytes};
}

static void test_parts(void **state) {
    (void)state;
    struct stream_read reads[MAX_READS];
    struct stream *stream = open_stream(8, NULL);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < MAX_READS; i++) {
            int n = 1 + random_below(MAX_PARTS);
            struct stream_part *parts = make_parts(n);
            for (int k = 0; k < n; k++) parts[k] = random_part();
            reads[i] = make_read_of(parts, n);
            stream_begin(stream, &reads[i], i % 2 ? STREAM_NOW : STREAM_PREDICTED);
        }
        for (int i = 0; i < MAX_READS; i++) {
            assert_int_equal(stream_wait(stream, &reads[i], NULL), 0);
            check_bytes(&reads[i]);
            free_read(&reads[i]);
        }
    }
    stream_close(stream);
}

/* One of three parts is gone: the read fails, and says where. */
static void test_part_cut_off(void **state) {
    (void)state;
    struct mo_error error = {0};
    struct stream_part *parts = make_parts(3);
    parts[0] = (struct stream_part){.file = 0, .offset = 77, .bytes = 3 << 20};
    parts[1] = (struct stream_part){.file = 1, .offset = FILE_BYTES - 5000, .bytes = 4000};
    parts[2] = (struct stream_part){.file = 1, .offset = 99, .bytes = 5000};
    struct stream *stream = open_stream(4, NULL);
    struct stream_read read = make_read_of(parts, 3);
    assert_int_equal(truncate(g_other_path, FILE_BYTES - 4000), 0);
    stream_begin(stream, &read, STREAM_NOW);
    assert_int_equal(stream_wait(stream, &read, &error), MO_E_IO);
    assert_non_null(strstr(error.message, g_other_path));
    assert_non_null(strstr(error.message, "layer 3, expert 7: expected "));
    read.n_parts = 1;
    stream_begin(stream, &read, STREAM_NOW);
    assert_int_equal(stream_wait(stream, &read, &error), 0);
    check_bytes(&read);
    free_read(&read);
    stream_close(stream);
}

/* ---- a system that reads otherwise ---- */

static bool is_direct(int file) {
    return fcntl(file, F_GETFL) & O_DIRECT;
}

static ssize_t pread_without_direct(int file, void *to, size_t n, off_t at) {
    if (!is_direct(file)) return pread(file, to, n, at);
    errno = EINVAL;
    return -1;
}

static ssize_t pread_in_crumbs(int file, void *to, size_t n, off_t at) {
    static atomic_int turn;
    if (atomic_fetch_add(&turn, 1) % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    return pread(file, to, n < 8192 ? n : 8192, at);
}

static void test_other_systems(void **state) {
    (void)state;
    struct stream_stats stats;
    struct stream *stream = open_stream(4, pread_without_direct);
    check_sizes(stream);
    stream_stats_get(stream, &stats);
    assert_false(stats.is_direct);
    stream_close(stream);
    stream = open_stream(4, pread_in_crumbs);
    check_sizes(stream);
    stream_close(stream);
}

/* A file system that may not know O_DIRECT at all. */
static void test_memory_file(void **state) {
    (void)state;
    char disk[sizeof g_path];
    if (access("/dev/shm", W_OK)) {
        print_message("left out: no /dev/shm\n");
        return;
    }
    memcpy(disk, g_path, sizeof disk);
    make_file(g_path, "/dev/shm", 0);
    struct stream *stream = open_stream(4, NULL);
    check_sizes(stream);
    stream_close(stream);
    unlink(g_path);
    memcpy(g_path, disk, sizeof disk);
}

/* ---- failures ---- */

static _Atomic int64_t g_bad_at = -1;

static ssize_t pread_with_bad_block(int file, void *to, size_t n, off_t at) {
    int64_t bad = atomic_load(&g_bad_at);
    if (bad < at || bad >= at + (off_t)n) return pread(file, to, n, at);
    errno = EIO;
    return -1;
}

static void expect_failure(struct stream *stream, int64_t offset, size_t bytes, const char *words) {
    struct mo_error error = {0};
    struct stream_read read = make_read(offset, bytes);
    stream_begin(stream, &read, STREAM_NOW);
    assert_int_equal(stream_wait(stream, &read, &error), MO_E_IO);
    assert_non_null(strstr(error.message, g_path));
    assert_non_null(strstr(error.message, "layer 3, expert 7"));
    if (!strstr(error.message, words)) fail_msg("%s", error.message);
    free_read(&read);
}

static void test_bad_block(void **state) {
    (void)state;
    struct stream *stream = open_stream(4, pread_with_bad_block);
    for (int64_t bad = 100; bad < 5 << 20; bad += 1 << 20) {
        atomic_store(&g_bad_at, bad);
        expect_failure(stream, 50, FILE_BYTES - 60, strerror(EIO));
        check_one(stream, bad / STREAM_PIECE * STREAM_PIECE + STREAM_PIECE, 10); /* the others are not harmed */
    }
    atomic_store(&g_bad_at, -1);
    check_one(stream, 50, FILE_BYTES - 60);
    stream_close(stream);
}

static void test_cut_file(void **state) {
    (void)state;
    struct stream *stream = open_stream(4, NULL);
    check_one(stream, FILE_BYTES - 100, 100);
    assert_int_equal(truncate(g_path, FILE_BYTES - 1), 0);
    check_one(stream, 0, FILE_BYTES - 1);
    expect_failure(stream, FILE_BYTES - 100, 100, "found ");
    expect_failure(stream, 0, FILE_BYTES, "expected ");
    assert_int_equal(truncate(g_path, 1 << 20), 0);
    expect_failure(stream, 3 << 20, 100, "found 0 ");
    stream_close(stream);
}

static void test_no_file(void **state) {
    (void)state;
    struct stream *stream;
    struct mo_error error;
    const char *paths[] = {"/dev/null", "/nowhere/at/all"};
    struct stream_options options = {.paths = paths, .n_paths = 2};
    assert_int_equal(stream_open(&stream, &options, &error), MO_E_IO);
    assert_non_null(strstr(error.message, paths[1]));
}

/* ---- order ---- */

static sem_t g_may_read;
static int64_t g_order[64];
static atomic_int g_n_order, g_n_begun;

/* One at a time, when the test says so. */
static ssize_t pread_when_told(int file, void *to, size_t n, off_t at) {
    atomic_fetch_add(&g_n_begun, 1);
    sem_wait(&g_may_read);
    g_order[atomic_fetch_add(&g_n_order, 1)] = at;
    return pread(file, to, n, at);
}

static void begin_blocks(struct stream *stream, struct stream_read *reads, int n, enum stream_need need) {
    for (int i = 0; i < n; i++) stream_begin(stream, &reads[i], need);
}

static void tell_to_read(int n) {
    for (int i = 0; i < n; i++) sem_post(&g_may_read);
}

static void wait_for(atomic_int *count, int n) {
    while (atomic_load(count) < n) usleep(1000);
}

static void start_to_count(void) {
    atomic_store(&g_n_order, 0);
    atomic_store(&g_n_begun, 0);
    sem_init(&g_may_read, 0, 0);
}

/* The first read is with the thread when the others arrive. */
static void test_needed_before_predicted(void **state) {
    (void)state;
    struct mo_error error;
    struct stream_read reads[6];
    start_to_count();
    struct stream *stream = open_stream(1, pread_when_told);
    for (int i = 0; i < 6; i++) reads[i] = make_read(i * 4096, 4096);
    stream_begin(stream, &reads[0], STREAM_PREDICTED);
    wait_for(&g_n_begun, 1); /* or it may be overtaken: another order, equally right but for this test */
    begin_blocks(stream, reads + 1, 3, STREAM_PREDICTED);
    begin_blocks(stream, reads + 4, 2, STREAM_NOW);
    stream_hurry(stream, &reads[2]); /* behind those that were needed before */
    stream_drop(stream, &reads[3]);
    tell_to_read(5);
    static const int expected[] = {0, 4, 5, 2, 1};
    wait_for(&g_n_order, 5);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(stream_wait(stream, &reads[expected[i]], &error), 0);
        assert_int_equal(g_order[i], expected[i] * 4096);
    }
    assert_true(stream_is_done(stream, &reads[3]));
    assert_int_equal(stream_wait(stream, &reads[3], &error), MO_E_CANCELLED);
    assert_int_equal(atomic_load(&g_n_order), 5);
    stream_drop(stream, &reads[1]); /* too late: it is there */
    assert_int_equal(stream_wait(stream, &reads[1], &error), 0);
    stream_close(stream);
    for (int i = 0; i < 6; i++) free_read(&reads[i]);
}

/* Dropped with one piece on its way: it is done when that has come, and no other is read. */
static void test_drop_half_way(void **state) {
    (void)state;
    struct mo_error error;
    start_to_count();
    struct stream *stream = open_stream(1, pread_when_told);
    struct stream_read read = make_read(0, 3 << 20);
    stream_begin(stream, &read, STREAM_PREDICTED);
    tell_to_read(1);
    wait_for(&g_n_begun, 2); /* the thread is in its second piece */
    stream_drop(stream, &read);
    assert_false(stream_is_done(stream, &read));
    tell_to_read(1);
    assert_int_equal(stream_wait(stream, &read, &error), MO_E_CANCELLED);
    assert_int_equal(atomic_load(&g_n_order), 2);
    stream_close(stream);
    free_read(&read);
}

/* Closing does not wait for what nobody has begun. */
static void test_close_early(void **state) {
    (void)state;
    struct stream_read reads[MAX_READS];
    struct stream *stream = open_stream(2, NULL);
    for (int i = 0; i < MAX_READS; i++) reads[i] = make_read(i * 300000, 250000);
    begin_blocks(stream, reads, MAX_READS, STREAM_PREDICTED);
    stream_close(stream);
    for (int i = 0; i < MAX_READS; i++) free_read(&reads[i]);
}

static void test_many_at_once(void **state) {
    (void)state;
    struct mo_error error;
    struct stream_stats stats;
    struct stream_read reads[MAX_READS];
    struct stream *stream = open_stream(8, NULL);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < MAX_READS; i++) {
            reads[i] =
                make_read((int64_t)((round * 7919 + i * 104729) % (FILE_BYTES - 1200000)), (size_t)(1 + i * 77777));
            stream_begin(stream, &reads[i], i % 2 ? STREAM_NOW : STREAM_PREDICTED);
        }
        for (int i = MAX_READS - 1; i >= 0; i--) {
            if (i % 4 == 2) stream_hurry(stream, &reads[i]);
            assert_int_equal(stream_wait(stream, &reads[i], &error), 0);
            check_bytes(&reads[i]);
            free_read(&reads[i]);
        }
    }
    stream_stats_get(stream, &stats);
    assert_true(stats.bytes > (20 * 8 * 600000) && stats.busy_s > 0);
    stream_close(stream);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_parts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_part_cut_off, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_systems, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_block, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut_file, setup, teardown),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test_setup_teardown(test_needed_before_predicted, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drop_half_way, setup, teardown),
        cmocka_unit_test_setup_teardown(test_close_early, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_at_once, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
