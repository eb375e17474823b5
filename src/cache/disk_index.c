#include "cache/disk_index.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_CAPACITY = 1024 };

void disk_index_init(struct disk_index *index) {
    *index = (struct disk_index){.unused = -1, .newest = -1, .oldest = -1};
}

void disk_index_free(struct disk_index *index) {
    free(index->entries);
    free(index->buckets);
    disk_index_init(index);
}

/* Addresses are digests: any part of one is as good as a hash of it. */
static int32_t *bucket_of(const struct disk_index *index, const struct page_address *address) {
    uint32_t hash;
    memcpy(&hash, address->bytes, sizeof hash);
    return &index->buckets[hash & (index->n_buckets - 1)];
}

int32_t disk_index_find(const struct disk_index *index, const struct page_address *address) {
    if (index->n == 0) return -1;
    int32_t at = *bucket_of(index, address);
    while (at >= 0 && !page_address_equal(&index->entries[at].address, address)) at = index->entries[at].next;
    return at;
}

static void fill_buckets(struct disk_index *index) {
    for (uint32_t i = 0; i < index->n_buckets; i++) index->buckets[i] = -1;
    for (int32_t i = 0; i < index->capacity; i++) {
        struct disk_entry *entry = &index->entries[i];
        int32_t *first = entry->is_used ? bucket_of(index, &entry->address) : &index->unused;
        entry->next = *first;
        *first = i;
    }
}

static bool grow(struct disk_index *index) {
    int capacity = index->capacity ? 2 * index->capacity : FIRST_CAPACITY;
    struct disk_entry *entries = realloc(index->entries, (size_t)capacity * sizeof *entries);
    if (entries) index->entries = entries;
    int32_t *buckets = entries ? malloc((size_t)capacity * sizeof *buckets) : NULL;
    if (!buckets) return false;
    memset(entries + index->capacity, 0, (size_t)(capacity - index->capacity) * sizeof *entries);
    free(index->buckets);
    index->buckets = buckets;
    index->n_buckets = (uint32_t)capacity;
    index->capacity = capacity;
    fill_buckets(index);
    return true;
}

static void unlink_entry(struct disk_index *index, int32_t at) {
    struct disk_entry *entry = &index->entries[at];
    *(entry->newer < 0 ? &index->newest : &index->entries[entry->newer].older) = entry->older;
    *(entry->older < 0 ? &index->oldest : &index->entries[entry->older].newer) = entry->newer;
}

/* Right behind `newer`; -1: as the newest. */
static void link_entry(struct disk_index *index, int32_t at, int32_t newer) {
    struct disk_entry *entry = &index->entries[at];
    entry->newer = newer;
    entry->older = newer < 0 ? index->newest : index->entries[newer].older;
    *(entry->newer < 0 ? &index->newest : &index->entries[entry->newer].older) = at;
    *(entry->older < 0 ? &index->oldest : &index->entries[entry->older].newer) = at;
}

int32_t disk_index_add(struct disk_index *index, const struct disk_entry *entry, int32_t parent) {
    if (index->unused < 0 && !grow(index)) return -1;
    int32_t at = index->unused, *bucket = bucket_of(index, &entry->address);
    index->unused = index->entries[at].next;
    index->entries[at] = *entry;
    index->entries[at].is_used = true;
    index->entries[at].next = *bucket;
    *bucket = at;
    link_entry(index, at, parent);
    index->n++;
    index->bytes += entry->bytes;
    index->n_to_stamp += entry->to_stamp;
    return at;
}

void disk_index_remove(struct disk_index *index, int32_t at) {
    struct disk_entry *entry = &index->entries[at];
    int32_t *link = bucket_of(index, &entry->address);
    while (*link != at) link = &index->entries[*link].next;
    *link = entry->next;
    unlink_entry(index, at);
    index->n--;
    index->bytes -= entry->bytes;
    index->n_to_stamp -= entry->to_stamp;
    *entry = (struct disk_entry){.next = index->unused};
    index->unused = at;
}

void disk_index_use(struct disk_index *index, int32_t at, int64_t used_ns) {
    struct disk_entry *entry = &index->entries[at];
    unlink_entry(index, at);
    link_entry(index, at, -1);
    index->n_to_stamp += !entry->to_stamp;
    entry->to_stamp = true;
    entry->used_ns = used_ns;
}
