/* backend/cuda/upload_words.c - other people's INT4 and INT8 (model/format.h) on their way to the card: the same integers in the order of
 * AWQ's words, or of our INT8, one matrix at a time. */
#include <stdatomic.h>
#include <stdlib.h>
#include "backend/cuda/upload.h"

struct task {
    const struct mat *from, *to;
    atomic_bool is_inexact;
};

static void take_rows(void *context, int word, int worker) {
    (void)worker;
    struct task *task = context;
    if (!words_to_awq(task->from, word, task->to)) atomic_store(&task->is_inexact, true);
}

static int reserve(struct upload *u, size_t bytes) {
    if (bytes <= u->words_bytes) return 0;
    free(u->words);
    u->words = malloc(bytes);
    u->words_bytes = u->words ? bytes : 0;
    return u->words ? 0 : mo_error_set(u->error, MO_E_NO_MEMORY, "no memory for a matrix of %zu bytes", bytes);
}

int upload_as_awq(struct upload *u, const struct mat **mat, struct mat *room, const char *what) {
    const struct mat *from = *mat;
    *room =
        (struct mat){.format = MAT_INT4_AWQ, .rows = from->rows, .cols = from->cols, .group_size = from->group_size};
    if (from->rows % 8) {
        return mo_error_set(u->error, MO_E_UNSUPPORTED, "%s: GPU kernels take %s in eights of rows, found %d", what,
                            mat_format_name(from->format), from->rows);
    }
    int code = reserve(u, mat_bytes(room));
    if (code) return code;
    room->data = u->words;
    room->zeros = (const uint32_t *)((const uint8_t *)u->words + mat_data_bytes(room));
    room->scales16 = (const uint16_t *)((const uint8_t *)room->zeros + words_zero_bytes(room));
    struct task task = {.from = from, .to = room};
    if (u->pool) {
        pool_run(u->pool, from->rows / 8, take_rows, &task);
    } else {
        for (int word = 0; word < from->rows / 8; word++) take_rows(&task, word, 0);
    }
    *mat = room;
    if (!atomic_load(&task.is_inexact)) return 0;
    return mo_error_set(u->error, MO_E_UNSUPPORTED,
                        "%s: GPU kernels take the scales of %s as fp16, and here are some that fp16 does not hold; "
                        "--quantization int4 makes it a format that they know (--device cpu takes it as it is)",
                        what, mat_format_name(from->format));
}

static void turn_panel(void *context, int panel, int worker) {
    (void)worker;
    const struct task *task = context;
    mat_turn_panel(task->from, panel,
                   (uint8_t *)(uintptr_t)task->to->data + (size_t)panel * block_panel_bytes(task->to));
}

int upload_as_int8(struct upload *u, const struct mat **mat, struct mat *room) {
    *room = mat_turned(*mat, NULL);
    int code = reserve(u, mat_bytes(room));
    if (code) return code;
    room->data = u->words;
    struct task task = {.from = *mat, .to = room};
    const int panels = mat_panels(*mat);
    if (u->pool) {
        pool_run(u->pool, panels, turn_panel, &task);
    } else {
        for (int panel = 0; panel < panels; panel++) turn_panel(&task, panel, 0);
    }
    *mat = room;
    return 0;
}

void upload_words_close(struct upload *u) {
    free(u->words);
    u->words = NULL;
    u->words_bytes = 0;
}
