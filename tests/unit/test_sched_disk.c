/* The scheduler over a cache on disk: what is found there is what would have been computed, others go on in the meantime, and
 * a disk that is slow, silent or broken costs time alone. */
#include "sched_world.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/log.h"
#include "cache/disk_priv.h"
#include "sched/sched_state.h"

enum { PROMPT = 200, FOUND = 192, LIMIT = 1000 * 4096 };

static char g_folder[64];

static int folder_make(void **state) {
    (void)state;
    log_set_level(LOG_QUIET);
    strcpy(g_folder, "/tmp/moebius-sched-XXXXXX");
    return mkdtemp(g_folder) ? 0 : -1;
}

static int folder_remove(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", g_folder);
    return system(command);
}

static struct disk *open_disk(void) {
    struct disk_options options = {
        .folder = g_folder, .limit_bytes = LIMIT, .page_bytes = FAKE_PAGE_BYTES, .no_sync = true};
    struct disk *disk;
    struct mo_error error = {0};
    if (disk_open(&disk, &options, &error)) fail_msg("%s", error.message);
    return disk;
}

static void open_world(struct world *world, struct disk *disk) {
    struct sched_options options = world_options();
    options.prefix_caching = true;
    options.disk = disk;
    options.max_num_batched_tokens = 32;
    world_open(world, options);
}

/* Until nothing moves any more: the disk works in between. */
static void run_both(struct world *world, struct disk *disk) {
    for (int i = 0; i < 10000; i++) {
        bool worked = sched_step(world->sched);
        world->now_s += 0.01;
        if (!disk_work(disk) && !worked) return;
    }
    fail_msg("it never ends");
}

/* A request of its own world, alone with the disk. */
static struct sched_stats ask(struct disk *disk, const int32_t *prompt, int n, uint64_t salt, bool leaves_no_file) {
    static struct world world;
    static struct owner owner;
    open_world(&world, disk);
    struct sched_request request = request_of(&world, &owner, prompt, n, 5);
    request.cache_salt = salt;
    request.leaves_no_file = leaves_no_file;
    submit(&world, &request);
    run_both(&world, disk);
    assert_int_equal(owner.n_ends, 1);
    expect_greedy(&owner, prompt, n);
    struct sched_stats stats = stats_of(&world);
    world_close(&world);
    return stats;
}

static void test_restart(void **state) {
    (void)state;
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    struct sched_stats first = ask(disk, prompt, PROMPT, 0, false);
    assert_int_equal(first.disk_queried_tokens, FOUND);
    assert_int_equal(first.disk_found_tokens, 0);
    disk_close(disk);
    disk = open_disk();
    struct sched_stats second = ask(disk, prompt, PROMPT, 0, false);
    assert_int_equal(second.disk_found_tokens, FOUND);
    assert_int_equal(second.prefix_found_tokens, FOUND);
    assert_true(second.steps < first.steps);
    struct sched_stats shorter = ask(disk, prompt, 192, 0, false); /* the last token is computed */
    assert_int_equal(shorter.disk_found_tokens, 128);
    disk_close(disk);
}

static void test_salt_and_no_file(void **state) {
    (void)state;
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    assert_int_equal(ask(disk, prompt, PROMPT, 0, true).disk.files, 0);
    ask(disk, prompt, PROMPT, PREFIX_SALTED | 1, false);
    assert_int_equal(ask(disk, prompt, PROMPT, PREFIX_SALTED | 2, false).disk_found_tokens, 0);
    assert_int_equal(ask(disk, prompt, PROMPT, 0, false).disk_found_tokens, 0);
    assert_int_equal(ask(disk, prompt, PROMPT, PREFIX_SALTED | 1, false).disk_found_tokens, FOUND);
    assert_int_equal(ask(disk, prompt, PROMPT, PREFIX_SALTED | 1, true).disk_found_tokens, 0);
    disk_close(disk);
}

/* One request waits for the disk, another gets token after token; also with a step ahead. */
static void check_others_go_on(bool runs_ahead) {
    static struct world world;
    static struct owner slow, quick;
    int32_t prompt[PROMPT], other[3] = {2, 3, 4};
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    ask(disk, prompt, PROMPT, 0, false);
    open_world(&world, disk);
    world.fake.base.picks = world.fake.base.runs_ahead = runs_ahead;
    world.fake.late = true;
    struct sched_request request = request_of(&world, &quick, other, 3, 100);
    request.ignore_eos = true;
    submit(&world, &request);
    for (int i = 0; i < 5; i++) sched_step(world.sched);
    request = request_of(&world, &slow, prompt, PROMPT, 30);
    request.ignore_eos = true;
    submit(&world, &request);
    for (int i = 0; i < 20; i++) assert_true(sched_step(world.sched));
    assert_int_equal(world.sched->n_loads, 1);
    assert_int_equal(slow.n_tokens, 0);
    assert_true(quick.n_tokens >= 23);
    if (runs_ahead) assert_true(world.fake.n_ahead >= 15);
    uint64_t steps = stats_of(&world).steps;
    for (int i = 0; i < 3; i++) assert_true(disk_work(disk));
    while (slow.n_tokens == 0) assert_true(sched_step(world.sched));
    assert_true(stats_of(&world).steps - steps <= 3);
    run_both(&world, disk);
    expect_greedy(&slow, prompt, PROMPT);
    expect_greedy(&quick, other, 3);
    assert_int_equal(stats_of(&world).disk_found_tokens, FOUND);
    world_close(&world);
    disk_close(disk);
}

static void test_others_go_on(void **state) {
    (void)state;
    check_others_go_on(false);
    check_others_go_on(true);
}

/* Two that want the same pages have them once. */
static void test_same_pages(void **state) {
    (void)state;
    static struct world world;
    static struct owner owners[2];
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    ask(disk, prompt, PROMPT, 0, false);
    open_world(&world, disk);
    for (int i = 0; i < 2; i++) {
        struct sched_request request = request_of(&world, &owners[i], prompt, PROMPT, 20);
        request.ignore_eos = true;
        submit(&world, &request);
    }
    for (int i = 0; i < 20; i++) {
        if (i % 2) disk_work(disk);
        sched_step(world.sched);
    }
    assert_int_equal(world.sched->n_loads, 0);
    assert_int_equal(world.sched->n_running, 2);
    assert_int_equal(stats_of(&world).pages_free, world.options.n_pages - 3 - 2); /* and each the page that it fills */
    assert_int_equal(stats_of(&world).prefix_found_tokens, 2 * FOUND);
    assert_in_range(stats_of(&world).disk.read_pages, 3, 4); /* what one has brought the other does not wait for */
    run_both(&world, disk);
    for (int i = 0; i < 2; i++) expect_greedy(&owners[i], prompt, PROMPT);
    world_close(&world);
    disk_close(disk);
}

/* Nothing comes: after a while it is computed; cancelled while it waits, it leaves nothing behind. */
static void test_silent_disk(void **state) {
    (void)state;
    static struct world world;
    static struct owner owner;
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    ask(disk, prompt, PROMPT, 0, false);
    open_world(&world, disk);
    struct sched_request request = request_of(&world, &owner, prompt, PROMPT, 5);
    submit(&world, &request);
    assert_false(sched_step(world.sched)); /* it waits, and there is nothing else to do */
    assert_int_equal(world.sched->n_loads, 1);
    disk_work(disk); /* one page */
    assert_true(sched_step(world.sched));
    assert_int_equal(world.sched->running[0]->n_computed, KV_PAGE_TOKENS);
    world.now_s += 60;
    run(&world);
    expect_greedy(&owner, prompt, PROMPT);
    assert_int_equal(owner.n_ends, 1);
    assert_int_equal(stats_of(&world).disk_found_tokens, KV_PAGE_TOKENS);
    world_close(&world);

    open_world(&world, disk);
    request = request_of(&world, &owner, prompt, PROMPT, 5);
    uint64_t id = submit(&world, &request);
    sched_step(world.sched);
    disk_work(disk);
    sched_step(world.sched);
    sched_cancel(world.sched, id);
    sched_step(world.sched);
    assert_int_equal(owner.finish, FINISH_CANCELLED);
    assert_null(disk->loads);
    assert_int_equal(stats_of(&world).pages_free, world.options.n_pages);
    request = request_of(&world, &owner, prompt, PROMPT, 5); /* and destroyed in the middle */
    submit(&world, &request);
    sched_step(world.sched);
    disk_work(disk);
    world_close(&world);
    assert_null(disk->loads);
    disk_close(disk);
}

/* A disk that is slower than computing is left alone. */
static void test_slow_disk(void **state) {
    (void)state;
    static struct world world;
    static struct owner owner;
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    ask(disk, prompt, PROMPT, 0, false);
    for (int slow = 0; slow < 2; slow++) {
        open_world(&world, disk);
        world.sched->row_s = 0.01;
        disk->page_s = KV_PAGE_TOKENS * 0.01 * (slow ? 1.01 : 0.99);
        struct sched_request request = request_of(&world, &owner, prompt, PROMPT, 5);
        submit(&world, &request);
        run_both(&world, disk);
        expect_greedy(&owner, prompt, PROMPT);
        assert_int_equal(stats_of(&world).disk_found_tokens, slow ? 0 : FOUND);
        world_close(&world);
    }
    disk_close(disk);
}

/* A card that copies no pages: requests do not notice. */
static void test_copies_fail(void **state) {
    (void)state;
    static struct world world;
    static struct owner owner;
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    ask(disk, prompt, PROMPT, 0, false);
    open_world(&world, disk);
    world.fake.fail_copies = true;
    struct sched_request request = request_of(&world, &owner, prompt, PROMPT, 5);
    submit(&world, &request);
    run_both(&world, disk);
    expect_greedy(&owner, prompt, PROMPT);
    assert_true(world.sched->disk_failed);
    assert_int_equal(owner.finish, FINISH_LENGTH);
    world_close(&world);
    disk_close(disk);
}

/* What the disk has forgotten is written again, its beginning first. */
static void test_written_again(void **state) {
    (void)state;
    static struct world world;
    static struct owner owner;
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    struct disk *disk = open_disk();
    open_world(&world, disk);
    struct sched_request request = request_of(&world, &owner, prompt, PROMPT, 5);
    submit(&world, &request);
    run_both(&world, disk);
    assert_int_equal(stats_of(&world).disk.files, 3);
    while (disk->index.newest >= 0) {
        struct page_id id = {.address = disk->index.entries[disk->index.newest].address,
                             .depth = disk->index.entries[disk->index.newest].depth};
        char name[PAGE_NAME_MAX];
        page_name_write(&id.address, id.depth, name);
        disk_folder_remove(&disk->folder, name);
        disk_forget(disk, &id, MO_E_NOT_FOUND, NULL);
    }
    request = request_of(&world, &owner, prompt, PROMPT, 60); /* found in memory; its answer fills one more page */
    request.ignore_eos = true;
    submit(&world, &request);
    run_both(&world, disk);
    assert_int_equal(stats_of(&world).disk.files, 4);
    world_close(&world);
    disk_close(disk);
}

/* ---- with the disk's own thread, and requests from a third one ---- */

enum { REQUESTS = 60, PAGES = 16 };

static struct crowd {
    struct world world;
    struct owner owners[REQUESTS];
    struct sched_request requests[REQUESTS];
    int32_t prompts[REQUESTS][PROMPT];
} g_crowd;

static void *submit_all(void *argument) {
    struct crowd *c = argument;
    for (int i = 0; i < REQUESTS; i++) {
        uint64_t id = submit(&c->world, &c->requests[i]);
        if (i % 9 == 8) sched_cancel(c->world.sched, id);
        if (i % 4 == 0) usleep(1000);
    }
    return NULL;
}

static void wake(void *context) {
    sched_wake(context);
}

static bool all_ended(const struct crowd *c) {
    int n = 0;
    for (int i = 0; i < REQUESTS; i++) n += c->owners[i].n_ends;
    return n == REQUESTS;
}

static uint64_t run_crowd(struct disk *disk) {
    struct crowd *c = &g_crowd;
    struct mo_error error;
    pthread_t submitter;
    open_world(&c->world, disk);
    c->world.sched->options.clock = NULL; /* the system's: two threads look at it */
    assert_int_equal(disk_start(disk, wake, c->world.sched, &error), 0);
    for (int i = 0; i < REQUESTS; i++) { /* five texts, cut at different places */
        fill_prompt(c->prompts[i], PROMPT, i % 5);
        fill_prompt(c->prompts[i] + 100 + i, PROMPT - 100 - i, 100 + i);
        c->requests[i] = request_of(&c->world, &c->owners[i], c->prompts[i], PROMPT, 10);
        c->requests[i].ignore_eos = true;
    }
    assert_int_equal(pthread_create(&submitter, NULL, submit_all, c), 0);
    while (!all_ended(c)) {
        if (!sched_step(c->world.sched)) sched_wait(c->world.sched);
    }
    pthread_join(submitter, NULL);
    for (int i = 0; i < REQUESTS; i++) {
        if (c->owners[i].finish != FINISH_CANCELLED) expect_greedy(&c->owners[i], c->prompts[i], PROMPT);
    }
    sched_save(c->world.sched, 5);
    disk_stop(disk);
    struct sched_stats stats = stats_of(&c->world);
    world_close(&c->world);
    return stats.disk_found_tokens;
}

static void test_threads(void **state) {
    (void)state;
    struct disk *disk = open_disk();
    run_crowd(disk);
    disk_close(disk);
    disk = open_disk();
    assert_true(run_crowd(disk) > 20 * KV_PAGE_TOKENS);
    disk_close(disk);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_make, folder_remove)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(test_restart),     WITH_FOLDER(test_salt_and_no_file), WITH_FOLDER(test_others_go_on),
        WITH_FOLDER(test_same_pages),  WITH_FOLDER(test_silent_disk),      WITH_FOLDER(test_slow_disk),
        WITH_FOLDER(test_copies_fail), WITH_FOLDER(test_written_again),    WITH_FOLDER(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
