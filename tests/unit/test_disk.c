/* The prefix cache on disk: what it gives back is what it was given, or nothing; whatever happens to its files, its process or
 * its disk. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/log.h"
#include "cache/disk_priv.h"

enum { BYTES = 3000, FILE_BYTES = PAGE_HEADER_BYTES + BYTES, BLOCK = 4096, CHAIN = 40, MB = 1 << 20 };

static char g_folder[64];

static int folder_make(void **state) {
    (void)state;
    log_set_level(LOG_QUIET);
    strcpy(g_folder, "/tmp/moebius-disk-XXXXXX");
    return mkdtemp(g_folder) ? 0 : -1;
}

static void path_of(const char *name, char path[512]) {
    snprintf(path, 512, "%s/%s", g_folder, name);
}

/* Calls `visit` for every file; returns how many there are. */
static int each_file(void (*visit)(const char *path)) {
    DIR *listing = opendir(g_folder);
    int n = 0;
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        char path[512];
        if (entry->d_name[0] == '.') continue;
        path_of(entry->d_name, path);
        if (visit) visit(path);
        n++;
    }
    if (listing) closedir(listing);
    return n;
}

static void remove_file(const char *path) {
    if (unlink(path)) fail_msg("%s", path);
}

static int folder_remove(void **state) {
    (void)state;
    each_file(remove_file);
    return rmdir(g_folder);
}

static uint32_t draw(void) {
    static uint32_t x = 12345;
    x ^= x << 13;
    x ^= x >> 17;
    return x ^= x << 5;
}

static struct disk_options options_of(double limit_bytes) {
    struct disk_options options = {
        .folder = g_folder, .limit_bytes = limit_bytes, .page_bytes = BYTES, .no_sync = true};
    memset(options.key.bytes, 7, sizeof options.key.bytes);
    return options;
}

static struct disk *disk_of(struct disk_options options) {
    struct disk *disk;
    struct mo_error error = {0};
    if (disk_open(&disk, &options, &error)) fail_msg("%s", error.message);
    return disk;
}

/* A text of CHAIN pages: `fork` pages of text 0, then its own. */
struct text {
    int32_t tokens[CHAIN * PAGE_TOKENS_MAX];
    struct page_address addresses[CHAIN + 1];
    uint64_t root;
};

static void text_make(struct text *text, int number, int fork, uint64_t root) {
    struct disk_options options = options_of(0);
    text->root = root;
    text->addresses[0] = page_address_root(&options.key, root);
    for (int i = 0; i < CHAIN; i++) {
        int own = i < fork ? 0 : number;
        for (int t = 0; t < PAGE_TOKENS_MAX; t++) {
            text->tokens[i * PAGE_TOKENS_MAX + t] = own * 1000003 + i * 101 + t * 7;
        }
        text->addresses[i + 1] = page_address_next(&text->addresses[i], text->tokens + (size_t)i * PAGE_TOKENS_MAX);
    }
}

/* What a page holds depends on its address alone. */
static void payload_of(const struct page_address *address, uint8_t payload[BYTES]) {
    for (int i = 0; i < BYTES; i++) payload[i] = (uint8_t)(address->bytes[i % 32] + i * 31);
}

static void id_of(const struct text *text, int page, struct page_id *id) {
    *id = (struct page_id){.parent = text->addresses[page],
                           .address = text->addresses[page + 1],
                           .root = text->root,
                           .depth = (uint32_t)page};
    memcpy(id->tokens, text->tokens + (size_t)page * PAGE_TOKENS_MAX, sizeof id->tokens);
}

static void put(struct disk *disk, const struct text *text, int page) {
    struct page_id id;
    uint8_t *to = disk_put_begin(disk);
    assert_non_null(to);
    id_of(text, page, &id);
    payload_of(&id.address, to);
    disk_put_end(disk, &id);
}

static void work(struct disk *disk) {
    while (disk_work(disk)) {
    }
}

static void write_pages(struct disk *disk, const struct text *text, int first, int n) {
    for (int i = first; i < first + n; i++) {
        put(disk, text, i);
        work(disk);
    }
}

static int find(struct disk *disk, const struct text *text) {
    return disk_find(disk, text->addresses + 1, CHAIN);
}

/* Reads pages; each must be right. Returns how many came. */
static int read_pages(struct disk *disk, const struct text *text, int first, int n) {
    struct disk_load *load = disk_load_begin(disk, text->addresses + 1, text->tokens, text->root, first, n);
    int came = 0;
    assert_non_null(load);
    while (!disk_load_ended(load)) {
        uint8_t expected[BYTES];
        const void *page = disk_load_page(load);
        if (!page && !disk->started) assert_true(disk_work(disk));
        if (!page) continue;
        payload_of(&text->addresses[first + came + 1], expected);
        assert_memory_equal(page, expected, BYTES);
        disk_load_take(load);
        came++;
    }
    disk_load_end(load);
    return came;
}

static struct disk_stats stats_of(struct disk *disk) {
    struct disk_stats stats;
    disk_stats_get(disk, &stats);
    return stats;
}

static struct text g_text, g_other;

/* ---- tests ---- */

/* A header is refused after any change of any byte, and so is a payload. */
static void test_header(void **state) {
    (void)state;
    uint8_t header[PAGE_HEADER_BYTES], payload[BYTES];
    struct page_address key = options_of(0).key;
    struct page_id id;
    struct mo_error error;
    text_make(&g_text, 1, 0, 0);
    id_of(&g_text, 3, &id);
    payload_of(&id.address, payload);
    page_header_write(&key, &id, payload, BYTES, header);
    assert_int_equal(page_check(header, payload, &key, BYTES, &id, "page", &error), 0);
    for (int i = 0; i < PAGE_HEADER_BYTES; i++) {
        header[i] ^= (uint8_t)(1 << (i % 8));
        assert_int_equal(page_check(header, payload, &key, BYTES, &id, "page", &error), MO_E_CORRUPT);
        header[i] ^= (uint8_t)(1 << (i % 8));
    }
    for (int i = 0; i < BYTES; i++) {
        payload[i] ^= (uint8_t)(1 << (i % 8));
        assert_int_equal(page_check(header, payload, &key, BYTES, &id, "page", &error), MO_E_CORRUPT);
        payload[i] ^= (uint8_t)(1 << (i % 8));
    }
    assert_int_equal(page_check(header, payload, &key, BYTES - 1, &id, "page", &error), MO_E_UNSUPPORTED);
    key.bytes[31] ^= 1;
    assert_int_equal(page_check(header, payload, &key, BYTES, &id, "page", &error), MO_E_UNSUPPORTED);
    assert_non_null(strstr(error.message, "another model"));
    key.bytes[31] ^= 1;
    id.tokens[63]++; /* as if two texts had the same address */
    assert_int_equal(page_check(header, payload, &key, BYTES, &id, "page", &error), MO_E_CORRUPT);
}

static void test_names(void **state) {
    (void)state;
    struct page_address address;
    uint32_t depth;
    char name[PAGE_NAME_MAX];
    text_make(&g_text, 1, 0, 0);
    page_name_write(&g_text.addresses[5], 4, name);
    assert_true(page_name_read(name, &address, &depth));
    assert_true(page_address_equal(&address, &g_text.addresses[5]) && depth == 4);
    for (size_t i = 0; i < strlen(name); i++) {
        char other[PAGE_NAME_MAX];
        strcpy(other, name);
        other[i] = 'g';
        assert_int_equal(page_name_read(other, &address, &depth), name[i] == 'g');
        other[i] = 0;
        assert_false(page_name_read(other, &address, &depth));
    }
    strcat(name, "x");
    assert_false(page_name_read(name, &address, &depth));
}

/* Every part of the text, the salt and the key has its say in an address. */
static void test_addresses(void **state) {
    (void)state;
    struct page_address key = options_of(0).key, root = page_address_root(&key, 5);
    text_make(&g_text, 1, 0, 5);
    assert_true(page_address_equal(&g_text.addresses[0], &root));
    text_make(&g_other, 1, 0, 6);
    assert_false(page_address_equal(&g_text.addresses[1], &g_other.addresses[1]));
    key.bytes[0]++;
    root = page_address_root(&key, 5);
    assert_false(page_address_equal(&g_text.addresses[0], &root));
    text_make(&g_text, 1, 10, 0);
    text_make(&g_other, 2, 10, 0);
    assert_true(page_address_equal(&g_text.addresses[10], &g_other.addresses[10]));
    assert_false(page_address_equal(&g_text.addresses[11], &g_other.addresses[11]));
}

static void test_comes_back(void **state) {
    (void)state;
    text_make(&g_text, 0, 0, 0);
    text_make(&g_other, 2, 10, 0);
    struct disk *disk = disk_of(options_of(MB));
    assert_int_equal(find(disk, &g_text), 0);
    write_pages(disk, &g_text, 0, 20);
    write_pages(disk, &g_other, 10, 5);
    for (int again = 0; again < 2; again++) {
        assert_int_equal(find(disk, &g_text), 20);
        assert_int_equal(find(disk, &g_other), 15);
        assert_int_equal(read_pages(disk, &g_text, 0, 20), 20);
        assert_int_equal(read_pages(disk, &g_other, 7, 8), 8);
        assert_int_equal(read_pages(disk, &g_text, 18, 5), 2); /* the others are not there */
        assert_int_equal(stats_of(disk).files, 25);
        assert_int_equal(stats_of(disk).bytes, 25 * BLOCK);
        disk_close(disk);
        disk = disk_of(options_of(MB));
    }
    assert_int_equal(stats_of(disk).refused, 0);
    disk_close(disk);
    struct stat status;
    stat(g_folder, &status);
    assert_int_equal(status.st_mode & 0777, 0700);
}

/* A page whose beginning is not there is of no use, and one that is there is not written again. */
static void test_what_is_written(void **state) {
    (void)state;
    text_make(&g_text, 1, 0, 0);
    struct disk *disk = disk_of(options_of(MB));
    write_pages(disk, &g_text, 3, 2);
    assert_int_equal(stats_of(disk).files, 0);
    write_pages(disk, &g_text, 0, 2);
    write_pages(disk, &g_text, 0, 3);
    assert_int_equal(stats_of(disk).written_pages, 3);
    for (int i = 0; i < DISK_WRITE_SLOTS; i++) put(disk, &g_text, 3 + i);
    assert_null(disk_put_begin(disk));
    assert_false(disk_put_wait(disk, 0.01));
    work(disk);
    assert_non_null(disk_put_begin(disk));
    disk_put_end(disk, NULL);
    assert_int_equal(find(disk, &g_text), 3 + DISK_WRITE_SLOTS);
    disk_close(disk);
}

static char g_page_path[512];

static void page_path(const struct text *text, int page) {
    char name[PAGE_NAME_MAX];
    page_name_write(&text->addresses[page + 1], (uint32_t)page, name);
    path_of(name, g_page_path);
}

static void flip_byte(const struct text *text, int page, long at) {
    page_path(text, page);
    FILE *file = fopen(g_page_path, "r+b");
    assert_non_null(file);
    fseek(file, at, SEEK_SET);
    int byte = fgetc(file);
    fseek(file, at, SEEK_SET);
    fputc(byte ^ (1 << (draw() % 8)), file);
    fclose(file);
}

/* Bytes changed, files cut, files too long, no files: never a wrong page, the file goes, and those before it are good. */
static void test_damage(void **state) {
    (void)state;
    struct disk *disk = disk_of(options_of(MB));
    int refused = 0;
    for (int round = 0; round < 300; round++) {
        int page = (int)(draw() % 6), kind = round % 5;
        text_make(&g_text, round, 0, 0);
        write_pages(disk, &g_text, 0, 6);
        page_path(&g_text, page);
        if (kind < 2) flip_byte(&g_text, page, (long)(draw() % FILE_BYTES));
        if (kind == 2 && truncate(g_page_path, (off_t)(draw() % FILE_BYTES))) fail();
        if (kind == 3 && truncate(g_page_path, (off_t)(FILE_BYTES + 1 + draw() % 100))) fail();
        if (kind == 4 && unlink(g_page_path)) fail();
        refused += kind < 4;
        assert_int_equal(read_pages(disk, &g_text, 0, 6), page);
        assert_int_equal(find(disk, &g_text), page);
        assert_int_equal(access(g_page_path, F_OK), -1);
        assert_int_equal(stats_of(disk).refused, refused);
        disk_use(disk, g_text.addresses + 1, 6);
    }
    disk_close(disk);
}

/* Another model's page under our name, a folder and a link: refused. */
static void test_not_ours(void **state) {
    (void)state;
    struct disk_options options = options_of(MB), foreign = options;
    char other[512];
    text_make(&g_text, 1, 0, 0);
    foreign.key.bytes[0] ^= 1;
    struct disk *disk = disk_of(foreign);
    write_pages(disk, &g_text, 0, 3); /* with our addresses: nobody does that */
    disk_close(disk);
    disk = disk_of(options);
    assert_int_equal(find(disk, &g_text), 3);
    assert_int_equal(read_pages(disk, &g_text, 0, 3), 0);
    assert_int_equal(stats_of(disk).refused, 1);
    write_pages(disk, &g_text, 0, 1);
    page_path(&g_text, 1);
    strcpy(other, g_page_path);
    page_path(&g_text, 0);
    assert_int_equal(unlink(other), 0);
    assert_int_equal(link(g_page_path, other), 0); /* page 0 under the name of page 1 */
    assert_int_equal(read_pages(disk, &g_text, 0, 3), 1);
    page_path(&g_text, 2);
    strcpy(other, g_page_path);
    unlink(other);
    page_path(&g_text, 0);
    assert_int_equal(symlink(g_page_path, other), 0);
    assert_int_equal(read_pages(disk, &g_text, 2, 1), 0);
    disk_close(disk);
}

/* Files of others stay; what a dead writer left goes. */
static void test_leftovers(void **state) {
    (void)state;
    static const char *const names[] = {"new-1-0.tmp", "notes.txt", "new-1.txt", "0123-00000000.page"};
    char path[512];
    for (size_t i = 0; i < 4; i++) {
        path_of(names[i], path);
        FILE *file = fopen(path, "w");
        fputs("half a page", file);
        fclose(file);
    }
    struct disk_folder folder;
    struct mo_error error;
    uint8_t header[PAGE_HEADER_BYTES] = {0};
    assert_int_equal(disk_folder_open(&folder, g_folder, &error), 0);
    struct disk *disk = disk_of(options_of(MB));
    assert_int_equal(each_file(NULL), 3);
    path_of(names[0], path);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(stats_of(disk).files, 0);
    disk_close(disk);
    folder.no_sync = true;
    assert_int_equal(disk_folder_write(&folder, "notes.txt", header, header, 10, &error), 0);
    disk_folder_close(&folder);
}

static int count_pages(struct disk *disk, const struct text *text) {
    int n = 0;
    for (int i = 0; i < CHAIN; i++) n += disk_has(disk, &text->addresses[i + 1]);
    return n;
}

/* What was used longest ago goes first, ends before beginnings, also after a restart. */
static void test_limit(void **state) {
    (void)state;
    struct disk *disk = disk_of(options_of(20 * BLOCK));
    text_make(&g_text, 1, 0, 0);
    text_make(&g_other, 2, 0, 0);
    write_pages(disk, &g_text, 0, 10);
    write_pages(disk, &g_other, 0, 10);
    disk_use(disk, g_other.addresses + 1, 10);
    disk_use(disk, g_text.addresses + 1, 10); /* now the other one is older */
    work(disk);
    disk_close(disk);
    disk = disk_of(options_of(20 * BLOCK));
    write_pages(disk, &g_text, 10, 4);
    assert_int_equal(find(disk, &g_text), 14);
    assert_int_equal(find(disk, &g_other), 6);
    assert_int_equal(count_pages(disk, &g_other), 6);
    assert_int_equal(stats_of(disk).bytes, 20 * BLOCK);
    disk_close(disk);
    disk = disk_of(options_of(9 * BLOCK)); /* a smaller limit */
    assert_int_equal(stats_of(disk).files, 9);
    assert_int_equal(each_file(NULL), 9);
    disk_close(disk);
}

/* A text longer than the limit keeps its beginning. */
static void test_longer_than_the_limit(void **state) {
    (void)state;
    struct disk *disk = disk_of(options_of(10 * BLOCK));
    text_make(&g_text, 1, 0, 0);
    write_pages(disk, &g_text, 0, CHAIN);
    assert_int_equal(find(disk, &g_text), 10);
    assert_int_equal(stats_of(disk).files, 10);
    text_make(&g_text, 2, 0, 0); /* the next one takes its place */
    write_pages(disk, &g_text, 0, CHAIN);
    assert_int_equal(find(disk, &g_text), 10);
    assert_int_equal(stats_of(disk).written_pages, 20);
    disk_close(disk);
}

/* Random texts with common beginnings, under a limit: files, index and bytes agree, and what is found can be read. */
static void test_random(void **state) {
    (void)state;
    struct disk *disk = disk_of(options_of(60 * BLOCK));
    for (int round = 0; round < 300; round++) {
        text_make(&g_text, 1 + (int)(draw() % 8), (int)(draw() % 10), draw() % 2);
        int n = 1 + (int)(draw() % 20), found = find(disk, &g_text);
        if (found > 0) assert_int_equal(read_pages(disk, &g_text, 0, found), found);
        disk_use(disk, g_text.addresses + 1, found);
        if (n > found) write_pages(disk, &g_text, found, n - found);
        assert_int_equal(find(disk, &g_text), found > n ? found : n);
        if (round % 50 == 49) {
            uint64_t files = stats_of(disk).files;
            assert_int_equal(each_file(NULL), (int)files);
            disk_close(disk);
            disk = disk_of(options_of(60 * BLOCK));
            assert_int_equal(stats_of(disk).files, files);
        }
        assert_true(stats_of(disk).bytes <= 60 * BLOCK);
    }
    assert_true(stats_of(disk).refused == 0);
    disk_close(disk);
}

/* Two servers: each finds the other's pages when it looks again, and a file that the other removed is just not there. */
static void test_two_servers(void **state) {
    (void)state;
    struct mo_error error;
    text_make(&g_text, 0, 0, 0);
    text_make(&g_other, 2, 5, 0);
    struct disk *a = disk_of(options_of(30 * BLOCK)), *b = disk_of(options_of(30 * BLOCK));
    write_pages(a, &g_text, 0, 10);
    assert_int_equal(find(b, &g_text), 0);
    write_pages(b, &g_text, 0, 5); /* both wrote the same */
    write_pages(b, &g_other, 5, 10);
    assert_int_equal(disk_list(a, &error), 0);
    assert_int_equal(disk_list(b, &error), 0);
    assert_int_equal(find(b, &g_text), 10);
    assert_int_equal(find(a, &g_other), 15);
    assert_int_equal(read_pages(a, &g_other, 0, 15), 15);
    struct disk_load *load = disk_load_begin(b, g_text.addresses + 1, g_text.tokens, 0, 0, 10);
    disk_work(b);
    disk_close(a);
    a = disk_of(options_of(2 * BLOCK)); /* removes all but two */
    assert_int_equal(stats_of(a).files, 2);
    work(b);
    for (int i = 0; i < 10 && !disk_load_ended(load); i++) {
        if (disk_load_page(load)) disk_load_take(load);
        work(b);
    }
    assert_true(disk_load_ended(load));
    disk_load_end(load);
    assert_int_equal(stats_of(b).refused, 0);
    disk_close(a);
    disk_close(b);
}

/* Several processes write and remove in one folder at once. */
static void test_many_processes(void **state) {
    (void)state;
    enum { PROCESSES = 3 };
    pid_t children[PROCESSES];
    for (int c = 0; c < PROCESSES; c++) {
        children[c] = fork();
        if (children[c]) continue;
        for (int i = 0; i <= c; i++) draw();
        struct disk *disk = disk_of(options_of((40 + 10 * c) * BLOCK));
        for (int round = 0; round < 40; round++) {
            struct mo_error error;
            text_make(&g_text, 1 + (int)(draw() % 5), 5, 0);
            int found = find(disk, &g_text);
            if (found > 0) read_pages(disk, &g_text, 0, found); /* what comes is right */
            if (found < CHAIN) write_pages(disk, &g_text, found, 1 + (int)(draw() % (uint32_t)(CHAIN - found)));
            if (round % 10 == 0) disk_list(disk, &error);
        }
        int refused = (int)stats_of(disk).refused;
        disk_close(disk);
        _exit(refused != 0);
    }
    for (int c = 0; c < PROCESSES; c++) {
        int status;
        assert_int_equal(waitpid(children[c], &status, 0), children[c]);
        assert_int_equal(status, 0);
    }
}

static void nothing(void *context) {
    (void)context;
}

/* Written by the thread, killed at any moment behind so many files, however long these take: every file that has a name is whole,
 * and nothing else stays. */
static void test_kill(void **state) {
    (void)state;
    int n_found = 0;
    for (int round = 0; round < 25; round++) {
        text_make(&g_text, round, 0, 0);
        pid_t child = fork();
        if (child == 0) {
            struct mo_error error;
            struct disk *disk = disk_of(options_of(MB));
            if (disk_start(disk, nothing, NULL, &error)) _exit(2);
            for (int i = 0; i < CHAIN; i++) {
                while (!disk_put_wait(disk, 1)) {
                }
                put(disk, &g_text, i);
            }
            pause();
        }
        int n_files = (int)(draw() % (CHAIN / 2));
        struct timespec wait = {.tv_nsec = (long)(draw() % 200000)};
        while (each_file(NULL) < n_files || nanosleep(&wait, NULL)) {
        }
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        struct disk *disk = disk_of(options_of(MB));
        int found = find(disk, &g_text);
        assert_int_equal(each_file(NULL), (int)stats_of(disk).files);
        if (found > 0) assert_int_equal(read_pages(disk, &g_text, 0, found), found);
        assert_int_equal(stats_of(disk).refused, 0);
        n_found += found;
        disk_close(disk);
    }
    assert_true(n_found > 0);
}

/* The thread at work while pages are put and read; ended in the middle, what was put is there. */
static void test_thread(void **state) {
    (void)state;
    struct mo_error error;
    text_make(&g_text, 1, 0, 0);
    text_make(&g_other, 2, 10, 0);
    struct disk *disk = disk_of(options_of(MB));
    assert_int_equal(disk_start(disk, nothing, NULL, &error), 0);
    for (int i = 0; i < CHAIN; i++) {
        assert_true(disk_put_wait(disk, 10));
        put(disk, &g_text, i);
        if (i % 8 == 0 && i > 0) disk_use(disk, g_text.addresses + 1, i);
        int found = find(disk, &g_text);
        if (i % 5 == 0 && found > 0) assert_int_equal(read_pages(disk, &g_text, 0, found), found);
    }
    struct disk_load *left = disk_load_begin(disk, g_text.addresses + 1, g_text.tokens, 0, 0, CHAIN);
    disk_load_end(left); /* nobody waits for it */
    disk_stop(disk);
    assert_int_equal(find(disk, &g_text), CHAIN);
    disk_close(disk);
}

/* A file system that is full, or a limit of file sizes: nothing is written, nothing half written stays, and what is there can
 * be read. */
static void write_until_full(double limit_bytes) {
    text_make(&g_text, 1, 0, 0);
    struct disk *disk = disk_of(options_of(limit_bytes));
    for (int i = 0; i < CHAIN; i++) {
        if (!disk_put_begin(disk)) break;
        put(disk, &g_text, i);
        work(disk);
    }
    int found = find(disk, &g_text);
    assert_true(found < CHAIN && stats_of(disk).forgotten <= 1);
    assert_int_equal(each_file(NULL), found);
    if (found > 0) assert_int_equal(read_pages(disk, &g_text, 0, found), found);
    disk_close(disk);
}

static void test_no_large_files(void **state) {
    (void)state;
    int status;
    pid_t child = fork();
    if (child == 0) {
        const struct rlimit limit = {2000, 2000};
        sigset_t signals;
        sigfillset(&signals);
        sigprocmask(SIG_BLOCK, &signals, NULL); /* as the cache's thread does */
        setrlimit(RLIMIT_FSIZE, &limit);
        write_until_full(MB);
        _exit(each_file(NULL) != 0);
    }
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
}

static void test_full_disk(void **state) {
    (void)state;
    if (mount("tmpfs", g_folder, "tmpfs", 0, "size=100k")) {
        print_message("left out: a full file system (a tmpfs cannot be mounted here)\n");
        skip();
    }
    write_until_full(MB);
    umount2(g_folder, MNT_DETACH);
}

static void test_no_folder(void **state) {
    (void)state;
    char path[512];
    struct disk_options options = options_of(MB);
    struct disk *disk;
    struct mo_error error = {0};
    path_of("a-file", path);
    fclose(fopen(path, "w"));
    options.folder = path;
    assert_int_equal(disk_open(&disk, &options, &error), MO_E_IO);
    assert_null(disk);
    assert_non_null(strstr(error.message, "Not a directory"));
    strcat(path, "/below");
    assert_int_equal(disk_open(&disk, &options, &error), MO_E_IO);
    options.folder = "/proc/moebius-pages"; /* where even root can make nothing */
    assert_int_not_equal(disk_open(&disk, &options, &error), 0);
    options.folder = "";
    assert_int_equal(disk_open(&disk, &options, &error), MO_E_INVALID);
    path_of("one/two", path);
    options.folder = path;
    assert_int_equal(disk_open(&disk, &options, &error), 0);
    disk_close(disk);
    rmdir(path);
    path_of("one", path);
    rmdir(path);
}

/* Many names are listed in no time. */
static void test_many_files(void **state) {
    (void)state;
    enum { FILES = 3000 };
    for (int i = 0; i < FILES; i++) {
        char name[PAGE_NAME_MAX], path[512];
        struct page_address address;
        for (int b = 0; b < 32; b++) address.bytes[b] = (uint8_t)draw();
        page_name_write(&address, (uint32_t)i, name);
        path_of(name, path);
        close(open(path, O_CREAT | O_WRONLY, 0600));
    }
    struct disk *disk = disk_of(options_of(MB));
    assert_int_equal(stats_of(disk).files, FILES);
    assert_int_equal(stats_of(disk).bytes, 0);
    disk_close(disk);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_make, folder_remove)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),     cmocka_unit_test(test_names),
        cmocka_unit_test(test_addresses),  WITH_FOLDER(test_comes_back),
        WITH_FOLDER(test_what_is_written), WITH_FOLDER(test_damage),
        WITH_FOLDER(test_not_ours),        WITH_FOLDER(test_leftovers),
        WITH_FOLDER(test_limit),           WITH_FOLDER(test_longer_than_the_limit),
        WITH_FOLDER(test_random),          WITH_FOLDER(test_two_servers),
        WITH_FOLDER(test_many_processes),  WITH_FOLDER(test_kill),
        WITH_FOLDER(test_thread),          WITH_FOLDER(test_no_large_files),
        WITH_FOLDER(test_full_disk),       WITH_FOLDER(test_no_folder),
        WITH_FOLDER(test_many_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
