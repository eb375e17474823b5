#include "hub/fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/text.h"

enum { READ_BYTES = 1 << 20, LONGEST_PAUSE_S = 30, LONGEST_ASKED_S = 600 };

/* Why our side ended a transfer. */
enum reason { NO_REASON, CHANGED, OTHER_PART, TOO_LONG, CANNOT_WRITE };

struct fetch {
    struct hub_pull *pull;
    struct hub_http *http;
    const struct hub_file *file;
    struct mo_error *error;
    char path[HUB_PATH_BYTES], incomplete[HUB_PATH_BYTES], *url;
    int lock, fd;
    EVP_MD_CTX *hash; /* of the first `offset` bytes */
    int64_t offset;
    bool is_begun; /* a byte of this try has come */
    enum reason reason;
};

__attribute__((format(printf, 2, 3))) static void note(struct hub_pull *pull, const char *format, ...) {
    char line[1500];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    pull->note(pull->context, line);
}

static bool pause_for(struct hub_pull *pull, double seconds) {
    const struct timespec slice = {.tv_nsec = 50000000};
    for (double end = clock_now_s() + seconds; clock_now_s() < end;) {
        if (atomic_load(&pull->stop)) return false;
        nanosleep(&slice, NULL);
    }
    return !atomic_load(&pull->stop);
}

bool hub_retry_wait(struct hub_pull *pull, struct hub_retry *retry, const struct hub_answer *answer, const char *what,
                    const struct mo_error *error) {
    if (retry->n >= retry->most || answer->wait_s > LONGEST_ASKED_S) return false;
    double seconds = retry->n < 7 ? 0.25 * (1 << retry->n) : LONGEST_PAUSE_S;
    if ((double)answer->wait_s > seconds) seconds = (double)answer->wait_s;
    retry->n++;
    note(pull, "%s: %s; again in %.3g s (%d of %d)", what, error->message, seconds, retry->n, retry->most);
    return pause_for(pull, seconds);
}

/* git hashes a small header before the content. */
static int begin_hash(struct fetch *f) {
    char header[40];
    int n = snprintf(header, sizeof header, "blob %lld", (long long)f->file->size) + 1;
    if (EVP_DigestInit_ex(f->hash, f->file->is_sha256 ? EVP_sha256() : EVP_sha1(), NULL) &&
        (f->file->is_sha256 || EVP_DigestUpdate(f->hash, header, (size_t)n)))
        return 0;
    return mo_error_set(f->error, MO_E_INTERNAL, "libcrypto has no %s", f->file->is_sha256 ? "SHA-256" : "SHA-1");
}

static int start_over(struct fetch *f) {
    atomic_fetch_sub(&f->pull->n_there, f->offset);
    f->offset = 0;
    if (ftruncate(f->fd, 0))
        return mo_error_set(f->error, MO_E_IO, "cannot empty %s: %s", f->incomplete, strerror(errno));
    return begin_hash(f);
}

static bool is_changed(const struct fetch *f, const struct hub_answer *answer) {
    size_t n = strlen(f->file->hash);
    return hub_is_hash(answer->etag, n) && strcmp(answer->etag, f->file->hash) != 0;
}

/* Before the first byte of a try: is it what was asked for? */
static enum reason check_begin(struct fetch *f, const struct hub_answer *answer) {
    if (is_changed(f, answer)) return CHANGED;
    if (answer->status == 206) return answer->range_begin == f->offset ? NO_REASON : OTHER_PART;
    if (f->offset == 0) return NO_REASON;
    note(f->pull, "%s: the server cannot go on in the middle; from the beginning", f->file->path);
    return start_over(f) ? CANNOT_WRITE : NO_REASON;
}

static int take(void *context, const struct hub_answer *answer, const void *data, size_t size) {
    struct fetch *f = context;
    if (!f->is_begun) f->reason = check_begin(f, answer);
    f->is_begun = true;
    if (!f->reason && (int64_t)size > f->file->size - f->offset) f->reason = TOO_LONG;
    if (f->reason) return 1;
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(f->fd, (const char *)data + done, size - done, f->offset + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            f->reason = CANNOT_WRITE;
            mo_error_set(f->error, MO_E_IO, "cannot write %s: %s; what is there stays, the same command goes on",
                         f->incomplete, n < 0 ? strerror(errno) : "the disk takes no more");
            return 1;
        }
        done += (size_t)n;
    }
    EVP_DigestUpdate(f->hash, data, size);
    f->offset += (int64_t)size;
    atomic_fetch_add(&f->pull->n_there, (long long)size);
    atomic_fetch_add(&f->pull->n_received, (long long)size);
    return 0;
}

/* One GET. 1: all is there; 0: try again, the error says why; negative: give up. */
static int try_once(struct fetch *f, struct hub_answer *answer, bool *has_changed) {
    f->is_begun = false;
    f->reason = NO_REASON;
    int code = hub_http_get(f->http, f->url, f->offset, f->pull->model, take, f, answer, f->error);
    if (f->reason == CANNOT_WRITE) return f->error->code;
    if (f->reason == CHANGED) {
        *has_changed = true;
        return mo_error_set(f->error, MO_E_CORRUPT, "changed at the hub meanwhile");
    }
    if (f->reason == OTHER_PART || f->reason == TOO_LONG || (answer->status == 416 && f->offset)) {
        code = start_over(f);
        if (code) return code;
        mo_error_set(f->error, MO_E_CORRUPT, "the server sends %s, from the beginning",
                     f->reason == TOO_LONG ? "more than the file's size" : "another part than asked for");
        return 0;
    }
    if (!code && f->offset == f->file->size) return 1;
    if (code) return answer->is_transient ? 0 : code;
    mo_error_set(f->error, MO_E_IO, "ends %lld bytes early", (long long)(f->file->size - f->offset));
    return 0;
}

static int download(struct fetch *f, bool *has_changed) {
    struct hub_retry retry = {.most = f->pull->retries};
    while (f->offset < f->file->size) {
        struct hub_answer answer;
        int64_t before = f->offset;
        int result = try_once(f, &answer, has_changed);
        if (result > 0) break;
        if (result == 0 && f->offset > before) retry.n = 0;
        if (result == 0 && hub_retry_wait(f->pull, &retry, &answer, f->file->path, f->error)) continue;
        if (atomic_load(&f->pull->stop)) return mo_error_set(f->error, MO_E_CANCELLED, "stopped");
        return mo_error_prefix(f->error, "%s", f->file->path);
    }
    return 0;
}

static bool is_right(struct fetch *f) {
    uint8_t digest[EVP_MAX_MD_SIZE];
    char hex[2 * EVP_MAX_MD_SIZE + 1];
    unsigned n = 0;
    EVP_DigestFinal_ex(f->hash, digest, &n);
    text_print_hex(digest, n, hex);
    return strcmp(hex, f->file->hash) == 0;
}

/* What an earlier run has left is hashed too: the end of a file may be missing after a machine has lost its power. */
static int read_what_is_there(struct fetch *f) {
    struct stat info;
    int code = begin_hash(f);
    if (code) return code;
    if (fstat(f->fd, &info)) return mo_error_set(f->error, MO_E_IO, "%s: %s", f->incomplete, strerror(errno));
    if (info.st_size > f->file->size) return start_over(f);
    char *buffer = malloc(READ_BYTES);
    if (!buffer) return mo_error_set(f->error, MO_E_NO_MEMORY, "no memory to read %s", f->incomplete);
    while (!code && f->offset < info.st_size) {
        ssize_t n = pread(f->fd, buffer, READ_BYTES, f->offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) code = mo_error_set(f->error, MO_E_IO, "cannot read %s: %s", f->incomplete, strerror(errno));
        if (n <= 0) break;
        EVP_DigestUpdate(f->hash, buffer, (size_t)n);
        f->offset += n;
        atomic_fetch_add(&f->pull->n_there, (long long)n);
        if (atomic_load(&f->pull->stop)) code = mo_error_set(f->error, MO_E_CANCELLED, "stopped");
    }
    free(buffer);
    return code;
}

/* Downloads until the hash is right: a second time if it is not. */
static int complete(struct fetch *f, bool *has_changed) {
    const char *kind = f->file->is_sha256 ? "SHA-256" : "SHA-1";
    int code = read_what_is_there(f);
    for (int n = 0; !code; n++) {
        code = download(f, has_changed);
        if (code || is_right(f)) return code;
        code = start_over(f);
        if (code) return code;
        if (n == 1) {
            unlink(f->incomplete);
            return mo_error_set(f->error, MO_E_CORRUPT,
                                "%s: its %s is twice not the one that the hub lists; deleted. Something on the way "
                                "changes it",
                                f->file->path, kind);
        }
        note(f->pull, "%s: its %s is not the one that the hub lists; deleted, once more from the beginning",
             f->file->path, kind);
    }
    return code;
}

static int open_and_complete(struct fetch *f, bool *has_changed) {
    f->fd = open(f->incomplete, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (f->fd < 0) return mo_error_set(f->error, MO_E_IO, "cannot open %s: %s", f->incomplete, strerror(errno));
    f->hash = EVP_MD_CTX_new();
    if (!f->hash) return mo_error_set(f->error, MO_E_NO_MEMORY, "no memory for a hash");
    int code = complete(f, has_changed);
    if (code) return code;
    if (fsync(f->fd) || rename(f->incomplete, f->path))
        return mo_error_set(f->error, MO_E_IO, "cannot finish %s: %s", f->path, strerror(errno));
    return 0;
}

static int wait_for_lock(struct fetch *f) {
    const struct hub_cache *cache = &f->pull->cache;
    bool is_said = false;
    for (;;) {
        int code = hub_cache_try_lock(cache, f->file, &f->lock, f->error);
        if (code || f->lock >= 0) return code;
        if (!is_said) note(f->pull, "%s: another process downloads it; waiting", f->file->path);
        is_said = true;
        if (!pause_for(f->pull, 0.2)) return mo_error_set(f->error, MO_E_CANCELLED, "stopped");
    }
}

int hub_fetch(struct hub_pull *pull, struct hub_http *http, const struct hub_file *file, bool *has_changed,
              struct mo_error *error) {
    struct fetch f = {.pull = pull, .http = http, .file = file, .error = error, .lock = -1, .fd = -1};
    int code = 0;
    if (!hub_cache_has(&pull->cache, file)) {
        char *quoted = hub_url_quote(file->path, true);
        if (!quoted ||
            asprintf(&f.url, "%s/%s/resolve/%s/%s", pull->site.endpoint, pull->model, pull->listing.commit, quoted) < 0)
            code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for a URL");
        free(quoted);
        if (!code) code = hub_cache_blob(&pull->cache, file, f.path, f.incomplete, error);
        if (!code) code = wait_for_lock(&f);
        /* Who had the lock before may have brought it. */
        if (!code && !hub_cache_has(&pull->cache, file)) {
            code = open_and_complete(&f, has_changed);
            goto end;
        }
    }
    if (!code) atomic_fetch_add(&pull->n_there, file->size);
end:
    EVP_MD_CTX_free(f.hash);
    if (f.fd >= 0) close(f.fd);
    if (f.lock >= 0) close(f.lock);
    free(f.url);
    if (!code) atomic_fetch_add(&pull->n_files_done, 1);
    return code;
}
