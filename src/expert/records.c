#include "expert/records.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "base/progress.h"
#include "expert/stream.h"
#include "model/pack.h"

static const char HOW_TO[] = "`moebius quantize` makes a file whose experts can be read one by one";

static const struct mlp *mlp_of(const struct records *records, int record) {
    int experts = records->model->experts;
    return &records->weights->layers[records->model->dense_layers + record / experts].experts[record % experts];
}

static const struct file_map *map_of(const struct records *records) {
    return &records->checkpoint->shards[0].map;
}

static int refuse(const struct records *records, int record, const char *expected, struct mo_error *error) {
    int experts = records->model->experts;
    return mo_error_set(error, MO_E_UNSUPPORTED, "%s: layer %d, expert %d: expected %s; %s", records->checkpoint->path,
                        records->model->dense_layers + record / experts, record % experts, expected, HOW_TO);
}

/* The three matrices side by side: between them there is room for scales and padding only. */
static int find_record(const struct records *records, int index, struct record *record, struct mo_error *error) {
    const struct mlp *mlp = mlp_of(records, index);
    const struct mat *mats[3] = {&mlp->gate, &mlp->up, &mlp->down};
    const struct file_map *map = map_of(records);
    size_t most = 6 * PACK_ALIGN;
    const uint8_t *at = map->data;
    for (int i = 0; i < 3; i++) {
        const uint8_t *data = mats[i]->data;
        if (mats[i]->format == MAT_INT4_AWQ) return refuse(records, index, "weights and scales together", error);
        if (data < at || data + mat_data_bytes(mats[i]) > map->data + map->size) {
            return refuse(records, index, "gate, up and down one after the other", error);
        }
        at = data + mat_data_bytes(mats[i]);
        most += mat_bytes(mats[i]);
    }
    *record = (struct record){.offset = (const uint8_t *)mlp->gate.data - map->data,
                              .bytes = (size_t)(at - (const uint8_t *)mlp->gate.data)};
    return record->bytes <= most ? 0 : refuse(records, index, "gate, up and down side by side", error);
}

static int find_all(struct records *records, struct mo_error *error) {
    int64_t end = 0;
    for (int i = 0; i < records->n; i++) {
        struct record *record = &records->list[i];
        int code = find_record(records, i, record, error);
        if (code) return code;
        if (record->offset < end) return refuse(records, i, "experts in ascending order", error);
        end = record->offset + (int64_t)record->bytes;
        size_t span = stream_span(record->offset, record->bytes);
        records->bytes += record->bytes;
        records->slot_bytes = span > records->slot_bytes ? span : records->slot_bytes;
    }
    return 0;
}

int records_find(struct records *records, const struct model *model, const struct weights *weights,
                 const struct checkpoint *checkpoint, struct mo_error *error) {
    *records = (struct records){.model = model, .weights = weights, .checkpoint = checkpoint};
    if (!model->experts || model->layers <= model->dense_layers) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: the model has no experts", checkpoint->path);
    }
    if (!checkpoint->is_packed || weights->made || weights->later) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: its experts are not used as they lie in one packed file; %s",
                            checkpoint->path ? checkpoint->path : "weights in memory", HOW_TO);
    }
    records->n = (model->layers - model->dense_layers) * model->experts;
    records->list = calloc((size_t)records->n, sizeof *records->list);
    if (!records->list) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a list of %d experts", records->n);
    return find_all(records, error);
}

void records_free(struct records *records) {
    free(records->list);
    *records = (struct records){0};
}

void records_place(const struct records *records, int record, const uint8_t *data, struct mlp *mlp) {
    const uint8_t *from = map_of(records)->data + records->list[record].offset;
    struct mat *mats[3] = {&mlp->gate, &mlp->up, &mlp->down};
    *mlp = *mlp_of(records, record);
    for (int i = 0; i < 3; i++) mats[i]->data = data + ((const uint8_t *)mats[i]->data - from);
}

/* Asks the system to read on, and comes after it, so that each page is there when this returns. */
static void touch(const uint8_t *begin, const uint8_t *end, struct progress *progress, double *done) {
    const size_t slice = 64 << 20;
    uintptr_t first = (uintptr_t)begin / PACK_ALIGN * PACK_ALIGN;
    for (uint8_t *at = (uint8_t *)first; at < end; at += slice) {
        size_t n = (size_t)(end - at) < slice ? (size_t)(end - at) : slice;
        madvise(at, n, MADV_WILLNEED);
        if (madvise(at, n, MADV_POPULATE_READ) && errno == EINVAL) { /* before Linux 5.14 */
            for (size_t i = 0; i < n; i += PACK_ALIGN) (void)*(volatile uint8_t *)(at + i);
        }
        progress_update(progress, *done += (double)n);
    }
}

void records_touch_rest(const struct records *records) {
    const struct file_map *map = map_of(records);
    struct progress progress;
    double done = 0;
    const uint8_t *at = map->data;
    progress_begin(&progress, "reading all but the experts", "GiB", 1.0 / (1 << 30),
                   (double)map->size - (double)records->bytes);
    for (int i = 0; i < records->n; i++) {
        touch(at, map->data + records->list[i].offset, &progress, &done);
        at = map->data + records->list[i].offset + records->list[i].bytes;
    }
    touch(at, map->data + map->size, &progress, &done);
    progress_end(&progress);
}
