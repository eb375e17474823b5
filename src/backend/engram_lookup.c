#include "backend/engram_lookup.h"

#include <assert.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

static const struct mat *table_of(const struct engram_lookup *lookup, int which) {
    return &lookup->weights->layers[lookup->model->hybrid.engram.layer[which]].engram.table;
}

static int32_t *rows_of(const struct engram_lookup *lookup, int which, int row) {
    const size_t columns = (size_t)lookup->hash.columns;
    return lookup->rows + ((size_t)which * (size_t)lookup->max_rows + (size_t)row) * columns;
}

/* Are there bytes, and do the values of a row lie side by side? Those of our own blocks and of words do not; nobody makes such tables. */
static bool has_rows(const struct mat *table) {
    return table->data && !mat_is_integer(table->format) && !mat_is_words(table->format);
}

/* Of a row, in a tensor of their own. */
static size_t scales_of(const struct mat *table) {
    return table->scales8 ? (size_t)table->cols / FP8_ROW_GROUP : 0;
}

static void ask_for(const void *begin, size_t bytes) {
    const uintptr_t at = (uintptr_t)begin, first = at / PAGE * PAGE;
    madvise((void *)first, at + bytes - first, MADV_WILLNEED); /* where it is refused, a fault reads it */
}

static void ask_for_row(const struct mat *table, int row) {
    const size_t bytes = mat_data_bytes(table) / (size_t)table->rows, scales = scales_of(table);
    ask_for((const uint8_t *)table->data + bytes * (size_t)row, bytes);
    if (scales) ask_for(table->scales8 + scales * (size_t)row, scales);
}

/* Whole pages alone: what shares a page with a table's ends is another tensor's. */
static void read_single_pages(const void *begin, size_t bytes) {
    const uintptr_t first = ((uintptr_t)begin + PAGE - 1) / PAGE * PAGE, end = ((uintptr_t)begin + bytes) / PAGE * PAGE;
    if (first < end) madvise((void *)first, end - first, MADV_RANDOM);
}

int engram_lookup_open(struct engram_lookup *lookup, const struct model *model, const struct weights *weights,
                       int max_rows, int32_t *rows, struct mo_error *error) {
    const struct engram_model *e = &model->hybrid.engram;
    *lookup = (struct engram_lookup){.model = model, .weights = weights, .max_rows = max_rows, .rows = rows};
    for (int i = 0; i < e->n_layers; i++) {
        const struct mat *table = table_of(lookup, i);
        if (!table->data) continue;
        read_single_pages(table->data, mat_data_bytes(table));
        read_single_pages(table->scales8, scales_of(table) * (size_t)table->rows);
    }
    return engram_hash_init(&lookup->hash, e, error);
}

/* Folded ids of a row's token and of those before it. */
static void last_tokens(const struct engram_lookup *lookup, const struct batch *batch, const struct batch_seq *seq,
                        int row, int32_t *last) {
    const struct engram_model *e = &lookup->model->hybrid.engram;
    const int at = row - seq->first_row, pos = seq->first_pos + at;
    for (int back = 0; back < e->max_tokens; back++) {
        int32_t token = e->pad;
        if (back <= at) {
            token = batch->token[row - back];
        } else if (back <= pos) {
            token = seq->before[at - back];
        }
        last[back] = lookup->weights->folded[token];
    }
}

void engram_lookup_find(const struct engram_lookup *lookup, const struct batch *batch, const struct batch_seq *seq,
                        int which, int row) {
    const struct mat *table = table_of(lookup, which);
    int32_t last[ENGRAM_MAX_TOKENS], *rows = rows_of(lookup, which, row);
    assert(lookup->weights->folded);
    last_tokens(lookup, batch, seq, row, last);
    engram_hash_rows(&lookup->hash, which, last, rows);
    for (int c = 0; has_rows(table) && c < lookup->hash.columns; c++) ask_for_row(table, rows[c]);
}

void engram_lookup_values(const struct engram_lookup *lookup, int which, int row, int first, int n, float *out) {
    const struct mat *table = table_of(lookup, which);
    const int32_t *rows = rows_of(lookup, which, row);
    for (int i = 0; i < n; i++, out += table->cols) format_decode_span(table, rows[first + i], 0, table->cols, out);
}
