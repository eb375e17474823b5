#include "broken_disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "cache/disk_priv.h"
#include "fake_backend.h"

enum { BLOCK_BYTES = 4096 };

static bool chance(const struct broken_disk *broken, int percent) {
    return broken->below(100) < percent;
}

static const char *path_of(const struct broken_disk *broken, const struct disk_entry *entry) {
    static char path[PAGE_NAME_MAX + sizeof broken->folder + 1];
    char name[PAGE_NAME_MAX];
    page_name_write(&entry->address, entry->depth, name);
    snprintf(path, sizeof path, "%s/%s", broken->folder, name);
    return path;
}

bool broken_disk_leave(struct broken_disk *broken) {
    struct disk_stats stats;
    if (!broken->disk) return true;
    const struct disk_index *index = &broken->disk->index;
    disk_stats_get(broken->disk, &stats);
    broken->n_refused += stats.refused;
    broken->n_removed += stats.removed;
    for (int i = 0; i < index->capacity; i++) {
        if (index->entries[i].is_used) unlink(path_of(broken, &index->entries[i]));
    }
    disk_close(broken->disk);
    broken->disk = NULL;
    return rmdir(broken->folder) == 0;
}

static void open_new(struct broken_disk *broken) {
    struct disk_options options = {.folder = broken->folder, .page_bytes = FAKE_PAGE_BYTES, .no_sync = true};
    struct mo_error error;
    bool has_memory = access("/dev/shm", W_OK) == 0;
    snprintf(broken->folder, sizeof broken->folder, "%s/moebius-sim-XXXXXX", has_memory ? "/dev/shm" : "/tmp");
    if (!mkdtemp(broken->folder)) abort();
    options.limit_bytes = BLOCK_BYTES * (chance(broken, 50) ? 5 + broken->below(30) : 2000);
    if (disk_open(&broken->disk, &options, &error)) abort();
    broken->epochs = 1 + broken->below(6);
}

struct disk *broken_disk_take(struct broken_disk *broken) {
    if (broken->epochs-- <= 0 && !broken_disk_leave(broken)) abort();
    if (!broken->disk) open_new(broken);
    broken->busy = chance(broken, 15) ? 1 : 30 + broken->below(70);
    return broken->disk;
}

/* A page that is on its way, if there is one, or any other. */
static const struct disk_entry *any_file(const struct broken_disk *broken) {
    const struct disk_index *index = &broken->disk->index;
    const struct disk_load *load = broken->disk->loads;
    int32_t at = index->capacity > 0 ? broken->below(index->capacity) : -1;
    if (load && load->n_read < load->n) at = disk_index_find(index, &load->ids[load->n_read].address);
    return at >= 0 && index->entries[at].is_used ? &index->entries[at] : NULL;
}

static void damage(struct broken_disk *broken) {
    const struct disk_entry *entry = any_file(broken);
    uint8_t byte = 0;
    int size = PAGE_HEADER_BYTES + FAKE_PAGE_BYTES, at = broken->below(size);
    if (!entry) return;
    broken->n_damaged++;
    if (chance(broken, 30)) {
        unlink(path_of(broken, entry));
        return;
    }
    int file = open(path_of(broken, entry), O_RDWR);
    if (file < 0) return; /* removed before */
    if (chance(broken, 30)) {
        if (ftruncate(file, at)) abort();
    } else if (pread(file, &byte, 1, at) == 1) { /* it may have been cut before */
        byte = (uint8_t)(byte ^ (1 << broken->below(8)));
        if (pwrite(file, &byte, 1, at) != 1) abort();
    }
    close(file);
}

bool broken_disk_step(struct broken_disk *broken) {
    struct disk_stats stats;
    while (chance(broken, broken->busy) && disk_work(broken->disk)) {
    }
    if (broken->below(broken->disk->loads ? 5 : 100) == 0) damage(broken);
    disk_stats_get(broken->disk, &stats);
    return stats.bytes <= stats.limit_bytes && stats.bytes == BLOCK_BYTES * stats.files;
}
