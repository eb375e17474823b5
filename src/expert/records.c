#include "expert/records.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "base/progress.h"
#include "model/names.h"

/* A hole of no more than this between two tensors is read too: in packed files FP8 scales and padding. */
enum { HOLE_BYTES = 2 * STREAM_ALIGN };

/* ---- an expert ---- */

static const struct mlp *mlp_of(const struct records *records, int record) {
    int experts = records->model->experts;
    return &records->weights->layers[records->model->dense_layers + record / experts].experts[record % experts];
}

static void add_range(struct range *ranges, int *n, const void *data, size_t bytes) {
    ranges[(*n)++] = (struct range){data, (const uint8_t *)data + bytes};
}

/* The tensors that a matrix is read from: `ranges` has room for three. */
static void list_mat(const struct mat *mat, struct range *ranges, int *n) {
    add_range(ranges, n, mat->data, mat_data_bytes(mat));
    if (mat->format == MAT_FP4) {
        add_range(ranges, n, mat->scales8, mat_bytes(mat) - mat_data_bytes(mat));
    } else if (mat->format == MAT_INT4_AWQ) {
        size_t groups = ((size_t)mat->cols + (size_t)mat->group_size - 1) / (size_t)mat->group_size;
        add_range(ranges, n, mat->zeros, groups * (size_t)mat->rows / 2);
        add_range(ranges, n, mat->scales16, groups * (size_t)mat->rows * sizeof *mat->scales16);
    }
}

static int compare_ranges(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static int list_mlp(const struct mlp *mlp, struct range *ranges) {
    int n = 0;
    list_mat(&mlp->gate, ranges, &n);
    list_mat(&mlp->up, ranges, &n);
    list_mat(&mlp->down, ranges, &n);
    qsort(ranges, (size_t)n, sizeof *ranges, compare_ranges);
    return n;
}

static const uint8_t *file_data(const struct records *records, int file) {
    return records->checkpoint->shards[file].map.data;
}

static void add_tensor(struct record *record, int file, int64_t offset, size_t bytes) {
    struct stream_part *last = record->n_parts ? &record->parts[record->n_parts - 1] : NULL;
    int64_t last_end = last ? last->offset + (int64_t)last->bytes : 0;
    if (last && last->file == file && offset <= last_end + HOLE_BYTES) {
        if (offset + (int64_t)bytes > last_end) last->bytes = (size_t)(offset + (int64_t)bytes - last->offset);
        return;
    }
    record->parts[record->n_parts++] = (struct stream_part){.file = file, .offset = offset, .bytes = bytes};
}

/* Gives its parts their places. Returns what they take. */
static size_t place_parts(struct record *record) {
    size_t at = 0;
    for (int i = 0; i < record->n_parts; i++) {
        record->parts[i].at = at;
        at += stream_span(record->parts[i].offset, record->parts[i].bytes);
    }
    return at;
}

static int find_record(struct records *records, int index, struct mo_error *error) {
    struct range ranges[RECORD_TENSORS];
    struct record *record = &records->list[index];
    int experts = records->model->experts, n = list_mlp(mlp_of(records, index), ranges);
    for (int i = 0; i < n; i++) {
        int file =
            checkpoint_find_shard(records->checkpoint, ranges[i].begin, (size_t)(ranges[i].end - ranges[i].begin));
        if (file < 0) {
            return mo_error_set(
                error, MO_E_UNSUPPORTED, "%s: layer %d, expert %d: expected its weights in the model's files",
                records->checkpoint->path, records->model->dense_layers + index / experts, index % experts);
        }
        add_tensor(record, file, ranges[i].begin - file_data(records, file), (size_t)(ranges[i].end - ranges[i].begin));
    }
    size_t span = place_parts(record);
    records->slot_bytes = span > records->slot_bytes ? span : records->slot_bytes;
    for (int i = 0; i < record->n_parts; i++) records->bytes += record->parts[i].bytes;
    return 0;
}

static const uint8_t *moved(const struct records *records, const struct record *record, uint8_t *to, const void *data) {
    const uint8_t *at = data;
    for (int i = 0; i < record->n_parts; i++) {
        const struct stream_part *part = &record->parts[i];
        const uint8_t *begin = file_data(records, part->file) + part->offset;
        if (at >= begin && at < begin + part->bytes) return stream_part_data(part, to) + (at - begin);
    }
    assert(0 && "records_find has looked at the same matrices");
    return NULL;
}

void records_place(const struct records *records, int index, uint8_t *to, struct mlp *mlp) {
    const struct record *record = &records->list[index];
    struct mat *mats[3] = {&mlp->gate, &mlp->up, &mlp->down};
    *mlp = *mlp_of(records, index);
    for (int i = 0; i < 3; i++) {
        struct mat *mat = mats[i];
        mat->data = moved(records, record, to, mat->data);
        if (mat->format == MAT_FP4) mat->scales8 = moved(records, record, to, mat->scales8);
        if (mat->format != MAT_INT4_AWQ) continue;
        mat->zeros = (const uint32_t *)moved(records, record, to, mat->zeros);
        mat->scales16 = (const uint16_t *)moved(records, record, to, mat->scales16);
    }
}

/* ---- the others ---- */

/* Prediction layers and eyes, which weights.c leaves out; and n-gram tables, which stay on the disk. */
static bool is_left_out(const struct records *records, const struct tensor *tensor) {
    return names_is_left_out(tensor->name, records->model->layers) || names_is_table(tensor->name);
}

static int count_others(const struct records *records) {
    int n = 0;
    for (int i = 0; i < records->n; i++) n += records->list[i].n_parts;
    for (int i = 0; i < records->checkpoint->n_tensors; i++)
        n += is_left_out(records, &records->checkpoint->tensors[i]);
    return n;
}

static void list_others(struct records *records) {
    int *n = &records->n_others;
    for (int i = 0; i < records->n; i++) {
        for (int k = 0; k < records->list[i].n_parts; k++) {
            const struct stream_part *part = &records->list[i].parts[k];
            add_range(records->others, n, file_data(records, part->file) + part->offset, part->bytes);
        }
    }
    for (int i = 0; i < records->checkpoint->n_tensors; i++) {
        const struct tensor *tensor = &records->checkpoint->tensors[i];
        if (is_left_out(records, tensor)) add_range(records->others, n, tensor->data, tensor->bytes);
    }
}

/* Ascending. What is in the hole of another's part is there twice. */
static void sort_others(struct records *records) {
    struct range *others = records->others;
    int n = 0;
    qsort(others, (size_t)records->n_others, sizeof *others, compare_ranges);
    for (int i = 0; i < records->n_others; i++) {
        if (n && others[i].begin <= others[n - 1].end) {
            if (others[i].end > others[n - 1].end) others[n - 1].end = others[i].end;
        } else {
            others[n++] = others[i];
        }
    }
    records->n_others = n;
}

static int find_others(struct records *records, struct mo_error *error) {
    int n = count_others(records);
    records->others = calloc((size_t)n, sizeof *records->others);
    if (!records->others) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of %d tensors", n);
    list_others(records);
    sort_others(records);
    for (int i = 0; i < records->checkpoint->n_shards; i++) {
        records->rest_bytes += records->checkpoint->shards[i].map.size;
    }
    for (int i = 0; i < records->n_others; i++) {
        records->rest_bytes -= (size_t)(records->others[i].end - records->others[i].begin);
    }
    return 0;
}

/* ---- all ---- */

int records_find(struct records *records, const struct model *model, const struct weights *weights,
                 const struct checkpoint *checkpoint, struct mo_error *error) {
    *records = (struct records){.model = model, .weights = weights, .checkpoint = checkpoint};
    if (!model->experts || model->layers <= model->dense_layers) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: the model has no experts", checkpoint->path);
    }
    if (mat_must_turn(&weights->layers[model->dense_layers].experts[0].gate)) {
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "%s: experts in %s are put into another order in memory and cannot be read one by one: "
                            "`moebius quantize` makes a file of them that can",
                            checkpoint->path,
                            mat_format_name(weights->layers[model->dense_layers].experts[0].gate.format));
    }
    if (weights->made || weights->later) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "the weights were made in memory: no file has the experts");
    }
    records->n = (model->layers - model->dense_layers) * model->experts;
    records->list = calloc((size_t)records->n, sizeof *records->list);
    if (!records->list) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of %d experts", records->n);
    for (int i = 0; i < records->n; i++) {
        int code = find_record(records, i, error);
        if (code) return code;
    }
    return find_others(records, error);
}

void records_free(struct records *records) {
    free(records->list);
    free(records->others);
    *records = (struct records){0};
}

/* Asks the system to read on, and comes after it, so that each page is there when this returns. */
static void touch(const uint8_t *begin, const uint8_t *end, struct progress *progress, double *done) {
    const size_t slice = 64 << 20;
    uintptr_t first = (uintptr_t)begin / STREAM_ALIGN * STREAM_ALIGN;
    for (uint8_t *at = (uint8_t *)first; at < end; at += slice) {
        size_t n = (size_t)(end - at) < slice ? (size_t)(end - at) : slice;
        madvise(at, n, MADV_WILLNEED);
        if (madvise(at, n, MADV_POPULATE_READ) && errno == EINVAL) { /* before Linux 5.14 */
            for (size_t i = 0; i < n; i += STREAM_ALIGN) (void)*(volatile uint8_t *)(at + i);
        }
        progress_update(progress, *done += (double)n);
    }
}

void records_touch_rest(const struct records *records) {
    struct progress progress;
    double done = 0;
    progress_begin(&progress, "reading all but the experts", "GiB", 1.0 / (1 << 30), (double)records->rest_bytes);
    for (int i = 0; i < records->checkpoint->n_shards; i++) {
        const struct file_map *map = &records->checkpoint->shards[i].map;
        const uint8_t *at = map->data, *end = map->data + map->size;
        for (int k = 0; k < records->n_others; k++) {
            const struct range *other = &records->others[k];
            if (other->begin < at || other->begin >= end) continue;
            touch(at, other->begin, &progress, &done);
            at = other->end;
        }
        touch(at, end, &progress, &done);
    }
    progress_end(&progress);
}
