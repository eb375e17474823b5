/* cache/disk_write.c - pages on their way to the disk, what has to go for them, and the folder's listing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "cache/disk_priv.h"

enum {
    SILENT_S = 60,              /* after an error nothing is written for so long */
    STAMPS = 64,                /* files a call */
    LOOKED_AT = 4096,           /* entries a call */
    USED_APART_NS = 1000000000, /* a file's time that is so much later than ours: somebody else used it */
};

/* ---- the engine's thread ---- */

/* Under the lock: on disk, or on the way there. */
static bool is_there(const struct disk *disk, const struct page_address *address) {
    bool there = disk_index_find(&disk->index, address) >= 0;
    for (int i = 0; i < disk->n_writes && !there; i++) {
        const struct disk_slot *slot = &disk->writes[(disk->write_first + i) % DISK_WRITE_SLOTS];
        there = page_address_equal(&slot->id.address, address);
    }
    return there;
}

bool disk_wants(struct disk *disk, const struct page_address *address, const struct page_address *parent,
                uint32_t depth) {
    pthread_mutex_lock(&disk->lock);
    bool wants = !is_there(disk, address) && (depth == 0 || is_there(disk, parent));
    pthread_mutex_unlock(&disk->lock);
    return wants;
}

/* Under the lock: an error is not long ago. */
static bool is_silent(const struct disk *disk) {
    return disk->silent_until_s > 0 && clock_now_s() < disk->silent_until_s;
}

void *disk_put_begin(struct disk *disk) {
    pthread_mutex_lock(&disk->lock);
    void *page = NULL;
    if (disk->n_writes < DISK_WRITE_SLOTS && !is_silent(disk)) {
        page = disk->writes[(disk->write_first + disk->n_writes) % DISK_WRITE_SLOTS].payload;
    }
    pthread_mutex_unlock(&disk->lock);
    return page;
}

void disk_put_end(struct disk *disk, const struct page_id *id) {
    if (!id) return;
    pthread_mutex_lock(&disk->lock);
    disk->writes[(disk->write_first + disk->n_writes++) % DISK_WRITE_SLOTS].id = *id;
    pthread_cond_signal(&disk->work);
    pthread_mutex_unlock(&disk->lock);
}

bool disk_put_wait(struct disk *disk, double limit_s) {
    double until_s = clock_now_s() + limit_s;
    pthread_mutex_lock(&disk->lock);
    while (disk->n_writes == DISK_WRITE_SLOTS && disk->started && clock_wait(&disk->room, &disk->lock, until_s)) {
    }
    bool room = disk->n_writes < DISK_WRITE_SLOTS && !is_silent(disk);
    pthread_mutex_unlock(&disk->lock);
    return room;
}

/* ---- the cache's thread ---- */

void disk_forget(struct disk *disk, const struct page_id *id, int code, const struct mo_error *why) {
    char name[PAGE_NAME_MAX];
    bool wrong = code == MO_E_CORRUPT || code == MO_E_UNSUPPORTED;
    page_name_write(&id->address, id->depth, name);
    if (code != MO_E_NOT_FOUND) log_warn("%s: %s", why->message, wrong ? "removed from the prefix cache" : "computed");
    if (wrong) disk_folder_remove(&disk->folder, name);
    pthread_mutex_lock(&disk->lock);
    int32_t at = disk_index_find(&disk->index, &id->address);
    if (at >= 0) disk_index_remove(&disk->index, at);
    disk->stats.refused += wrong;
    pthread_mutex_unlock(&disk->lock);
}

/* The page that goes first: its bytes, or -1 if there is none. */
static double remove_oldest(struct disk *disk) {
    char name[PAGE_NAME_MAX];
    pthread_mutex_lock(&disk->lock);
    int32_t at = disk->index.oldest;
    double bytes = at >= 0 ? (double)disk->index.entries[at].bytes : -1;
    if (at >= 0) {
        page_name_write(&disk->index.entries[at].address, disk->index.entries[at].depth, name);
        disk_index_remove(&disk->index, at);
        disk->stats.removed++;
    }
    pthread_mutex_unlock(&disk->lock);
    if (at >= 0) disk_folder_remove(&disk->folder, name);
    return bytes;
}

static bool is_oldest(struct disk *disk, const struct page_address *address) {
    pthread_mutex_lock(&disk->lock);
    int32_t at = disk->index.oldest;
    bool is = at >= 0 && page_address_equal(&disk->index.entries[at].address, address);
    pthread_mutex_unlock(&disk->lock);
    return is;
}

static double bytes_kept(struct disk *disk) {
    pthread_mutex_lock(&disk->lock);
    double bytes = (double)disk->index.bytes;
    pthread_mutex_unlock(&disk->lock);
    return bytes;
}

enum room { ROOM, ROOM_FOR_OTHERS, ROOM_FOR_NOBODY };

/* Whether a page of `bytes` may be written, when what is older has gone. Not for a page whose own beginning would have to go.
 * The file system is asked once: it may need its time to count what was removed, and the whole cache would go meanwhile. */
static enum room make_room(struct disk *disk, const struct page_address *parent, double bytes) {
    double room = disk_folder_room(&disk->folder);
    while (bytes_kept(disk) + bytes > disk->options.limit_bytes || room < bytes) {
        if (is_oldest(disk, parent)) return ROOM_FOR_OTHERS;
        double removed = remove_oldest(disk);
        if (removed < 0) return ROOM_FOR_NOBODY;
        room += removed;
    }
    return ROOM;
}

/* Said once, until something can be written again. */
static void tell(struct disk *disk, const char *why) {
    pthread_mutex_lock(&disk->lock);
    disk->silent_until_s = clock_now_s() + SILENT_S;
    pthread_mutex_unlock(&disk->lock);
    if (!disk->told) log_warn("%s: no pages are added to the prefix cache until that changes", why);
    disk->told = true;
}

static int write_file(struct disk *disk, const struct disk_slot *slot, struct mo_error *error) {
    uint8_t header[PAGE_HEADER_BYTES];
    char name[PAGE_NAME_MAX];
    size_t bytes = disk->options.page_bytes;
    page_header_write(&disk->options.key, &slot->id, slot->payload, bytes, header);
    page_name_write(&slot->id.address, slot->id.depth, name);
    return disk_folder_write(&disk->folder, name, header, slot->payload, bytes, error);
}

static bool write_page(struct disk *disk, const struct disk_slot *slot, double bytes) {
    struct mo_error error = {0};
    enum room room = make_room(disk, &slot->id.parent, bytes);
    if (room == ROOM_FOR_OTHERS) return false;
    if (room == ROOM_FOR_NOBODY) {
        snprintf(error.message, sizeof error.message,
                 "%s: the limit of %.2f GiB, or the space that others must have, leaves no room", disk->folder.path,
                 disk->options.limit_bytes / (1 << 30));
        tell(disk, error.message);
        return false;
    }
    int code = write_file(disk, slot, &error);
    if (code && code != MO_E_NOT_FOUND)
        tell(disk, error.message); /* not found: somebody cleaned up; the next one will do */
    if (!code) disk->told = false;
    return code == 0;
}

/* Whether the page is worth its place: new, and the one before it is there. */
static bool is_wanted(struct disk *disk, const struct page_id *id) {
    return !disk_has(disk, &id->address) && (id->depth == 0 || disk_has(disk, &id->parent));
}

static void add_entry(struct disk *disk, const struct page_id *id, uint64_t bytes) {
    struct disk_entry entry = {
        .address = id->address, .depth = id->depth, .bytes = bytes, .used_ns = disk_now_ns(), .seen = true};
    int32_t parent = disk_index_find(&disk->index, &id->parent);
    if (disk_index_find(&disk->index, &id->address) < 0) disk_index_add(&disk->index, &entry, parent);
    disk->stats.written_pages++;
    disk->stats.written_bytes += PAGE_HEADER_BYTES + disk->options.page_bytes;
}

bool disk_write_one(struct disk *disk) {
    pthread_mutex_lock(&disk->lock);
    struct disk_slot *slot = disk->n_writes > 0 ? &disk->writes[disk->write_first] : NULL;
    pthread_mutex_unlock(&disk->lock);
    if (!slot) return false;
    uint64_t bytes = disk_file_bytes(PAGE_HEADER_BYTES + disk->options.page_bytes);
    bool wanted = is_wanted(disk, &slot->id), written = wanted && write_page(disk, slot, (double)bytes);
    pthread_mutex_lock(&disk->lock);
    if (written) add_entry(disk, &slot->id, bytes);
    disk->stats.forgotten += wanted && !written;
    disk->write_first = (disk->write_first + 1) % DISK_WRITE_SLOTS;
    disk->n_writes--;
    pthread_cond_signal(&disk->room);
    if (disk->wake) disk->wake(disk->wake_context);
    pthread_mutex_unlock(&disk->lock);
    return true;
}

/* Files that were used get the time of it, some at a time: after a restart the order is still known. */
bool disk_stamp_some(struct disk *disk) {
    struct disk_file files[STAMPS];
    char name[PAGE_NAME_MAX];
    int n = 0;
    pthread_mutex_lock(&disk->lock);
    struct disk_index *index = &disk->index;
    bool any = index->n_to_stamp > 0;
    for (int i = 0; any && i < LOOKED_AT && n < STAMPS && index->n_to_stamp > 0; i++) {
        if (disk->stamped >= index->capacity) disk->stamped = 0;
        struct disk_entry *entry = &index->entries[disk->stamped++];
        if (!entry->to_stamp) continue;
        entry->to_stamp = false;
        index->n_to_stamp--;
        files[n++] = (struct disk_file){.address = entry->address, .depth = entry->depth, .used_ns = entry->used_ns};
    }
    pthread_mutex_unlock(&disk->lock);
    for (int i = 0; i < n; i++) {
        page_name_write(&files[i].address, files[i].depth, name);
        disk_folder_stamp(&disk->folder, name, files[i].used_ns);
    }
    return any;
}

/* ---- the folder's listing ---- */

struct listing {
    struct disk_file *files; /* [capacity] */
    size_t n, capacity;
    int64_t now_ns;
    bool failed;
};

static void note_file(void *context, const struct disk_file *file) {
    struct listing *l = context;
    if (l->n == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 1024;
        struct disk_file *files = realloc(l->files, capacity * sizeof *files);
        l->failed = l->failed || !files;
        if (!files) return;
        l->files = files;
        l->capacity = capacity;
    }
    l->files[l->n] = *file;
    if (file->used_ns > l->now_ns) l->files[l->n].used_ns = l->now_ns; /* a clock was wrong */
    l->n++;
}

/* Used longest ago first; of the same time, the end before its beginning. */
static int compare_files(const void *a, const void *b) {
    const struct disk_file *x = a, *y = b;
    if (x->used_ns != y->used_ns) return x->used_ns < y->used_ns ? -1 : 1;
    return x->depth == y->depth ? 0 : x->depth > y->depth ? -1 : 1;
}

/* Under the lock. */
static bool merge_file(struct disk_index *index, const struct disk_file *file) {
    int32_t at = disk_index_find(index, &file->address);
    if (at < 0) {
        struct disk_entry entry = {.address = file->address, .depth = file->depth, .bytes = file->bytes};
        entry.used_ns = file->used_ns;
        at = disk_index_add(index, &entry, -1);
        if (at < 0) return false;
    } else if (file->used_ns > index->entries[at].used_ns + USED_APART_NS) {
        disk_index_use(index, at, file->used_ns);
    }
    index->entries[at].seen = true;
    return true;
}

/* Entries without a file go. Called before the first of the files is looked for, and after the last was. */
static void sweep(struct disk *disk, bool remove) {
    struct disk_index *index = &disk->index;
    for (int32_t first = 0; first < index->capacity; first += LOOKED_AT) {
        pthread_mutex_lock(&disk->lock);
        for (int32_t i = first; i < index->capacity && i < first + LOOKED_AT; i++) {
            if (remove && index->entries[i].is_used && !index->entries[i].seen) disk_index_remove(index, i);
            index->entries[i].seen = false;
        }
        pthread_mutex_unlock(&disk->lock);
    }
}

int disk_list(struct disk *disk, struct mo_error *error) {
    struct listing l = {.now_ns = disk_now_ns()};
    sweep(disk, false);
    int code = disk_folder_list(&disk->folder, note_file, &l, error);
    if (!code && l.n) qsort(l.files, l.n, sizeof *l.files, compare_files);
    for (size_t i = 0; i < l.n && !code;) {
        pthread_mutex_lock(&disk->lock); /* a few at a time: the engine has questions too */
        for (int few = 0; few < STAMPS && i < l.n; few++) l.failed |= !merge_file(&disk->index, &l.files[i++]);
        pthread_mutex_unlock(&disk->lock);
    }
    if (!code && l.failed)
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for the list of %s", disk->folder.path);
    if (!code) sweep(disk, true);
    while (!code && bytes_kept(disk) > disk->options.limit_bytes) remove_oldest(disk);
    free(l.files);
    return code;
}
