/* The prefix cache on disk when the machine misbehaves: a disk that hangs, errors that pass, a file system that counts late, files
 * that nobody expects. What the cache asks of the C library is answered here. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"
#include "cache/disk_priv.h"

enum { BYTES = 3000, BLOCK = 4096, CHAIN = 10, MB = 1 << 20 };

/* ---- the C library ---- */

static struct {
    int read_error, sync_error; /* errno; 0: as ever */
    int writes;                 /* so many more do what they should, then none writes anything; 0: as ever */
    size_t most;                /* bytes that one read or write moves; 0: as ever */
    bool hangs;                 /* fdatasync waits */
    sem_t hanging, go_on;
    bool has_space; /* fstatvfs says: */
    struct statvfs space;
    int space_error;
} world;

/* Of the first part, every other time after a signal. */
static ssize_t move_some(long call, int fd, const struct iovec *parts, int n) {
    static bool interrupted;
    struct iovec part = parts[0];
    if (!world.most) return syscall(call, fd, parts, n);
    interrupted = !interrupted;
    errno = EINTR;
    if (interrupted) return -1;
    if (part.iov_len > world.most) part.iov_len = world.most;
    return syscall(call, fd, &part, 1);
}

ssize_t readv(int fd, const struct iovec *parts, int n) {
    if (!world.read_error) return move_some(SYS_readv, fd, parts, n);
    errno = world.read_error;
    return -1;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (world.writes && --world.writes == 0) return world.writes++;
    return move_some(SYS_writev, fd, parts, n);
}

int fdatasync(int fd) {
    if (world.hangs) {
        sem_post(&world.hanging);
        sem_wait(&world.go_on);
    }
    if (!world.sync_error) return (int)syscall(SYS_fdatasync, fd);
    errno = world.sync_error;
    return -1;
}

int fstatvfs(int fd, struct statvfs *status) {
    int (*real)(int, struct statvfs *);
    *(void **)&real = dlsym(RTLD_NEXT, "fstatvfs");
    errno = world.space_error;
    if (world.space_error) return -1;
    if (!world.has_space) return real(fd, status);
    *status = world.space;
    return 0;
}

/* ---- a folder and a text ---- */

static char g_folder[64];
static int32_t g_tokens[2][CHAIN * PAGE_TOKENS_MAX];
static struct page_address g_addresses[2][CHAIN + 1];

static struct disk_options options_of(double limit_bytes) {
    return (struct disk_options){.folder = g_folder, .limit_bytes = limit_bytes, .page_bytes = BYTES};
}

static int make(void **state) {
    const struct page_address key = {{0}};
    (void)state;
    log_set_level(LOG_QUIET);
    memset(&world, 0, sizeof world);
    sem_init(&world.hanging, 0, 0);
    sem_init(&world.go_on, 0, 0);
    for (int text = 0; text < 2; text++) {
        for (int i = 0; i < CHAIN * PAGE_TOKENS_MAX; i++) g_tokens[text][i] = i * 7 + text;
        g_addresses[text][0] = page_address_root(&key, 0);
        for (int i = 0; i < CHAIN; i++) {
            g_addresses[text][i + 1] = page_address_next(&g_addresses[text][i], g_tokens[text] + i * PAGE_TOKENS_MAX);
        }
    }
    strcpy(g_folder, "/tmp/moebius-faults-XXXXXX");
    return mkdtemp(g_folder) ? 0 : -1;
}

static int clear(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", g_folder);
    return system(command);
}

static struct disk *disk_of(double limit_bytes) {
    struct disk_options options = options_of(limit_bytes);
    struct disk *disk;
    struct mo_error error = {0};
    if (disk_open(&disk, &options, &error)) fail_msg("%s", error.message);
    return disk;
}

static void put(struct disk *disk, int text, int page) {
    struct page_id id = {
        .parent = g_addresses[text][page], .address = g_addresses[text][page + 1], .depth = (uint32_t)page};
    uint8_t *to = disk_put_begin(disk);
    assert_non_null(to);
    memcpy(id.tokens, g_tokens[text] + page * PAGE_TOKENS_MAX, sizeof id.tokens);
    memset(to, 10 * text + page, BYTES);
    disk_put_end(disk, &id);
}

static void write_pages(struct disk *disk, int text, int n) {
    for (int i = 0; i < n; i++) {
        put(disk, text, i);
        while (disk_work(disk)) {
        }
    }
}

static int find(struct disk *disk, int text) {
    return disk_find(disk, g_addresses[text] + 1, CHAIN);
}

static int read_pages(struct disk *disk, int text, int n) {
    struct disk_load *load = disk_load_begin(disk, g_addresses[text] + 1, g_tokens[text], 0, 0, n);
    int came = 0;
    assert_non_null(load);
    while (!disk_load_ended(load)) {
        const uint8_t *page = disk_load_page(load);
        if (!page) assert_true(disk_work(disk));
        if (!page) continue;
        assert_int_equal(page[BYTES - 1], 10 * text + came++);
        disk_load_take(load);
    }
    disk_load_end(load);
    return came;
}

static struct disk_stats stats_of(struct disk *disk) {
    struct disk_stats stats;
    disk_stats_get(disk, &stats);
    return stats;
}

/* Waits for another thread, however long it takes on a busy machine. */
static void until_found(struct disk *disk, int n) {
    double end_s = clock_now_s() + 60;
    while (find(disk, 0) < n) {
        if (clock_now_s() > end_s) fail_msg("only %d of %d pages were found", find(disk, 0), n);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void count_calls(void *context) {
    atomic_fetch_add((atomic_int *)context, 1);
}

/* ---- reading ---- */

static void expect_back(struct disk *disk) {
    struct mo_error error;
    assert_int_equal(stats_of(disk).refused, 0);
    assert_int_equal(disk_list(disk, &error), 0);
    assert_int_equal(find(disk, 0), CHAIN);
    assert_int_equal(read_pages(disk, 0, CHAIN), CHAIN);
    disk_close(disk);
}

/* A process that may open no more files has good files all the same. */
static void test_no_more_files(void **state) {
    (void)state;
    struct rlimit limit, none;
    struct disk *disk = disk_of(MB);
    write_pages(disk, 0, CHAIN);
    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    int came = read_pages(disk, 0, CHAIN);
    setrlimit(RLIMIT_NOFILE, &limit);
    assert_int_equal(came, 0);
    expect_back(disk);
}

static void test_an_error_that_passes(void **state) {
    (void)state;
    struct disk *disk = disk_of(MB);
    write_pages(disk, 0, CHAIN);
    world.read_error = EIO;
    assert_int_equal(read_pages(disk, 0, CHAIN), 0);
    world.read_error = 0;
    expect_back(disk);
}

/* A disk that was slow is tried again later. */
static void test_slow_once(void **state) {
    (void)state;
    struct disk *disk = disk_of(MB);
    assert_true(disk_load_s(disk, 1) == 0);
    disk->page_s = 100;
    disk->page_at_s = clock_now_s();
    assert_true(disk_load_s(disk, 1) > 1);
    disk->page_at_s -= 1200;
    assert_true(disk_load_s(disk, 1) < 0.001);
    disk_close(disk);
}

/* ---- writing ---- */

/* Removed files that the file system still counts take no others with them. */
static void test_space_that_is_counted_late(void **state) {
    (void)state;
    struct disk *disk = disk_of(MB);
    write_pages(disk, 0, CHAIN);
    world.has_space = true;
    world.space = (struct statvfs){.f_frsize = BLOCK, .f_blocks = 1000, .f_bavail = 50};
    write_pages(disk, 1, 1);
    assert_int_equal(find(disk, 1), 1);
    assert_int_equal(find(disk, 0), CHAIN - 1);
    disk_close(disk);
}

static void test_space_that_nobody_knows(void **state) {
    (void)state;
    struct disk *disk = disk_of(MB);
    write_pages(disk, 0, CHAIN);
    world.space_error = EIO;
    write_pages(disk, 1, 1);
    world.space_error = 0;
    world.has_space = true; /* of nothing: some file systems say so */
    write_pages(disk, 1, 2);
    assert_int_equal(find(disk, 0), CHAIN);
    assert_int_equal(find(disk, 1), 2);
    disk_close(disk);
}

/* A few bytes at a time, with signals between: the same files. */
static void test_little_by_little(void **state) {
    (void)state;
    struct disk *disk = disk_of(MB);
    world.most = 333;
    write_pages(disk, 0, CHAIN);
    assert_int_equal(read_pages(disk, 0, CHAIN), CHAIN);
    disk_close(disk);
}

static void test_a_write_that_writes_nothing(void **state) {
    (void)state;
    struct disk *disk = disk_of(MB);
    world.writes = 1;
    alarm(60);
    write_pages(disk, 0, 1);
    alarm(0);
    assert_int_equal(find(disk, 0), 0);
    assert_int_equal(stats_of(disk).forgotten, 1);
    disk_close(disk);
}

/* A limit below one page is refused, and takes nobody else's pages. */
static void test_a_limit_without_a_page(void **state) {
    (void)state;
    struct disk_options options = options_of(BLOCK - 1);
    struct disk *disk = disk_of(MB);
    struct mo_error error;
    write_pages(disk, 0, CHAIN);
    disk_close(disk);
    assert_int_equal(disk_open(&disk, &options, &error), MO_E_LIMIT);
    assert_non_null(strstr(error.message, "a page takes 4.0 KiB"));
    disk = disk_of(MB);
    assert_int_equal(find(disk, 0), CHAIN);
    disk_close(disk);
}

/* After an error nobody waits for room: there is plenty, and nothing is taken. */
static void test_no_waiting_after_an_error(void **state) {
    (void)state;
    struct disk *disk = disk_of(MB);
    assert_true(disk_put_wait(disk, 0));
    world.sync_error = EIO;
    write_pages(disk, 0, 1);
    assert_null(disk_put_begin(disk));
    assert_false(disk_put_wait(disk, 0));
    disk_close(disk);
}

/* ---- the folder ---- */

/* Names of ours that are no files: opening the cache neither waits for them nor follows them. */
static void test_strange_leftovers(void **state) {
    (void)state;
    char path[3][128];
    struct stat status;
    for (int i = 0; i < 3; i++) snprintf(path[i], sizeof path[i], "%s/new-%d-0.tmp", g_folder, i);
    assert_int_equal(mkfifo(path[0], 0600), 0);
    assert_int_equal(mkdir(path[1], 0700), 0);
    assert_int_equal(symlink(path[1], path[2]), 0);
    alarm(60);
    disk_close(disk_of(MB));
    alarm(0);
    assert_int_equal(stat(path[2], &status), 0);
}

/* A file of the far future does not overflow, and counts as used now. */
static void test_any_year(void **state) {
    (void)state;
    char name[PAGE_NAME_MAX], path[256];
    struct disk *disk = disk_of(MB);
    write_pages(disk, 0, 1);
    write_pages(disk, 1, 1);
    disk_close(disk);
    page_name_write(&g_addresses[0][1], 0, name);
    snprintf(path, sizeof path, "%s/%s", g_folder, name);
    const struct timespec never[2] = {{.tv_sec = 15000000000}, {.tv_sec = 15000000000}};
    assert_int_equal(utimensat(AT_FDCWD, path, never, 0), 0);
    disk = disk_of(BLOCK);
    assert_int_equal(find(disk, 0), 1);
    assert_int_equal(find(disk, 1), 0);
    assert_true(disk->index.entries[disk->index.newest].used_ns <= disk_now_ns());
    disk_close(disk);
}

/* What another server has written is found by one that has nothing to do. */
static void test_found_while_idle(void **state) {
    (void)state;
    struct mo_error error;
    atomic_int calls = 0;
    struct disk *idle = disk_of(MB), *other = disk_of(MB);
    write_pages(other, 0, CHAIN);
    disk_close(other);
    assert_int_equal(find(idle, 0), 0);
    idle->next_list_s = clock_now_s();
    assert_int_equal(disk_start(idle, count_calls, &calls, &error), 0);
    until_found(idle, CHAIN);
    disk_close(idle);
}

/* ---- a disk that hangs ---- */

/* Nobody waits for it, neither who asks how long it takes nor who ends the program; and it may come back. */
static void test_hanging(void **state) {
    (void)state;
    static struct disk *disk; /* its memory stays, and is found */
    struct mo_error error;
    atomic_int calls = 0;
    disk = disk_of(MB);
    world.hangs = true;
    assert_int_equal(disk_start(disk, count_calls, &calls, &error), 0);
    assert_true(disk_load_s(disk, 1) < 60);
    put(disk, 0, 0);
    while (sem_wait(&world.hanging)) {
    }
    double before_s = disk_load_s(disk, 1);
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_true(disk_load_s(disk, 1) >= before_s + 0.01);
    disk->patience_s = 0.01;
    disk_stop(disk);
    disk_close(disk);
    world.hangs = false;
    sem_post(&world.go_on);
    until_found(disk, 1); /* the thread is back, and still has what it needs */
    assert_int_equal(atomic_load(&calls), 0);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, make, clear)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(test_no_more_files),
        WITH_FOLDER(test_an_error_that_passes),
        WITH_FOLDER(test_slow_once),
        WITH_FOLDER(test_space_that_is_counted_late),
        WITH_FOLDER(test_space_that_nobody_knows),
        WITH_FOLDER(test_no_waiting_after_an_error),
        WITH_FOLDER(test_little_by_little),
        WITH_FOLDER(test_a_write_that_writes_nothing),
        WITH_FOLDER(test_a_limit_without_a_page),
        WITH_FOLDER(test_strange_leftovers),
        WITH_FOLDER(test_any_year),
        WITH_FOLDER(test_found_while_idle),
        WITH_FOLDER(test_hanging),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
