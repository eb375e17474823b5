/* base/file.h - files in, files out. Maps are read-only and shared; whole-file reads have a limit; writes go to
 * a temporary file beside the target, are synced, and then renamed, so that a reader never sees half a file. */
#ifndef MOEBIUS_BASE_FILE_H
#define MOEBIUS_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

struct file_map {
    const uint8_t *data; /* [size]; NULL for an empty file */
    size_t size;
};

int file_map_open(struct file_map *map, const char *path, struct mo_error *error);
void file_map_close(struct file_map *map); /* accepts a zeroed map */
/* MO_E_INVALID if `path`, or what it links to, is a file that is mapped now: what is read must not be written over. All that
 * write files here ask. */
int file_check_unmapped(const char *path, struct mo_error *error);
bool file_is_same(const char *a, const char *b); /* one file, whatever links lead to it; false if one is not there */

/* Reads all of `path` ("-" is stdin) into a malloc'd, NUL-terminated buffer owned by the caller. More than
 * `max_bytes` is MO_E_LIMIT. */
int file_read(const char *path, size_t max_bytes, char **data, size_t *size, struct mo_error *error);

/* Writes beside and renames. A link's file is replaced, not the link; a pipe or device is written to. */
int file_write(const char *path, const void *data, size_t size, struct mo_error *error);

/* All of it, to whatever `fd` is: a pipe that another program has set to O_NONBLOCK is waited for. -1: errno says why. Safe in a
 * handler of signals. */
int file_write_all(int fd, const void *data, size_t size);
/* What `path` is called is only certain when its folder is on the disk; there is no help where that fails. */
void file_sync_folder(const char *path);

bool file_exists(const char *path);
bool file_is_directory(const char *path);

#endif
