#include "cmd/eval/logits.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "model/format.h"
#include "sched/sample.h"

static const char magic[8] = {'m', 'o', 'e', 'l', 'o', 'g', 'i', 't'};
enum { VERSION = 1 };

_Static_assert(sizeof(struct eval_logits_header) == 64, "the header is what the file begins with");

uint16_t eval_f32_to_f16(float value) {
    const float largest = 65504;
    return f32_to_f16(value > largest ? largest : value < -largest ? -largest : value);
}

/* ---- out ---- */

static int write_failed(const char *path, struct mo_error *error) {
    return mo_error_set(error, MO_E_IO, "%s: cannot write the logits: %s", path, strerror(errno));
}

/* A pipe or a device cannot be replaced by a file; anything else gets one beside it first. */
static int open_beside(struct eval_logits_writer *w, const char *path, struct mo_error *error) {
    struct stat info;
    bool is_special = stat(path, &info) == 0 && !S_ISREG(info.st_mode);
    if (is_special) {
        w->file = fopen(path, "we");
        return w->file ? 0 : mo_error_set(error, MO_E_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    int code = file_check_unmapped(path, error);
    if (code) return code;
    w->target = realpath(path, NULL); /* the file that a link names */
    if (!w->target) w->target = strdup(path);
    if (!w->target) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    int n = snprintf(w->beside, sizeof w->beside, "%s.%ld.tmp", w->target, (long)getpid());
    if (n >= (int)sizeof w->beside) return mo_error_set(error, MO_E_INVALID, "%s: path too long", path);
    w->file = fopen(w->beside, "we");
    if (w->file) return 0;
    w->beside[0] = 0;
    return mo_error_set(error, MO_E_IO, "%s: cannot create: %s", path, strerror(errno));
}

int eval_logits_create(struct eval_logits_writer *w, const char *path, const struct eval_logits_shape *shape,
                       enum eval_logits_format format, struct mo_error *error) {
    struct eval_logits_header header = {.version = VERSION,
                                        .format = (uint32_t)format,
                                        .vocab = (uint32_t)shape->vocab,
                                        .window = (uint32_t)shape->window,
                                        .bos = shape->bos,
                                        .n_tokens = shape->n_tokens,
                                        .n_rows = shape->n_rows};
    memcpy(header.magic, magic, sizeof magic);
    *w = (struct eval_logits_writer){.path = path, .vocab = shape->vocab, .format = format};
    w->half = calloc((size_t)shape->vocab, sizeof *w->half);
    if (!w->half) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a row of logits");
    int code = open_beside(w, path, error);
    if (code) return code;
    bool wrote = fwrite(&header, sizeof header, 1, w->file) == 1 &&
                 fwrite(shape->ids, sizeof *shape->ids, shape->n_tokens, w->file) == shape->n_tokens;
    return wrote ? 0 : write_failed(path, error);
}

int eval_logits_write(struct eval_logits_writer *w, const float *row, struct mo_error *error) {
    size_t n = (size_t)w->vocab, wrote;
    if (w->format == EVAL_LOGITS_F32) {
        wrote = fwrite(row, sizeof *row, n, w->file);
    } else {
        float largest = row[sample_argmax(row, w->vocab)];
        for (size_t i = 0; i < n; i++) w->half[i] = eval_f32_to_f16(row[i] - largest);
        wrote = fwrite(w->half, sizeof *w->half, n, w->file);
    }
    return wrote == n ? 0 : write_failed(w->path, error);
}

int eval_logits_finish(struct eval_logits_writer *w, struct mo_error *error) {
    bool failed = fflush(w->file) != 0 || (w->target && fsync(fileno(w->file)) != 0);
    failed |= fclose(w->file) != 0;
    w->file = NULL;
    if (!failed && w->target) failed = rename(w->beside, w->target) != 0;
    if (failed) return write_failed(w->path, error);
    w->beside[0] = 0;
    return 0;
}

void eval_logits_abandon(struct eval_logits_writer *w) {
    if (w->file) fclose(w->file);
    if (w->beside[0]) unlink(w->beside);
    free(w->target);
    free(w->half);
    *w = (struct eval_logits_writer){0};
}

/* ---- in ---- */

/* The size that the header promises; false if no file is that large. */
static bool promised_bytes(const struct eval_logits_header *h, uint64_t *bytes) {
    uint64_t ids, row, rows;
    bool too_large = __builtin_mul_overflow(h->n_tokens, sizeof(int32_t), &ids);
    row = (uint64_t)h->vocab * (h->format == EVAL_LOGITS_F16 ? 2 : 4);
    too_large |= __builtin_mul_overflow(row, h->n_rows, &rows);
    too_large |= __builtin_add_overflow(ids, rows, bytes);
    too_large |= __builtin_add_overflow(*bytes, sizeof *h, bytes);
    return !too_large;
}

static int check_header(struct eval_logits_reader *r, const char *path, struct mo_error *error) {
    uint64_t bytes;
    struct eval_logits_header *h = &r->header;
    if (r->map.size < sizeof *h || memcmp(r->map.data, magic, sizeof magic)) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: not a file of logits from eval --save-logits", path);
    }
    memcpy(h, r->map.data, sizeof *h);
    if (h->version != VERSION || h->format > EVAL_LOGITS_F32) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: version %u, format %u; expected version %d, format 0 or 1",
                            path, h->version, h->format, VERSION);
    }
    if (!promised_bytes(h, &bytes) || bytes != r->map.size) {
        return mo_error_set(error, MO_E_CORRUPT,
                            "%s: its header promises %llu rows of %u logits, the file has %zu bytes (cut short?)", path,
                            (unsigned long long)h->n_rows, h->vocab, r->map.size);
    }
    return 0;
}

static int check_number(const char *path, const char *what, long long found, long long expected,
                        struct mo_error *error) {
    if (found == expected) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s: %s %lld, here it is %lld", path, what, found, expected);
}

static int check_ids(const struct eval_logits_reader *r, const char *path, const struct eval_logits_shape *shape,
                     struct mo_error *error) {
    const uint8_t *ids = r->map.data + sizeof r->header;
    for (uint64_t i = 0; i < shape->n_tokens; i++) {
        int32_t id;
        memcpy(&id, ids + i * sizeof id, sizeof id);
        if (id == shape->ids[i]) continue;
        return mo_error_set(error, MO_E_INVALID,
                            "%s: of another text or tokenizer: token %llu is %d there, here it is %d", path,
                            (unsigned long long)i, id, shape->ids[i]);
    }
    return 0;
}

int eval_logits_open(struct eval_logits_reader *r, const char *path, const struct eval_logits_shape *shape,
                     struct mo_error *error) {
    const struct eval_logits_header *h = &r->header;
    *r = (struct eval_logits_reader){0};
    int code = file_map_open(&r->map, path, error);
    if (!code) code = check_header(r, path, error);
    if (!code) code = check_number(path, "its vocabulary has", h->vocab, shape->vocab, error);
    if (!code)
        code = check_number(path, "the number of its tokens is", (long long)h->n_tokens, (long long)shape->n_tokens,
                            error);
    if (!code) code = check_number(path, "--window was", h->window, shape->window, error);
    if (!code) code = check_number(path, "the token that began its windows was", h->bos, shape->bos, error);
    if (!code)
        code = check_number(path, "the number of its rows is", (long long)h->n_rows, (long long)shape->n_rows, error);
    if (!code) code = check_ids(r, path, shape, error);
    if (!code) r->rows = r->map.data + sizeof *h + h->n_tokens * sizeof(int32_t);
    return code;
}

void eval_logits_read(struct eval_logits_reader *r, float *row) {
    size_t n = r->header.vocab;
    assert(r->next < r->header.n_rows);
    if (r->header.format == EVAL_LOGITS_F32) {
        memcpy(row, r->rows + r->next * n * sizeof *row, n * sizeof *row);
    } else {
        for (size_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, r->rows + (r->next * n + i) * sizeof half, sizeof half);
            row[i] = f16_to_f32(half);
        }
    }
    r->next++;
}

void eval_logits_close(struct eval_logits_reader *r) {
    file_map_close(&r->map);
    *r = (struct eval_logits_reader){0};
}
