/* cache/disk_load.c - pages on their way into memory. A load is read page by page, in order, into slots that its owner empties;
 * the first that is missing or wrong ends it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "cache/disk_priv.h"

static const double NEW_SHARE = 0.2; /* of the latest page in the measured speed */
/* What was measured counts half after so long: a disk that was slow once is tried again. */
static const double FADE_S = 60;

struct disk_load *disk_load_begin(struct disk *disk, const struct page_address *pages, const int32_t *tokens,
                                  uint64_t root, int first, int n) {
    struct disk_load *load = calloc(1, sizeof *load);
    struct page_id *ids = calloc((size_t)n, sizeof *ids);
    if (!load || !ids) {
        free(load);
        free(ids);
        return NULL;
    }
    for (int i = 0; i < n; i++) {
        int page = first + i;
        ids[i] = (struct page_id){
            .parent = *(pages + page - 1), .address = pages[page], .root = root, .depth = (uint32_t)page};
        memcpy(ids[i].tokens, tokens + (size_t)page * PAGE_TOKENS_MAX, sizeof ids[i].tokens);
    }
    *load = (struct disk_load){.disk = disk, .ids = ids, .n = n};
    pthread_mutex_lock(&disk->lock);
    struct disk_load **last = &disk->loads;
    while (*last) last = &(*last)->next;
    *last = load;
    disk->n_wanted += n;
    pthread_cond_signal(&disk->work);
    pthread_mutex_unlock(&disk->lock);
    return load;
}

const void *disk_load_page(struct disk_load *load) {
    struct disk *disk = load->disk;
    pthread_mutex_lock(&disk->lock);
    bool there = load->n_taken < load->n_read;
    const void *page = there ? disk->reads[load->slots[load->n_taken % DISK_READ_SLOTS]].payload : NULL;
    pthread_mutex_unlock(&disk->lock);
    return page;
}

/* Under the lock. */
static void give_slot_back(struct disk_load *load) {
    load->disk->read_busy[load->slots[load->n_taken++ % DISK_READ_SLOTS]] = false;
    pthread_cond_signal(&load->disk->work);
}

void disk_load_take(struct disk_load *load) {
    pthread_mutex_lock(&load->disk->lock);
    give_slot_back(load);
    pthread_mutex_unlock(&load->disk->lock);
}

bool disk_load_ended(struct disk_load *load) {
    struct disk *disk = load->disk;
    pthread_mutex_lock(&disk->lock);
    bool ended = load->n_taken == load->n_read && (load->failed || load->n_read == load->n);
    pthread_mutex_unlock(&disk->lock);
    return ended;
}

/* Under the lock: nothing more of it is wanted. */
static void cut_short(struct disk_load *load) {
    if (!load->failed) load->disk->n_wanted -= load->n - load->n_read;
    load->failed = true;
}

/* Under the lock. */
static void remove_load(struct disk_load *load) {
    struct disk_load **link = &load->disk->loads;
    while (*link != load) link = &(*link)->next;
    *link = load->next;
    free(load->ids);
    free(load);
}

void disk_load_end(struct disk_load *load) {
    struct disk *disk = load->disk;
    pthread_mutex_lock(&disk->lock);
    cut_short(load);
    while (load->n_taken < load->n_read) give_slot_back(load);
    load->left = true;
    if (!load->at_work) remove_load(load);
    pthread_mutex_unlock(&disk->lock);
}

double disk_load_s(struct disk *disk, int n) {
    pthread_mutex_lock(&disk->lock);
    double now_s = clock_now_s(), page_s = disk->page_s * exp2((disk->page_at_s - now_s) / FADE_S);
    double hangs_s = disk->busy_since_s > 0 ? now_s - disk->busy_since_s : 0;
    double s = page_s * (disk->n_wanted + n) + hangs_s;
    pthread_mutex_unlock(&disk->lock);
    return s;
}

/* ---- the cache's thread ---- */

static int free_slot(const struct disk *disk) {
    for (int i = 0; i < DISK_READ_SLOTS; i++) {
        if (!disk->read_busy[i]) return i;
    }
    return -1;
}

/* A load that wants a page, and the slot for it. */
static struct disk_load *begin_read(struct disk *disk, int *slot) {
    pthread_mutex_lock(&disk->lock);
    struct disk_load *load = disk->loads;
    while (load && (load->failed || load->n_read == load->n)) load = load->next;
    *slot = load ? free_slot(disk) : -1;
    if (*slot < 0) load = NULL;
    if (load) {
        disk->read_busy[*slot] = true;
        load->at_work = true;
    }
    pthread_mutex_unlock(&disk->lock);
    return load;
}

static int read_page(struct disk *disk, const struct page_id *id, void *payload, struct mo_error *error) {
    uint8_t header[PAGE_HEADER_BYTES];
    char name[PAGE_NAME_MAX], path[sizeof disk->folder.path + PAGE_NAME_MAX];
    size_t bytes = disk->options.page_bytes;
    page_name_write(&id->address, id->depth, name);
    int code = disk_folder_read(&disk->folder, name, header, payload, bytes, error);
    if (code) return code;
    snprintf(path, sizeof path, "%s/%s", disk->folder.path, name);
    return page_check(header, payload, &disk->options.key, bytes, id, path, error);
}

static void note_speed(struct disk *disk, double s) {
    disk->page_s = disk->page_s > 0 ? disk->page_s + NEW_SHARE * (s - disk->page_s) : s;
    disk->page_at_s = clock_now_s();
    disk->stats.read_s += s;
    disk->stats.read_pages++;
    disk->stats.read_bytes += PAGE_HEADER_BYTES + disk->options.page_bytes;
}

static void end_read(struct disk *disk, struct disk_load *load, int slot, bool good, double s) {
    pthread_mutex_lock(&disk->lock);
    if (good) note_speed(disk, s);
    load->at_work = false;
    if (!good) cut_short(load);
    if (good && !load->left) {
        load->slots[load->n_read++ % DISK_READ_SLOTS] = slot;
        disk->n_wanted--;
    } else {
        disk->read_busy[slot] = false;
    }
    if (load->left) remove_load(load);
    if (disk->wake) disk->wake(disk->wake_context);
    pthread_mutex_unlock(&disk->lock);
}

bool disk_read_one(struct disk *disk) {
    struct mo_error error = {0};
    int slot;
    struct disk_load *load = begin_read(disk, &slot);
    if (!load) return false;
    const struct page_id id = load->ids[load->n_read];
    double start_s = clock_now_s();
    int code = read_page(disk, &id, disk->reads[slot].payload, &error);
    if (code) disk_forget(disk, &id, code, &error);
    end_read(disk, load, slot, code == 0, clock_now_s() - start_s);
    return true;
}
