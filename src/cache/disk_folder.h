/* cache/disk_folder.h - the files of a folder of pages: listed, written beside and renamed, read whole. Knows names and bytes,
 * nothing of what they are worth. Several processes may use one folder: names say what is in a file, a file appears whole or
 * not at all, and who reads one that another removes reads on.
 *
 * A page is a file of its own. A beginning may fork after any page, each page goes alone when its turn comes, and a sequence
 * that grows adds files and changes none: runs of pages in one file would have to be written again or be there twice. At 1 to
 * 5 MB a page (V2-Lite, V3) opening one more file is nothing beside reading it, and names are all that the index needs.
 * The cache's thread, and whoever opens it. Includes: page_file.h. */
#ifndef MOEBIUS_CACHE_DISK_FOLDER_H
#define MOEBIUS_CACHE_DISK_FOLDER_H

#include "cache/page_file.h"

struct disk_folder {
    char path[4096];
    int fd;
    bool no_sync;
    unsigned n_written; /* names of files on their way */
};

struct disk_file {
    struct page_address address;
    uint32_t depth;
    uint64_t bytes;  /* that it takes on disk */
    int64_t used_ns; /* its time of change */
};
typedef void disk_file_found(void *context, const struct disk_file *file);

/* Makes the folder (for this user alone) if it is not there, and finds out whether files can be written. */
int disk_folder_open(struct disk_folder *folder, const char *path, struct mo_error *error);
void disk_folder_close(struct disk_folder *folder); /* accepts one that was not opened: fd -1 */
/* Removes what processes that are no more left half written. Returns how many. */
int disk_folder_clean(const struct disk_folder *folder);
/* Every page, in any order. Other files are left alone. */
int disk_folder_list(const struct disk_folder *folder, disk_file_found *found, void *context, struct mo_error *error);
/* MO_E_NOT_FOUND: somebody removed the file before it had its name. */
int disk_folder_write(struct disk_folder *folder, const char *name, const uint8_t header[PAGE_HEADER_BYTES],
                      const void *payload, size_t bytes, struct mo_error *error);
/* MO_E_NOT_FOUND; MO_E_CORRUPT if it has another size. */
int disk_folder_read(const struct disk_folder *folder, const char *name, uint8_t header[PAGE_HEADER_BYTES],
                     void *payload, size_t bytes, struct mo_error *error);
void disk_folder_remove(const struct disk_folder *folder, const char *name);
/* The file was used then. */
void disk_folder_stamp(const struct disk_folder *folder, const char *name, int64_t used_ns);
/* Bytes that may still be written before the file system is too full for everybody else. */
double disk_folder_room(const struct disk_folder *folder);
/* What a file of so many bytes takes. */
uint64_t disk_file_bytes(uint64_t bytes);

#endif
