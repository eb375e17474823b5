/* The store of experts over files whose every byte is known: whatever was evicted, predicted, given up or failed before, what
 * store_expert gives is the right expert; and what stays is what store.h says. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "expert/store.h"
#include "model/pack.h"
#include "random_below.h"

enum {
    LAYERS = 4,
    DENSE = 1,
    EXPERTS = 8,
    RECORDS = (LAYERS - DENSE) * EXPERTS,
    HEADER = 5000,
    RECORD = 4 * PACK_ALIGN,
    FILES = 2,
    PLAIN_BYTES = (1 << 20) + 2222,
    COLS = 64
};

/* Either a packed file as far as the store looks at one: a header, then the records, each of three matrices at multiples of 4 KiB; the
 * last ends with the file. Or a published checkpoint: two files, and tensors of BF16, FP8 and AWQ anywhere in them. */
struct world {
    char paths[FILES][64];
    struct model model;
    struct weights weights;
    struct layer layers[LAYERS];
    struct mlp experts[LAYERS][EXPERTS];
    struct shard shards[FILES];
    struct checkpoint checkpoint;
    uint8_t *bytes[FILES];  /* [size] what each file holds */
    size_t size, at[FILES]; /* place_tensor: where each of them is full up to */
    struct tensor predicts; /* of a prediction layer */
    struct store *store;
};

static struct mat mat_at(const struct world *w, size_t offset, int rows) {
    return (struct mat){.format = MAT_BF16, .rows = rows, .cols = COLS, .data = w->shards[0].map.data + offset};
}

static void place_experts(struct world *w) {
    for (int i = 0; i < RECORDS; i++) {
        size_t at = 2 * PACK_ALIGN + (size_t)i * RECORD;
        w->experts[DENSE + i / EXPERTS][i % EXPERTS] = (struct mlp){.gate = mat_at(w, at, 30),
                                                                    .up = mat_at(w, at + PACK_ALIGN, 33),
                                                                    .down = mat_at(w, at + 3 * PACK_ALIGN, 21)};
    }
}

static void make_file(struct world *w, int index) {
    struct shard *shard = &w->shards[index];
    struct mo_error error;
    w->bytes[index] = malloc(w->size);
    for (size_t i = 0; i < w->size; i++) w->bytes[index][i] = (uint8_t)(random_below(1 << 16) >> 3);
    strcpy(w->paths[index], "/tmp/moebius-store-XXXXXX");
    close(mkstemp(w->paths[index]));
    assert_int_equal(file_write(w->paths[index], w->bytes[index], w->size, &error), 0);
    assert_int_equal(file_map_open(&shard->map, w->paths[index], &error), 0);
    shard->path = w->paths[index];
    shard->header_bytes = HEADER;
    w->checkpoint.n_shards++;
}

static struct world *make_world(int files, size_t size) {
    struct world *w = calloc(1, sizeof *w);
    w->size = size;
    w->checkpoint = (struct checkpoint){.path = "model", .is_packed = files == 1, .shards = w->shards};
    w->model = (struct model){.layers = LAYERS, .dense_layers = DENSE, .experts = EXPERTS};
    w->weights.layers = w->layers;
    for (int i = 0; i < files; i++) make_file(w, i);
    for (int l = DENSE; l < LAYERS; l++) w->layers[l].experts = w->experts[l];
    return w;
}

static int setup(void **state) {
    size_t size = 2 * PACK_ALIGN + (size_t)(RECORDS - 1) * RECORD + 3 * PACK_ALIGN + 21 * COLS * 2;
    struct world *w = make_world(1, size);
    place_experts(w);
    *state = w;
    return 0;
}

/* Right behind the one before, or further on; at an even offset, for safetensors promises no more. */
static const void *place_tensor(struct world *w, size_t bytes) {
    int file = random_below(FILES);
    w->at[file] += random_below(2) ? 0 : 2 * (size_t)random_below(6000);
    const uint8_t *data = w->shards[file].map.data + w->at[file];
    w->at[file] += bytes;
    assert_true(w->at[file] <= w->size);
    return data;
}

static struct mat make_mat(struct world *w, enum mat_format format, int rows) {
    struct mat mat = {.format = format, .rows = rows, .cols = COLS, .group_size = 32};
    static const float scale = 1;
    size_t weights = (size_t)rows * COLS;
    mat.data = place_tensor(w, format == MAT_BF16 ? 2 * weights : format == MAT_FP8 ? weights : weights / 2);
    if (format == MAT_FP8) mat.scale = &scale;
    if (format == MAT_FP4) mat.scales8 = place_tensor(w, weights / FP4_GROUP);
    if (format != MAT_INT4_AWQ) return mat;
    mat.zeros = place_tensor(w, 2 * (size_t)rows / 2);
    mat.scales16 = place_tensor(w, 2 * (size_t)rows * 2);
    return mat;
}

static int setup_plain(void **state) {
    static const enum mat_format formats[] = {MAT_BF16, MAT_FP8, MAT_INT4_AWQ, MAT_FP4};
    struct world *w = make_world(FILES, PLAIN_BYTES);
    w->at[0] = w->at[1] = HEADER;
    for (int i = 0; i < RECORDS; i++) {
        struct mlp *mlp = &w->experts[DENSE + (RECORDS - 1 - i) / EXPERTS][i % EXPERTS];
        mlp->down = make_mat(w, formats[i % 4], 24 + 8 * (i % 5));
        mlp->gate = make_mat(w, formats[i % 4], 72);
        mlp->up = make_mat(w, formats[i % 4], 72);
    }
    w->predicts = (struct tensor){.name = "model.layers.4.x", .data = place_tensor(w, 9000), .bytes = 9000};
    w->checkpoint.tensors = &w->predicts;
    w->checkpoint.n_tensors = 1;
    *state = w;
    return 0;
}

static int teardown(void **state) {
    struct world *w = *state;
    store_close(w->store);
    for (int i = 0; i < w->checkpoint.n_shards; i++) {
        file_map_close(&w->shards[i].map);
        unlink(w->paths[i]);
        free(w->bytes[i]);
    }
    free(w);
    return 0;
}

static void start(struct world *w, int slots, stream_pread *read) {
    struct mo_error error = {0};
    store_close(w->store);
    w->store = NULL;
    assert_int_equal(store_open(&w->store, &w->model, &w->weights, &w->checkpoint, &error), 0);
    int code = store_start(w->store, (size_t)slots * store_slot_bytes(w->store), false, read, &error);
    if (code) fail_msg("%s", error.message);
    assert_int_equal(store_slots(w->store), slots < RECORDS ? slots : RECORDS);
}

/* Not the mapped bytes, but alike, and no worse aligned. */
static void check_tensor(const struct world *w, const void *found, const void *mapped, size_t bytes) {
    const uint8_t *at = mapped;
    int file = w->checkpoint.n_shards - 1;
    while (at < w->shards[file].map.data || at >= w->shards[file].map.data + w->size) assert_true(file-- > 0);
    assert_true(found != mapped && ((uintptr_t)found - (uintptr_t)mapped) % PACK_ALIGN == 0);
    assert_memory_equal(found, w->bytes[file] + (at - w->shards[file].map.data), bytes);
}

static void check_mat(const struct world *w, const struct mat *found, const struct mat *mapped) {
    size_t weights = (size_t)found->rows * COLS;
    assert_true(found->format == mapped->format && found->rows == mapped->rows && found->scale == mapped->scale);
    if (found->format == MAT_BF16) check_tensor(w, found->data, mapped->data, 2 * weights);
    if (found->format == MAT_FP8) check_tensor(w, found->data, mapped->data, weights);
    if (found->format == MAT_FP4) {
        check_tensor(w, found->data, mapped->data, weights / 2);
        check_tensor(w, found->scales8, mapped->scales8, weights / FP4_GROUP);
    }
    if (found->format != MAT_INT4_AWQ) return;
    check_tensor(w, found->data, mapped->data, weights / 2);
    check_tensor(w, found->zeros, mapped->zeros, (size_t)found->rows);
    check_tensor(w, found->scales16, mapped->scales16, 4 * (size_t)found->rows);
}

static void check_expert(const struct world *w, int layer, int expert) {
    const struct mlp *found = store_expert(w->store, layer, expert), *mapped = &w->experts[layer][expert];
    check_mat(w, &found->gate, &mapped->gate);
    check_mat(w, &found->up, &mapped->up);
    check_mat(w, &found->down, &mapped->down);
}

/* What a layer does: all of the list, in waves. Returns the first failure. */
static int visit(struct world *w, int layer, const int *experts, int n, struct mo_error *error) {
    int wave = store_visit(w->store, layer, experts, n), asked = 0, code = 0;
    assert_true(wave >= 1 && (wave >= n || 2 * wave <= store_slots(w->store)));
    for (int from = 0; from < n && !code; from += wave) {
        int to = from + wave < n ? from + wave : n, next = to + wave < n ? to + wave : n;
        for (; asked < next; asked++) store_ask(w->store, layer, experts[asked]);
        for (int i = from; i < to && !code; i++) {
            code = store_wait(w->store, layer, experts[i], error);
            if (!code) assert_true(store_is_there(w->store, layer, experts[i]));
        }
        for (int i = from; i < to && !code; i++) check_expert(w, layer, experts[i]);
        for (int i = from; i < (code ? asked : to); i++) store_release(w->store, layer, experts[i]);
    }
    return code;
}

static int choose(int *experts, int most) {
    int n = 0, wanted = 1 + random_below(most);
    for (int e = 0; e < EXPERTS; e++) {
        if (random_below(EXPERTS) < wanted) experts[n++] = e;
    }
    if (!n) experts[n++] = random_below(EXPERTS);
    return n;
}

static void predict(struct world *w, int layer, int n) {
    int32_t experts[] = {random_below(EXPERTS), random_below(EXPERTS), random_below(EXPERTS)};
    if (layer < LAYERS) store_predict(w->store, layer, experts, n);
}

/* ---- bytes ---- */

static void test_every_size(void **state) {
    struct world *w = *state;
    struct mo_error error = {0};
    int experts[EXPERTS];
    for (int slots = STORE_MIN_SLOTS; slots <= RECORDS + 1; slots++) {
        for (int predicted = 0; predicted <= 3; predicted += 3) {
            start(w, slots, NULL);
            for (int i = 0; i < 60; i++) {
                int layer = DENSE + i % (LAYERS - DENSE), n = choose(experts, EXPERTS);
                assert_int_equal(visit(w, layer, experts, n, &error), 0);
                predict(w, layer + 1, predicted);
            }
        }
    }
}

static void test_all_stay(void **state) {
    struct world *w = *state;
    struct store_stats stats;
    static const int all[EXPERTS] = {0, 1, 2, 3, 4, 5, 6, 7};
    start(w, RECORDS, NULL);
    for (int pass = 0; pass < 3; pass++) {
        for (int l = DENSE; l < LAYERS; l++) assert_int_equal(visit(w, l, all, EXPERTS, NULL), 0);
    }
    store_stats_get(w->store, &stats);
    assert_int_equal(stats.misses, RECORDS);
    assert_int_equal(stats.hits, 2 * RECORDS);
    assert_true(stats.read_bytes >= store_record_bytes(w->store) && stats.read_bytes < w->size + RECORDS * PACK_ALIGN);
    assert_true(store_rest_bytes(w->store) <= w->size - store_record_bytes(w->store));
}

/* What is to stay in memory are neither experts nor prediction layers, and no reads are larger than they must. */
static void test_rest_of_plain_files(void **state) {
    struct world *w = *state;
    start(w, RECORDS, NULL);
    size_t rest = store_rest_bytes(w->store), experts = 0;
    for (int i = 0; i < RECORDS; i++) {
        const struct mlp *mlp = &w->experts[DENSE + i / EXPERTS][i % EXPERTS];
        const struct mat *mats[] = {&mlp->gate, &mlp->up, &mlp->down};
        for (int k = 0; k < 3; k++) {
            size_t weights = (size_t)mats[k]->rows * COLS, rows = (size_t)mats[k]->rows;
            experts += mats[k]->format == MAT_BF16  ? 2 * weights
                       : mats[k]->format == MAT_FP8 ? weights
                       : mats[k]->format == MAT_FP4 ? weights / 2 + weights / FP4_GROUP
                                                    : weights / 2 + 5 * rows;
        }
    }
    assert_true(store_record_bytes(w->store) >= experts);
    assert_true(rest > 2 * HEADER && rest <= FILES * PLAIN_BYTES - experts - w->predicts.bytes);
    assert_true(rest > (FILES * PLAIN_BYTES - experts) / 8);
    w->predicts.name = "mtp.0.x"; /* as V4 calls it */
    start(w, RECORDS, NULL);
    assert_int_equal(store_rest_bytes(w->store), rest);
    w->checkpoint.n_tensors = 0;
    start(w, RECORDS, NULL);
    assert_true(store_rest_bytes(w->store) > rest && store_rest_bytes(w->store) <= rest + w->predicts.bytes);
    store_touch_rest(w->store);
}

/* ---- what stays, by a plainer hand ---- */

struct reference {
    int n_slots, n_held, held[RECORDS]; /* records */
    int needed[RECORDS];
    float weight[RECORDS], most[LAYERS];
    unsigned seen[RECORDS], visits[LAYERS];
    uint64_t hits, misses;
};

static float reference_weight(const struct reference *r, int record) {
    unsigned age = r->visits[DENSE + record / EXPERTS] - r->seen[record];
    return age < 16 * STORE_HALF_LIFE ? r->weight[record] * exp2f(-(float)age / STORE_HALF_LIFE) : 0;
}

static int reference_distance(int record, int layer) {
    int ahead = DENSE + record / EXPERTS - layer;
    return ahead > 0 ? ahead : ahead + LAYERS;
}

static bool goes_before(const struct reference *r, int a, int b, int layer) {
    if (r->needed[a] != r->needed[b]) return !r->needed[a];
    float x = reference_weight(r, a) / r->most[DENSE + a / EXPERTS];
    float y = reference_weight(r, b) / r->most[DENSE + b / EXPERTS];
    if (x != y) return x < y;
    int p = reference_distance(a, layer), q = reference_distance(b, layer);
    return p != q ? p > q : a > b;
}

/* `pinned`: [n_pinned] records that must stay. */
static void reference_ask(struct reference *r, int record, const int *pinned, int n_pinned) {
    int best = -1;
    for (int i = 0; i < r->n_held; i++) {
        if (r->held[i] == record) {
            r->hits++;
            return;
        }
    }
    r->misses++;
    if (r->n_held < r->n_slots) {
        r->held[r->n_held++] = record;
        return;
    }
    for (int i = 0; i < r->n_held; i++) {
        bool is_pinned = false;
        for (int k = 0; k < n_pinned; k++) is_pinned = is_pinned || pinned[k] == r->held[i];
        if (is_pinned) continue;
        if (best < 0 || goes_before(r, r->held[i], r->held[best], DENSE + record / EXPERTS)) best = i;
    }
    r->held[best] = record;
}

static void reference_visit(struct reference *r, int layer, const int *experts, int n) {
    int wave = n <= r->n_slots ? n : r->n_slots / 2, pinned[EXPERTS], first = 0, asked = 0;
    r->visits[layer]++;
    r->most[layer] = 1 + r->most[layer] * exp2f(-1.0f / STORE_HALF_LIFE);
    for (int i = 0; i < n; i++) {
        int record = (layer - DENSE) * EXPERTS + experts[i];
        r->weight[record] = 1 + reference_weight(r, record);
        r->seen[record] = r->visits[layer];
        r->needed[record] = 1;
    }
    for (int from = 0; from < n; from += wave) {
        int next = from + 2 * wave < n ? from + 2 * wave : n;
        for (; asked < next; asked++) {
            pinned[asked] = (layer - DENSE) * EXPERTS + experts[asked];
            reference_ask(r, pinned[asked], pinned + first, asked - first);
        }
        for (; first < from + wave && first < n; first++) r->needed[pinned[first]] = 0;
    }
}

static void test_what_stays(void **state) {
    struct world *w = *state;
    struct store_stats stats;
    int experts[EXPERTS];
    for (int slots = STORE_MIN_SLOTS; slots < RECORDS; slots += 1 + slots / 3) {
        struct reference r = {.n_slots = slots};
        start(w, slots, NULL);
        for (int i = 0; i < 150; i++) {
            int layer = DENSE + i % (LAYERS - DENSE), n = choose(experts, i % 7 ? 3 : EXPERTS);
            reference_visit(&r, layer, experts, n);
            assert_int_equal(visit(w, layer, experts, n, NULL), 0);
            store_stats_get(w->store, &stats);
            assert_int_equal(stats.hits, r.hits);
            assert_int_equal(stats.misses, r.misses);
        }
        assert_true(r.hits > 0);
    }
}

/* Prompts want all experts in turn: who forgets the least recently used finds nothing. */
static void test_a_scan_leaves_most_in_place(void **state) {
    struct world *w = *state;
    struct store_stats stats;
    static const int all[EXPERTS] = {0, 1, 2, 3, 4, 5, 6, 7};
    start(w, RECORDS / 2, NULL);
    for (int pass = 0; pass < 10; pass++) {
        for (int l = DENSE; l < LAYERS; l++) assert_int_equal(visit(w, l, all, EXPERTS, NULL), 0);
    }
    store_stats_get(w->store, &stats);
    assert_true(stats.hits >= 9 * RECORDS / 4);
}

/* ---- reading ahead ---- */

static void test_predictions(void **state) {
    struct world *w = *state;
    struct store_stats stats;
    start(w, 16, NULL);
    static const int first[] = {0, 1}, second[] = {0, 1, 2, 3};
    static const int32_t all[] = {0, 1, 2, 2, 1, 3, 4, 5, 6, 7}, one[] = {0};
    store_predict(w->store, 1, all, 10); /* a quarter of the slots: four */
    assert_int_equal(visit(w, 1, first, 2, NULL), 0);
    store_stats_get(w->store, &stats);
    assert_int_equal(stats.predicted, 4);
    assert_int_equal(stats.used, 2);
    assert_int_equal(stats.wasted, 2);
    store_predict(w->store, 2, one, 1); /* it has time to come */
    usleep(50000);
    assert_int_equal(visit(w, 2, second, 4, NULL), 0);
    store_stats_get(w->store, &stats);
    assert_int_equal(stats.used, 3);
    assert_true(stats.hits >= 1);
}

/* ---- failures ---- */

static atomic_bool g_is_broken;

static ssize_t pread_at_times(int file, void *to, size_t n, off_t at) {
    if (!atomic_load(&g_is_broken)) return pread(file, to, n, at);
    errno = EIO;
    return -1;
}

/* Ten visits in a row while the disk fails at times: each fails with a sentence or gives the right bytes. */
static void test_broken_disk(void **state) {
    struct world *w = *state;
    int experts[EXPERTS], n_failed = 0;
    for (int slots = STORE_MIN_SLOTS; slots < RECORDS; slots += 5) {
        start(w, slots, pread_at_times);
        for (int i = 0; i < 60; i++) {
            struct mo_error error = {0};
            atomic_store(&g_is_broken, i % 4 == 1);
            int layer = DENSE + i % (LAYERS - DENSE);
            int code = visit(w, layer, experts, choose(experts, EXPERTS), &error);
            predict(w, layer + 1, 3);
            if (!code) continue;
            assert_int_equal(code, MO_E_IO);
            assert_non_null(strstr(error.message, strerror(EIO)));
            n_failed++;
        }
        atomic_store(&g_is_broken, false);
    }
    assert_true(n_failed > 10);
}

static void test_cut_file(void **state) {
    struct world *w = *state;
    struct mo_error error = {0};
    int last = EXPERTS - 1, first = 0;
    start(w, 4, NULL);
    assert_int_equal(truncate(w->paths[0], (off_t)w->size - 1), 0);
    assert_int_equal(visit(w, LAYERS - 1, &last, 1, &error), MO_E_IO);
    assert_non_null(strstr(error.message, "layer 3, expert 7: expected"));
    assert_int_equal(visit(w, LAYERS - 1, &first, 1, &error), 0);
    assert_int_equal(visit(w, LAYERS - 1, &last, 1, &error), MO_E_IO); /* nor is it remembered as there */
}

static void expect_refusal(struct world *w, const char *words) {
    struct store *store;
    struct mo_error error;
    assert_int_equal(store_open(&store, &w->model, &w->weights, &w->checkpoint, &error), MO_E_UNSUPPORTED);
    if (!strstr(error.message, words)) fail_msg("%s", error.message);
}

static void test_refused(void **state) {
    struct world *w = *state;
    struct mo_error error;
    struct mlp *mlp = &w->experts[2][3], good = *mlp;
    mlp->down.rows = 1 << 20; /* past the end */
    expect_refusal(w, "layer 2, expert 3: expected its weights in the model's files");
    *mlp = good;
    mlp->up.data = w->bytes; /* in memory */
    expect_refusal(w, "in the model's files");
    *mlp = good;
    w->weights.made = w->bytes;
    expect_refusal(w, "made in memory");
    w->weights.made = NULL;
    w->model.experts = 0;
    expect_refusal(w, "no experts");
    w->model.experts = EXPERTS;
    assert_int_equal(store_open(&w->store, &w->model, &w->weights, &w->checkpoint, &error), 0);
    assert_int_equal(store_start(w->store, 2 * store_slot_bytes(w->store) - 1, false, NULL, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "room for 2 experts"));
}

/* Another file under the same name: any of them, another header or another beginning of the data. */
static void test_replaced(void **state) {
    struct world *w = *state;
    struct mo_error error;
    int file = w->checkpoint.n_shards - 1;
    w->bytes[file][file ? HEADER + 100 : HEADER - 1] ^= 1;
    char beside[sizeof w->paths[0] + 4];
    snprintf(beside, sizeof beside, "%s.new", w->paths[file]); /* we ourselves write no file that is being read */
    assert_int_equal(file_write(beside, w->bytes[file], w->size, &error), 0);
    assert_int_equal(rename(beside, w->paths[file]), 0);
    assert_int_equal(store_open(&w->store, &w->model, &w->weights, &w->checkpoint, &error), 0);
    assert_int_equal(store_start(w->store, 1 << 20, true, NULL, &error), MO_E_IO);
    assert_non_null(strstr(error.message, "replaced"));
    assert_non_null(strstr(error.message, w->paths[file]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_size, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_scan_leaves_most_in_place, setup, teardown),
        cmocka_unit_test_setup_teardown(test_predictions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_broken_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_size, setup_plain, teardown),
        cmocka_unit_test_setup_teardown(test_what_stays, setup_plain, teardown),
        cmocka_unit_test_setup_teardown(test_predictions, setup_plain, teardown),
        cmocka_unit_test_setup_teardown(test_broken_disk, setup_plain, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup_plain, teardown),
        cmocka_unit_test_setup_teardown(test_replaced, setup_plain, teardown),
        cmocka_unit_test_setup_teardown(test_rest_of_plain_files, setup_plain, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
