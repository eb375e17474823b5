/* The store of experts over a file whose every byte is known: whatever was evicted, predicted, given up or failed before, what
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

enum {
    LAYERS = 4,
    DENSE = 1,
    EXPERTS = 8,
    RECORDS = (LAYERS - DENSE) * EXPERTS,
    HEADER = 5000,
    RECORD = 4 * PACK_ALIGN
};

/* A packed file as far as the store looks at one: a header, then the records, each of three matrices at multiples of 4 KiB; the last
 * ends with the file. */
struct world {
    char path[64];
    struct model model;
    struct weights weights;
    struct layer layers[LAYERS];
    struct mlp experts[LAYERS][EXPERTS];
    struct shard shard;
    struct checkpoint checkpoint;
    uint8_t *bytes; /* [size] what the file holds */
    size_t size;
    struct store *store;
};

static uint32_t g_random = 1;

static int random_below(int n) {
    g_random = g_random * 1664525u + 1013904223u;
    return (int)((g_random >> 8) % (uint32_t)n);
}

static struct mat mat_at(const struct world *w, size_t offset, int rows) {
    return (struct mat){.format = MAT_BF16, .rows = rows, .cols = 64, .data = w->shard.map.data + offset};
}

static void place_experts(struct world *w) {
    for (int i = 0; i < RECORDS; i++) {
        size_t at = 2 * PACK_ALIGN + (size_t)i * RECORD;
        w->experts[DENSE + i / EXPERTS][i % EXPERTS] = (struct mlp){.gate = mat_at(w, at, 30),
                                                                    .up = mat_at(w, at + PACK_ALIGN, 33),
                                                                    .down = mat_at(w, at + 3 * PACK_ALIGN, 21)};
    }
    for (int l = 0; l < LAYERS; l++) w->layers[l].experts = l < DENSE ? NULL : w->experts[l];
}

static int setup(void **state) {
    struct world *w = calloc(1, sizeof *w);
    struct mo_error error;
    w->size = 2 * PACK_ALIGN + (size_t)(RECORDS - 1) * RECORD + 3 * PACK_ALIGN + 21 * 64 * 2;
    w->bytes = malloc(w->size);
    for (size_t i = 0; i < w->size; i++) w->bytes[i] = (uint8_t)(random_below(1 << 16) >> 3);
    strcpy(w->path, "/tmp/moebius-store-XXXXXX");
    close(mkstemp(w->path));
    assert_int_equal(file_write(w->path, w->bytes, w->size, &error), 0);
    assert_int_equal(file_map_open(&w->shard.map, w->path, &error), 0);
    w->shard.path = w->path;
    w->shard.header_bytes = HEADER;
    w->checkpoint = (struct checkpoint){.path = w->path, .is_packed = true, .shards = &w->shard, .n_shards = 1};
    w->model = (struct model){.layers = LAYERS, .dense_layers = DENSE, .experts = EXPERTS};
    w->weights.layers = w->layers;
    place_experts(w);
    *state = w;
    return 0;
}

static int teardown(void **state) {
    struct world *w = *state;
    store_close(w->store);
    file_map_close(&w->shard.map);
    unlink(w->path);
    free(w->bytes);
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

static void check_mat(const struct world *w, const struct mat *found, const struct mat *mapped) {
    size_t offset = (size_t)((const uint8_t *)mapped->data - w->shard.map.data);
    assert_true(found->data != mapped->data && found->rows == mapped->rows);
    assert_memory_equal(found->data, w->bytes + offset, (size_t)found->rows * 64 * 2);
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
    assert_int_equal(truncate(w->path, (off_t)w->size - 1), 0);
    assert_int_equal(visit(w, LAYERS - 1, &last, 1, &error), MO_E_IO);
    assert_non_null(strstr(error.message, "layer 3, expert 7: expected"));
    assert_int_equal(visit(w, LAYERS - 1, &first, 1, &error), 0);
    assert_int_equal(visit(w, LAYERS - 1, &last, 1, &error), MO_E_IO); /* nor is it remembered as there */
}

static void expect_refusal(struct world *w, const char *words) {
    struct store *store;
    struct mo_error error;
    assert_int_equal(store_open(&store, &w->model, &w->weights, &w->checkpoint, &error), MO_E_UNSUPPORTED);
    if (!strstr(error.message, words) && !strstr(error.message, "moebius quantize")) fail_msg("%s", error.message);
}

static void test_refused(void **state) {
    struct world *w = *state;
    struct mo_error error;
    struct mlp *mlp = &w->experts[2][3], good = *mlp;
    mlp->up.data = w->experts[2][5].up.data; /* an expert in two places */
    expect_refusal(w, "layer 2, expert 3: expected gate, up and down");
    *mlp = (struct mlp){good.up, good.gate, good.down};
    expect_refusal(w, "one after the other");
    *mlp = w->experts[2][2];
    expect_refusal(w, "ascending");
    *mlp = good;
    mlp->down.rows = 1 << 20; /* past the end */
    expect_refusal(w, "one after the other");
    *mlp = good;
    w->checkpoint.is_packed = false;
    expect_refusal(w, "one packed file");
    w->checkpoint.is_packed = true;
    w->model.experts = 0;
    expect_refusal(w, "no experts");
    w->model.experts = EXPERTS;
    assert_int_equal(store_open(&w->store, &w->model, &w->weights, &w->checkpoint, &error), 0);
    assert_int_equal(store_start(w->store, 2 * store_slot_bytes(w->store) - 1, false, NULL, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "room for 2 experts"));
}

/* Another file under the same name. */
static void test_replaced(void **state) {
    struct world *w = *state;
    struct mo_error error;
    w->bytes[HEADER - 1] ^= 1;
    assert_int_equal(file_write(w->path, w->bytes, w->size, &error), 0);
    assert_int_equal(store_open(&w->store, &w->model, &w->weights, &w->checkpoint, &error), 0);
    assert_int_equal(store_start(w->store, 1 << 20, true, NULL, &error), MO_E_IO);
    assert_non_null(strstr(error.message, "replaced"));
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
