#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Maps that are open, so that a fault in one can be told from a bug. The list is changed under the lock; the handler only
 * reads, in the thread that faulted inside of a map that is certainly still in the list. */
struct guarded {
    struct guarded *next;
    const uint8_t *data;
    size_t size;
    dev_t device;
    ino_t inode;
    char path[];
};

static pthread_mutex_t g_guard_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(struct guarded *) g_guarded;

static void write_text(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0) return; /* nothing else can be done here */
}

/* A file that is cut short, or whose disk fails, while it is mapped: the bytes are gone, but the reason need not be. */
static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    const uint8_t *at = info->si_addr;
    for (const struct guarded *map = atomic_load(&g_guarded); map; map = map->next) {
        if (at < map->data || at >= map->data + map->size) continue;
        write_text("moebius: error: ");
        write_text(map->path);
        write_text(": the file was cut short, or its disk failed, while it was in use\n");
        _exit(1);
    }
    signal(number, SIG_DFL);
    raise(number);
}

/* Without memory for it, a map goes unguarded: only messages would be missing. */
static void guard_map(const struct file_map *map, const struct stat *info, const char *path) {
    struct guarded *guarded = malloc(sizeof *guarded + strlen(path) + 1);
    if (!guarded) return;
    *guarded = (struct guarded){.data = map->data, .size = map->size, .device = info->st_dev, .inode = info->st_ino};
    memcpy(guarded->path, path, strlen(path) + 1);
    pthread_mutex_lock(&g_guard_lock);
    if (!atomic_load(&g_guarded)) {
        struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
        sigaction(SIGBUS, &action, NULL);
    }
    guarded->next = atomic_load(&g_guarded);
    atomic_store(&g_guarded, guarded);
    pthread_mutex_unlock(&g_guard_lock);
}

static void unguard_map(const struct file_map *map) {
    pthread_mutex_lock(&g_guard_lock);
    struct guarded *before = NULL, *at = atomic_load(&g_guarded);
    for (; at && at->data != map->data; at = at->next) before = at;
    if (at && before) before->next = at->next;
    if (at && !before) atomic_store(&g_guarded, at->next);
    free(at);
    pthread_mutex_unlock(&g_guard_lock);
}

int file_map_open(struct file_map *map, const char *path, struct mo_error *error) {
    *map = (struct file_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe would wait for a writer */
    if (fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    int code = 0;
    if (fstat(fd, &info)) {
        code = mo_error_set(error, MO_E_IO, "%s: cannot stat: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        code = mo_error_set(error, MO_E_IO, "%s: not a regular file", path);
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            code = mo_error_set(error, MO_E_IO, "%s: cannot map %lld bytes: %s", path, (long long)info.st_size,
                                strerror(errno));
        } else {
            map->data = data;
            map->size = (size_t)info.st_size;
            guard_map(map, &info, path);
        }
    }
    close(fd);
    return code;
}

void file_map_close(struct file_map *map) {
    if (map->data) unguard_map(map);
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (struct file_map){0};
}

int file_check_unmapped(const char *path, struct mo_error *error) {
    struct stat info;
    int code = 0;
    if (stat(path, &info)) return 0;
    pthread_mutex_lock(&g_guard_lock);
    for (const struct guarded *map = atomic_load(&g_guarded); map && !code; map = map->next) {
        if (map->device != info.st_dev || map->inode != info.st_ino) continue;
        code = mo_error_set(error, MO_E_INVALID, "%s: expected a file to be written, found one that is being read (%s)",
                            path, map->path);
    }
    pthread_mutex_unlock(&g_guard_lock);
    return code;
}

bool file_is_same(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Appends everything that is left in `fd`, growing the buffer by doubling. */
static int read_all(int fd, const char *path, size_t max_bytes, char **data, size_t *size, struct mo_error *error) {
    size_t capacity = 1 << 16, n = 0;
    char *buffer = malloc(capacity);
    while (buffer) {
        if (n + 1 == capacity) {
            char *grown = realloc(buffer, capacity * 2);
            if (!grown) break;
            buffer = grown;
            capacity *= 2;
        }
        ssize_t got = read(fd, buffer + n, capacity - 1 - n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            int code = mo_error_set(error, MO_E_IO, "%s: cannot read: %s", path, strerror(errno));
            free(buffer);
            return code;
        }
        n += (size_t)got;
        if (n > max_bytes) {
            free(buffer);
            return mo_error_set(error, MO_E_LIMIT, "%s: larger than the limit of %zu bytes", path, max_bytes);
        }
        if (got == 0) {
            buffer[n] = 0;
            *data = buffer;
            *size = n;
            return 0;
        }
    }
    free(buffer);
    return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for %zu bytes", path, capacity);
}

int file_read(const char *path, size_t max_bytes, char **data, size_t *size, struct mo_error *error) {
    bool is_stdin = strcmp(path, "-") == 0;
    int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot open: %s", path, strerror(errno));
    int code = read_all(fd, is_stdin ? "standard input" : path, max_bytes, data, size, error);
    if (!is_stdin) close(fd);
    return code;
}

int file_write_all(int fd, const void *data, size_t size) {
    for (const char *at = data; size > 0;) {
        ssize_t put = write(fd, at, size);
        if (put < 0 && errno == EAGAIN) {
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
            continue;
        }
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return -1;
        at += put;
        size -= (size_t)put;
    }
    return 0;
}

void file_sync_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    free(folder);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

/* A pipe or a device cannot be replaced by a file, and a link to nothing names a file to be made: they are written to. */
static int write_in_place(const char *path, const void *data, size_t size, struct mo_error *error) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot open: %s", path, strerror(errno));
    bool failed = file_write_all(fd, data, size) != 0;
    int reason = errno;
    close(fd);
    if (!failed) return 0;
    return mo_error_set(error, MO_E_IO, "%s: cannot write %zu bytes: %s", path, size, strerror(reason));
}

/* Writes to `beside`, and gives it the name `path` when everything is on the disk. */
static int write_and_rename(const char *path, const char *beside, const void *data, size_t size,
                            struct mo_error *error) {
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot create: %s", beside, strerror(errno));
    struct stat old;
    if (stat(path, &old) == 0) fchmod(fd, old.st_mode & 07777); /* what others may not read stays so */
    bool failed = file_write_all(fd, data, size) != 0 || fsync(fd) != 0;
    int reason = errno;
    if (close(fd) != 0 && !failed) {
        failed = true;
        reason = errno;
    }
    if (!failed && rename(beside, path) != 0) {
        failed = true;
        reason = errno;
    }
    if (!failed) return 0;
    unlink(beside);
    return mo_error_set(error, MO_E_IO, "%s: cannot write %zu bytes: %s", path, size, strerror(reason));
}

int file_write(const char *path, const void *data, size_t size, struct mo_error *error) {
    struct stat info;
    bool is_special = stat(path, &info) == 0 ? !S_ISREG(info.st_mode) : lstat(path, &info) == 0;
    if (is_special) return write_in_place(path, data, size, error);
    int code = file_check_unmapped(path, error);
    if (code) return code;
    char *target = realpath(path, NULL); /* the file that a link names; NULL if there is none yet */
    char beside[4200];
    int n = snprintf(beside, sizeof beside, "%s.%ld.tmp", target ? target : path, (long)getpid());
    code = n < 0 || (size_t)n >= sizeof beside ? mo_error_set(error, MO_E_INVALID, "%s: path too long", path)
                                               : write_and_rename(target ? target : path, beside, data, size, error);
    free(target);
    return code;
}

bool file_exists(const char *path) {
    return access(path, F_OK) == 0;
}

bool file_is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}
