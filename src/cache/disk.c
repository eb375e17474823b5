#include <assert.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "cache/disk_priv.h"

enum {
    LIST_EVERY_S = 60,
    STOP_S = 5, /* the thread may take so long to end */
};

int64_t disk_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

size_t disk_memory_bytes(size_t page_bytes) {
    return (DISK_WRITE_SLOTS + DISK_READ_SLOTS) * page_bytes;
}

static int take_slots(struct disk *disk, struct mo_error *error) {
    size_t bytes = disk->options.page_bytes;
    disk->memory = malloc(disk_memory_bytes(bytes));
    if (!disk->memory) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for pages on their way to the disk");
    for (int i = 0; i < DISK_WRITE_SLOTS; i++) disk->writes[i].payload = disk->memory + (size_t)i * bytes;
    for (int i = 0; i < DISK_READ_SLOTS; i++) {
        disk->reads[i].payload = disk->memory + (size_t)(DISK_WRITE_SLOTS + i) * bytes;
    }
    return 0;
}

/* It would empty the folder for nothing. */
static int check_limit(const struct disk_options *options, struct mo_error *error) {
    double page = (double)disk_file_bytes(PAGE_HEADER_BYTES + options->page_bytes);
    if (options->limit_bytes >= page) return 0;
    return mo_error_set(error, MO_E_LIMIT, "%s: a page takes %.1f KiB, and the limit is %.1f KiB", options->folder,
                        page / 1024, options->limit_bytes / 1024);
}

int disk_open(struct disk **out, const struct disk_options *options, struct mo_error *error) {
    struct disk *disk = calloc(1, sizeof *disk);
    *out = NULL;
    if (!disk) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the cache on disk");
    disk->options = *options;
    disk->folder.fd = -1;
    disk_index_init(&disk->index);
    pthread_mutex_init(&disk->lock, NULL);
    clock_cond_init(&disk->work);
    clock_cond_init(&disk->room);
    int code = check_limit(options, error);
    if (!code) code = disk_folder_open(&disk->folder, options->folder, error);
    disk->folder.no_sync = options->no_sync;
    if (!code) disk_folder_clean(&disk->folder);
    if (!code) code = disk_list(disk, error);
    if (!code) code = take_slots(disk, error);
    if (code) {
        disk_close(disk);
        return code;
    }
    disk->next_list_s = clock_now_s() + LIST_EVERY_S;
    disk->patience_s = STOP_S;
    *out = disk;
    return 0;
}

bool disk_work(struct disk *disk) {
    return disk_read_one(disk) || disk_write_one(disk) || disk_stamp_some(disk);
}

/* Others may write to the folder, or clear it. */
static void list_again(struct disk *disk) {
    struct mo_error error;
    if (clock_now_s() < disk->next_list_s) return;
    disk_list(disk, &error); /* a folder that cannot be read now may be later */
    disk->next_list_s = clock_now_s() + LIST_EVERY_S;
}

/* Or until the folder is looked over again. */
static bool wait_for_work(struct disk *disk) {
    pthread_mutex_lock(&disk->lock);
    disk->busy_since_s = 0;
    while (!disk->stop && disk->n_writes == 0 && disk->n_wanted == 0 && disk->index.n_to_stamp == 0) {
        if (!clock_wait(&disk->work, &disk->lock, disk->next_list_s)) break;
    }
    disk->busy_since_s = clock_now_s();
    bool stop = disk->stop;
    pthread_mutex_unlock(&disk->lock);
    return !stop;
}

/* Wanted pages wait for slots: whoever takes one signals. */
static void wait_for_slots(struct disk *disk) {
    pthread_mutex_lock(&disk->lock);
    bool all_busy = true;
    for (int i = 0; i < DISK_READ_SLOTS; i++) all_busy = all_busy && disk->read_busy[i];
    if (all_busy && disk->n_wanted > 0 && disk->n_writes == 0 && disk->index.n_to_stamp == 0 && !disk->stop) {
        disk->busy_since_s = 0;
        pthread_cond_wait(&disk->work, &disk->lock);
    }
    pthread_mutex_unlock(&disk->lock);
}

static void *disk_main(void *argument) {
    struct disk *disk = argument;
    sigset_t signals;
    sigfillset(&signals); /* also SIGXFSZ: a limit of file sizes is an error like others */
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    while (wait_for_work(disk)) {
        list_again(disk);
        if (!disk_work(disk)) wait_for_slots(disk);
    }
    while (disk_write_one(disk) || disk_stamp_some(disk)) {
    }
    pthread_mutex_lock(&disk->lock);
    disk->ended = true;
    pthread_cond_signal(&disk->room);
    pthread_mutex_unlock(&disk->lock);
    return NULL;
}

int disk_start(struct disk *disk, void (*wake)(void *context), void *context, struct mo_error *error) {
    disk->wake = wake;
    disk->wake_context = context;
    int reason = pthread_create(&disk->thread, NULL, disk_main, disk);
    if (reason) return mo_error_set(error, MO_E_NO_MEMORY, "cannot start a thread: %s", strerror(reason));
    disk->started = true;
    return 0;
}

void disk_stop(struct disk *disk) {
    if (!disk->started) return;
    pthread_mutex_lock(&disk->lock);
    disk->stop = true;
    disk->wake = NULL;
    pthread_cond_signal(&disk->work);
    double until_s = clock_now_s() + disk->patience_s;
    while (!disk->ended && clock_wait(&disk->room, &disk->lock, until_s)) {
    }
    disk->hangs = !disk->ended;
    pthread_mutex_unlock(&disk->lock);
    disk->started = false;
    if (disk->hangs) {
        log_warn("%s: the disk does not answer; pages that it does not have yet are lost", disk->folder.path);
        pthread_detach(disk->thread);
    } else {
        pthread_join(disk->thread, NULL);
    }
}

void disk_close(struct disk *disk) {
    if (!disk) return;
    disk_stop(disk);
    if (disk->hangs) return; /* its thread may come back, and is left all that it knows */
    assert(!disk->loads);
    disk_folder_close(&disk->folder);
    disk_index_free(&disk->index);
    pthread_cond_destroy(&disk->work);
    pthread_cond_destroy(&disk->room);
    pthread_mutex_destroy(&disk->lock);
    free(disk->memory);
    free(disk);
}

const struct page_address *disk_key(const struct disk *disk) {
    return &disk->options.key;
}

void disk_stats_get(struct disk *disk, struct disk_stats *stats) {
    pthread_mutex_lock(&disk->lock);
    *stats = disk->stats;
    stats->files = (uint64_t)disk->index.n;
    stats->bytes = disk->index.bytes;
    stats->limit_bytes = (uint64_t)disk->options.limit_bytes;
    pthread_mutex_unlock(&disk->lock);
}

bool disk_has(struct disk *disk, const struct page_address *address) {
    return disk_find(disk, address, 1) == 1;
}

int disk_find(struct disk *disk, const struct page_address *pages, int n) {
    int found = 0;
    pthread_mutex_lock(&disk->lock);
    while (found < n && disk_index_find(&disk->index, &pages[found]) >= 0) found++;
    pthread_mutex_unlock(&disk->lock);
    return found;
}

void disk_use(struct disk *disk, const struct page_address *pages, int n) {
    int64_t now_ns = disk_now_ns();
    pthread_mutex_lock(&disk->lock);
    for (int i = n - 1; i >= 0; i--) { /* the last first, so that it is the first to go */
        int32_t at = disk_index_find(&disk->index, &pages[i]);
        if (at >= 0) disk_index_use(&disk->index, at, now_ns);
    }
    if (disk->index.n_to_stamp > 0) pthread_cond_signal(&disk->work);
    pthread_mutex_unlock(&disk->lock);
}
