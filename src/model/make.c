#include "model/make.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "base/memory.h"
#include "base/numbers.h"
#include "base/progress.h"

/* Matrices are made in batches of about this size, so that every thread has work and little memory is needed. */
enum { BATCH_BYTES = 32 << 20, ALIGN = 4096 };

/* Data and scales, each at a page of its own, as in the file. */
static size_t room_bytes(const struct mat *mat) {
    size_t data = mat_data_bytes(mat);
    return round_up(data, ALIGN) + round_up(mat_bytes(mat) - data, ALIGN);
}

static void place(struct mat *mat, uint8_t *at) {
    mat->data = at;
    mat_set_scales(mat, at + round_up(mat_data_bytes(mat), ALIGN));
}

/* Where the bytes are there already, they are in made->mat. */
static void layout(const struct maker *maker, const struct slot *slot, struct made *made) {
    const struct mat *source = maker->source(maker->context, slot);
    made->slot = slot;
    recipe_layout(maker->recipe, slot, source, model_fp8_block(maker->model), &made->mat);
    if (source && mat_is_alike(source, &made->mat)) made->mat = *source;
}

static void slot_name(const struct maker *maker, const struct slot *slot, char name[NAME_MAX_BYTES],
                      const char *suffix) {
    names_tensor(name, model_naming(maker->model), slot->role, slot->layer, slot->expert,
                 *names_suffix(slot->role) ? suffix : "");
}

/* ---- a batch on all threads ---- */

struct batch {
    const struct maker *maker;
    struct made *made; /* [n] */
    int *first_unit;   /* [n + 1] units before each */
    int n, capacity;
    double apart_s;          /* of maker->prepare, for this batch */
    struct make_error *sums; /* [units] */
    int *bad_rows;           /* [units] or -1 */
    uint8_t *scratch;        /* [threads][maker->scratch_bytes] */
};

static int units_of(const struct mat *mat) {
    return (int)(((int64_t)mat->rows + MAKE_ROWS - 1) / MAKE_ROWS);
}

/* The matrix that unit `index` of the batch belongs to. */
static int find_made(const struct batch *batch, int index) {
    int low = 0, high = batch->n - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (batch->first_unit[middle] <= index) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static void fill_unit(void *context, int index, int worker) {
    struct batch *batch = context;
    const struct maker *maker = batch->maker;
    int i = find_made(batch, index);
    batch->sums[index] = (struct make_error){0};
    batch->bad_rows[index] = maker->fill(maker->context, &batch->made[i], index - batch->first_unit[i],
                                         batch->scratch + (size_t)worker * maker->scratch_bytes, &batch->sums[index]);
}

static int batch_open(struct batch *batch, const struct maker *maker, struct pool *pool, const struct slot *slots,
                      int n, struct mo_error *error) {
    size_t units = 0;
    for (int i = 0; i < n; i++) {
        struct made made;
        if (!slots[i].cols) continue;
        layout(maker, &slots[i], &made);
        units += made.mat.data ? 0 : (size_t)units_of(&made.mat);
    }
    *batch = (struct batch){
        .maker = maker,
        .capacity = n,
        .made = calloc((size_t)n, sizeof *batch->made),
        .first_unit = calloc((size_t)n + 1, sizeof *batch->first_unit),
        .sums = calloc(units + 1, sizeof *batch->sums),
        .bad_rows = calloc(units + 1, sizeof *batch->bad_rows),
        .scratch = aligned_alloc(64, round_up(maker->scratch_bytes * (size_t)pool_threads(pool) + 1, 64)),
    };
    if (batch->made && batch->first_unit && batch->sums && batch->bad_rows && batch->scratch) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY, "no memory to make %d tensors", n);
}

static void batch_close(struct batch *batch) {
    free(batch->made);
    free(batch->first_unit);
    free(batch->sums);
    free(batch->bad_rows);
    free(batch->scratch);
}

static void batch_clear(struct batch *batch) {
    batch->n = 0;
}

static struct made *batch_add(struct batch *batch, const struct slot *slot) {
    struct made *made = &batch->made[batch->n++];
    layout(batch->maker, slot, made);
    batch->first_unit[batch->n] = batch->first_unit[batch->n - 1] + (made->mat.data ? 0 : units_of(&made->mat));
    return made;
}

static int batch_fill(struct batch *batch, struct pool *pool, const char *source, struct make_report *report,
                      struct mo_error *error) {
    const struct maker *maker = batch->maker;
    batch->apart_s = 0;
    int code = maker->prepare ? maker->prepare(maker->context, batch->made, batch->n, &batch->apart_s, error) : 0;
    if (code) return code;
    pool_run(pool, batch->first_unit[batch->n], fill_unit, batch);
    for (int i = 0; i < batch->n; i++) {
        const struct made *made = &batch->made[i];
        struct make_error *sum = &report->groups[tensor_group_of(made->slot->role)];
        for (int unit = batch->first_unit[i]; unit < batch->first_unit[i + 1]; unit++) {
            if (batch->bad_rows[unit] >= 0) {
                char name[NAME_MAX_BYTES];
                slot_name(maker, made->slot, name, ".weight");
                return mo_error_set(error, MO_E_NUMERIC, "%s: tensor %s: row %d holds a value that is not finite",
                                    source, name, batch->bad_rows[unit]);
            }
            sum->error += batch->sums[unit].error;
            sum->total += batch->sums[unit].total;
        }
        if (batch->first_unit[i] < batch->first_unit[i + 1]) report->bytes += (int64_t)mat_bytes(&made->mat);
    }
    return 0;
}

/* What a matrix was made from. */
static void leave_source(const struct maker *maker, const struct slot *slot) {
    const struct mat *source = maker->source(maker->context, slot);
    if (source && maker->leave) maker->leave(maker->context, source->data, mat_data_bytes(source));
}

static double total_bytes(const struct maker *maker, const struct slot *slots, int n) {
    double total = 0;
    for (int i = 0; i < n; i++) {
        struct made made;
        if (!slots[i].cols) continue;
        layout(maker, &slots[i], &made);
        total += (double)mat_bytes(&made.mat);
    }
    return total;
}

/* ---- into a file ---- */

static int declare_matrix(struct pack *pack, const struct maker *maker, const struct slot *slot,
                          struct mo_error *error) {
    char name[NAME_MAX_BYTES];
    struct made made;
    layout(maker, slot, &made);
    const struct mat *mat = &made.mat;
    slot_name(maker, slot, name, ".weight");
    if (mat_is_integer(mat->format)) {
        size_t block = block_bytes(mat->format, mat->group_size), panel = block_panel_bytes(mat);
        int64_t shape[3] = {(int64_t)(mat_bytes(mat) / panel), (int64_t)(panel / block), (int64_t)block};
        return pack_add(pack, name, DTYPE_U8, shape, 3, error);
    }
    if (mat->format == MAT_FP4) {
        int code = pack_add(pack, name, DTYPE_I8, (int64_t[]){mat->rows, mat->cols / 2}, 2, error);
        slot_name(maker, slot, name, ".weight_scale_inv");
        return code ? code
                    : pack_add(pack, name, DTYPE_F8_E8M0, (int64_t[]){mat->rows, mat->cols / FP4_GROUP}, 2, error);
    }
    assert(!gguf_is_blocks(mat->format)); /* recipes make none of these */
    enum dtype dtype = mat->format == MAT_FP8   ? DTYPE_F8_E4M3
                       : mat->format == MAT_F32 ? DTYPE_F32
                       : mat->format == MAT_F16 ? DTYPE_F16
                                                : DTYPE_BF16;
    int code = pack_add(pack, name, dtype, (int64_t[]){mat->rows, mat->cols}, 2, error);
    if (code || mat->format != MAT_FP8) return code;
    slot_name(maker, slot, name, ".weight_scale_inv");
    if (mat->has_scales8)
        return pack_add(pack, name, DTYPE_F8_E8M0, (int64_t[]){mat->rows, mat->cols / FP8_ROW_GROUP}, 2, error);
    int64_t scale_rows = (mat->rows + mat->scale_rows - 1) / mat->scale_rows;
    return pack_add(pack, name, DTYPE_F32, (int64_t[]){scale_rows, mat->scale_stride}, 2, error);
}

int make_declare(struct pack *pack, const struct maker *maker, const struct slot *slots, int n,
                 struct mo_error *error) {
    int code = 0;
    for (int i = 0; i < n && !code; i++) {
        char name[NAME_MAX_BYTES];
        if (slots[i].cols) {
            code = declare_matrix(pack, maker, &slots[i], error);
            continue;
        }
        slot_name(maker, &slots[i], name, ".weight");
        const int64_t shape[2] = {slots[i].rows, slots[i].entries};
        code = pack_add(pack, name, slots[i].entries ? DTYPE_I32 : DTYPE_F32, shape, slots[i].entries ? 2 : 1, error);
    }
    return code;
}

/* A matrix may be larger than a batch should be. */
static int room_grow(struct make_room *buffer, size_t size, struct mo_error *error) {
    if (size <= buffer->size) return 0;
    if (buffer->data) munmap(buffer->data, buffer->size);
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *buffer = (struct make_room){0};
    if (data == MAP_FAILED)
        return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a tensor of %.3f GB", (double)size * 1e-9);
    *buffer = (struct make_room){data, size};
    return 0;
}

void make_room_close(struct make_room *room) {
    if (room->data) munmap(room->data, room->size);
    *room = (struct make_room){0};
}

/* Adds matrices from slots[i] on until the batch is full; returns the slot after the last. */
static int collect(struct batch *batch, struct make_room *buffer, const struct slot *slots, int i, int n,
                   struct mo_error *error) {
    size_t size = 0;
    batch_clear(batch);
    for (; i < n && (size < BATCH_BYTES || !slots[i].cols); i++) {
        if (!slots[i].cols) continue;
        const struct mat *mat = &batch_add(batch, &slots[i])->mat;
        size += mat->data ? 0 : room_bytes(mat);
    }
    int code = room_grow(buffer, size, error);
    if (code) return code;
    uint8_t *at = buffer->data;
    for (int k = 0; k < batch->n; k++) {
        struct mat *mat = &batch->made[k].mat;
        if (mat->data) continue;
        place(mat, at);
        at += room_bytes(mat);
    }
    return i;
}

static int write_values(struct pack *pack, const struct maker *maker, const struct slot *slot, struct mo_error *error) {
    size_t bytes = (size_t)slot->rows * (size_t)(slot->entries ? slot->entries : 1) * 4; /* fp32 or int32 */
    void *values = malloc(bytes);
    if (!values) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %zu values", bytes / 4);
    if (slot->entries) {
        maker->table(maker->context, slot, values);
    } else {
        maker->values(maker->context, slot, values);
    }
    int code = pack_write(pack, values, bytes, error);
    free(values);
    return code;
}

/* A file being written. */
struct writer {
    struct pack *pack;
    const struct maker *maker;
    struct progress *progress;
    struct make_report *report;
};

/* Bytes that stay as they are, piece by piece: an n-gram table may be larger than the memory. */
static int write_kept(const struct writer *w, const void *data, size_t bytes, struct mo_error *error) {
    int code = 0;
    for (size_t at = 0; at < bytes && !code; at += BATCH_BYTES) {
        const uint8_t *piece = (const uint8_t *)data + at;
        const size_t n = bytes - at < BATCH_BYTES ? bytes - at : BATCH_BYTES;
        code = pack_write(w->pack, piece, n, error);
        if (w->maker->leave) w->maker->leave(w->maker->context, piece, n);
        progress_update(w->progress, (double)(w->report->bytes += (int64_t)n));
    }
    return code;
}

static int write_made(const struct writer *w, const struct slot *slot, const struct mat *mat, struct mo_error *error) {
    const size_t data = mat_data_bytes(mat), scales = mat_bytes(mat) - data;
    int code = pack_write(w->pack, mat->data, data, error);
    if (!code && mat_scales(mat)) code = pack_write(w->pack, mat_scales(mat), scales, error);
    leave_source(w->maker, slot);
    return code;
}

static int write_matrix(const struct writer *w, const struct slot *slot, const struct mat *mat, bool is_kept,
                        struct mo_error *error) {
    const size_t data = mat_data_bytes(mat);
    if (!is_kept) return write_made(w, slot, mat, error);
    int code = write_kept(w, mat->data, data, error);
    return code || !mat_scales(mat) ? code : write_kept(w, mat_scales(mat), mat_bytes(mat) - data, error);
}

static int write_batch(const struct writer *w, const struct batch *batch, const struct slot *slots, int from, int to,
                       struct mo_error *error) {
    int code = 0, k = 0;
    for (int i = from; i < to && !code; i++) {
        if (!slots[i].cols) {
            code = write_values(w->pack, w->maker, &slots[i], error);
            continue;
        }
        const bool is_kept = batch->first_unit[k] == batch->first_unit[k + 1];
        code = write_matrix(w, &slots[i], &batch->made[k++].mat, is_kept, error);
    }
    return code;
}

int make_file(struct pack *pack, struct pool *pool, const struct maker *maker, const struct slot *slots, int n,
              const char *label, const char *source, struct make_report *report, struct mo_error *error) {
    struct progress progress;
    struct batch batch;
    struct make_room buffer = {0};
    const struct writer writer = {pack, maker, &progress, report};
    *report = (struct make_report){0};
    int code = batch_open(&batch, maker, pool, slots, n, error);
    progress_begin(&progress, label, "GB", 1e-9, total_bytes(maker, slots, n));
    for (int i = 0; i < n && !code;) {
        int next = collect(&batch, &buffer, slots, i, n, error);
        code = next < 0 ? next : batch_fill(&batch, pool, source, report, error);
        progress.start_s += batch.apart_s;
        if (!code) code = write_batch(&writer, &batch, slots, i, next, error);
        progress_update(&progress, (double)report->bytes);
        i = next;
    }
    progress_end(&progress);
    make_room_close(&buffer);
    batch_close(&batch);
    report->bytes = pack_file_bytes(pack);
    return code;
}

/* ---- into memory ---- */

static int fill_memory(struct weights *weights, struct batch *batch, struct pool *pool, const struct slot *slots, int n,
                       const char *source, struct progress *progress, struct make_report *report,
                       struct mo_error *error) {
    uint8_t *at = weights->made;
    int code = 0;
    for (int i = 0; i < n && !code;) {
        size_t size = 0;
        batch_clear(batch);
        for (; i < n && size < BATCH_BYTES; i++) {
            if (!slots[i].cols) continue;
            struct made *made = batch_add(batch, &slots[i]);
            assert(!made->mat.data && "what stays as it is was dropped");
            place(&made->mat, at + size);
            size += room_bytes(&made->mat);
        }
        at += size;
        code = batch_fill(batch, pool, source, report, error);
        for (int k = 0; k < batch->n && !code; k++) {
            const struct slot *slot = batch->made[k].slot;
            leave_source(batch->maker, slot);
            *weights_matrix(weights, slot->role, slot->layer, slot->expert) = batch->made[k].mat;
        }
        progress_update(progress, (double)report->bytes);
    }
    return code;
}

int make_memory(struct weights *weights, struct pool *pool, const struct maker *maker, const struct slot *slots, int n,
                const char *label, const char *source, struct make_report *report, struct mo_error *error) {
    struct progress progress;
    struct batch batch;
    size_t size = 0;
    *report = (struct make_report){0};
    for (int i = 0; i < n; i++) {
        struct made made;
        if (!slots[i].cols) continue;
        layout(maker, &slots[i], &made);
        size += room_bytes(&made.mat);
    }
    double available = memory_available_bytes();
    void *memory = MAP_FAILED;
    if ((double)size < available) {
        memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    if (memory == MAP_FAILED) {
        return mo_error_set(
            error, MO_E_NO_MEMORY,
            "%s: %.3f GB of weights do not fit into memory, of which %.3f GB are free (a file of `moebius "
            "quantize` or `synth` is mapped and needs less)",
            source, (double)size * 1e-9, available * 1e-9);
    }
    weights->made = memory;
    weights->made_bytes = size;
    int code = batch_open(&batch, maker, pool, slots, n, error);
    progress_begin(&progress, label, "GB", 1e-9, total_bytes(maker, slots, n));
    if (!code) code = fill_memory(weights, &batch, pool, slots, n, source, &progress, report, error);
    progress_end(&progress);
    batch_close(&batch);
    return code;
}

/* ---- one by one ---- */

int make_one(const struct maker *maker, struct pool *pool, const struct slot *slot, const char *source,
             struct make_room *room, struct mat *out, struct mo_error *error) {
    struct make_report report = {0};
    struct batch batch;
    int code = batch_open(&batch, maker, pool, slot, 1, error);
    if (!code && collect(&batch, room, slot, 0, 1, error) < 0) code = MO_E_NO_MEMORY;
    if (!code) code = batch_fill(&batch, pool, source, &report, error);
    if (!code) *out = batch.made[0].mat;
    if (!code) leave_source(maker, slot);
    batch_close(&batch);
    return code;
}
