/* Two ranks of which one is this test: what the engine does when the other is another version, fails a request, or asks for
 * nonsense. The transport is a queue in memory; what real ranks compute is tests/test_ranks.py's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/cpu.h"
#include "engine/ranks.h"
#include "forward.h"

static const char MODEL[] = "tests/golden/data/v3-tiny";
enum { QUEUE = 16 };

/* The other side. */
static struct {
    int self; /* the rank that is not played by the test */
    void (*answer)(const uint8_t *message, size_t bytes);
    uint8_t *message[QUEUE]; /* on their way to the program */
    size_t bytes[QUEUE];
    int first, n;
    void *to[RANKS_SLOTS]; /* receives that wait */
    int seen[WIRE_BYE + 1];
    uint32_t failures; /* requests to fail before the first that is answered */
    int32_t code;      /* with this */
    int32_t n_pairs;   /* of the plan */
    struct wire_hello hello;
    double start_s; /* looks for messages are counted from there ... */
    int n_looks[2]; /* ... after 5 ms, after half a second */
    double last_s;
} world;

static void push(const void *message, size_t bytes) {
    int at = (world.first + world.n++) % QUEUE;
    assert_true(world.n <= QUEUE);
    world.message[at] = memcpy(calloc(1, bytes), message, bytes);
    world.bytes[at] = bytes;
}

static void push_kind(enum wire_kind kind) {
    const struct wire_head head = {WIRE_MAGIC, kind};
    push(&head, sizeof head);
}

static int fake_start(int *self, int *count, char *text) {
    (void)text;
    *self = world.self;
    *count = 2;
    return 0;
}

static int fake_send(int slot, int rank, const void *data, size_t bytes, char *text) {
    const struct wire_head *head = data;
    (void)slot, (void)text;
    assert_int_equal(rank, 1 - world.self);
    assert_true(head->magic == WIRE_MAGIC && head->kind >= WIRE_HELLO && head->kind <= WIRE_BYE);
    world.seen[head->kind]++;
    world.answer(data, bytes);
    return 0;
}

static int fake_receive(int slot, int rank, void *data, size_t bytes, char *text) {
    (void)rank, (void)bytes, (void)text;
    world.to[slot] = data;
    return 0;
}

static int fake_test(int slot, int *done, size_t *bytes, char *text) {
    (void)text;
    *done = slot < RANKS_MAX || world.n > 0;
    if (slot < RANKS_MAX || !world.n) return 0;
    *bytes = world.bytes[world.first];
    memcpy(world.to[slot], world.message[world.first], *bytes);
    free(world.message[world.first]);
    world.first = (world.first + 1) % QUEUE;
    world.n--;
    return 0;
}

static int fake_probe(int *rank, size_t *bytes, char *text) {
    (void)text;
    world.last_s = clock_now_s() - world.start_s;
    world.n_looks[0] += world.last_s > 0.005;
    world.n_looks[1] += world.last_s > 0.51;
    *rank = world.n ? 1 - world.self : -1;
    *bytes = world.n ? world.bytes[world.first] : 0;
    return 0;
}

static int fake_finish(char *text) {
    (void)text;
    return 0;
}

static void fake_abort(int status) {
    fail_msg("everything was ended with %d", status);
}

static const struct ranks_transport fake = {
    RANKS_TRANSPORT_VERSION, fake_start, fake_send, fake_receive, fake_test, fake_probe, fake_finish, fake_abort};

static void begin(int self, void (*answer)(const uint8_t *, size_t)) {
    struct mo_error error = {0};
    memset(&world, 0, sizeof world);
    world.self = self;
    world.answer = answer;
    if (ranks_start_with(&fake, &error)) fail_msg("%s", error.message);
}

static void options_of(struct engine_options *options) {
    engine_options_init(options);
    options->model = MODEL;
    options->threads = 1;
    options->max_model_len = 64;
    options->max_num_batched_tokens = 8;
    options->max_logits = 8;
}

/* ---- the other one is rank 1 ---- */

static void fill_hello(struct wire_hello *hello) {
    struct checkpoint checkpoint;
    struct mo_error error = {0};
    *hello = (struct wire_hello){.head = {WIRE_MAGIC, WIRE_HELLO},
                                 .wire_version = WIRE_VERSION,
                                 .version = MOEBIUS_VERSION,
                                 .host = "elsewhere",
                                 .memory_bytes = 1e12};
    enum cpu_level level;
    assert_int_equal(cpu_level_get(&level, &error), 0);
    snprintf(hello->bits, sizeof hello->bits, "%s", cpu_level_bits(level));
    int code = checkpoint_open(&checkpoint, MODEL, &error);
    if (!code) code = checkpoint_hash(&checkpoint, 0, hello->hash, &error);
    if (code) fail_msg("%s", error.message);
    checkpoint_close(&checkpoint);
}

/* Outputs are all zero, or the request fails. */
static void answer_request(const struct wire_request *request, int hidden) {
    size_t bytes = sizeof(struct wire_reply) + (size_t)request->n_pairs * (size_t)hidden * 4;
    const struct wire_failed failed = {
        .head = {WIRE_MAGIC, WIRE_FAILED}, .code = world.code, .text = "the disk is on fire"};
    if (world.failures) {
        world.failures--;
        push(&failed, sizeof failed);
        return;
    }
    struct wire_reply *reply = calloc(1, bytes);
    assert_non_null(reply);
    *reply =
        (struct wire_reply){.head = {WIRE_MAGIC, WIRE_REPLY}, .n_pairs = request->n_pairs, .serial = request->serial};
    push(reply, bytes);
    free(reply);
}

static int hidden_of_model;

static void act_as_rank_1(const uint8_t *message, size_t bytes) {
    (void)bytes;
    switch ((enum wire_kind)((const struct wire_head *)message)->kind) {
    case WIRE_PLAN:
        push_kind(WIRE_ALIVE);
        push_kind(WIRE_READY);
        break;
    case WIRE_REQUEST:
        answer_request((const struct wire_request *)message, hidden_of_model);
        break;
    case WIRE_END:
        push_kind(WIRE_BYE);
        break;
    default:
        break;
    }
}

static void test_same_version_and_model(void **state) {
    (void)state;
    struct engine_options options;
    struct engine *engine = NULL;
    struct mo_error error = {0};
    options_of(&options);
    begin(0, act_as_rank_1);
    fill_hello(&world.hello);
    strcpy(world.hello.version, "9.9.9");
    push(&world.hello, sizeof world.hello);
    assert_int_equal(engine_open(&engine, &options, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "rank 1 (elsewhere)"));
    assert_non_null(strstr(error.message, "9.9.9"));
    assert_non_null(strstr(error.message, MOEBIUS_VERSION));
    uint8_t longer[sizeof world.hello + 999] = {0}; /* as a version may say that comes after this one */
    memcpy(longer, &world.hello, sizeof world.hello);
    push(longer, sizeof longer);
    assert_int_equal(engine_open(&engine, &options, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "9.9.9"));
    fill_hello(&world.hello);
    world.hello.hash[3] ^= 1;
    push(&world.hello, sizeof world.hello);
    assert_int_equal(engine_open(&engine, &options, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, world.hello.hash));
    fill_hello(&world.hello);
    strcpy(world.hello.bits, "of its own");
    push(&world.hello, sizeof world.hello);
    assert_int_equal(engine_open(&engine, &options, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "MOEBIUS_CPU"));
    assert_non_null(strstr(error.message, "of its own"));
    ranks_end();
    assert_true(world.seen[WIRE_END] == 1 && world.seen[WIRE_PLAN] == 0);
}

static void test_flags_that_do_not_go_together(void **state) {
    (void)state;
    struct engine_options options;
    struct engine *engine = NULL;
    struct mo_error error = {0};
    begin(0, act_as_rank_1);
    options_of(&options);
    options.expert_shares = "1,2,3";
    assert_int_equal(engine_open(&engine, &options, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "--expert-shares: expected a number for each of 2 processes"));
    options_of(&options);
    options.device = "cuda";
    assert_int_equal(engine_open(&engine, &options, &error), MO_E_UNSUPPORTED);
    assert_non_null(strstr(error.message, "--device cuda"));
    assert_non_null(strstr(error.message, "--expert-device cpu"));
    options.n_cpu_moe = 1; /* of some layers is not of all */
    assert_int_equal(engine_open(&engine, &options, &error), MO_E_UNSUPPORTED);
    assert_non_null(strstr(error.message, "--expert-device cpu"));
    ranks_end();
    assert_int_equal(world.seen[WIRE_END], 1);
}

/* Whoever waits sleeps between looks, however busy the machine is: no more looks than there is time for. */
static void test_waiting_sleeps(void **state) {
    (void)state;
    const double patience_s = 0.6;
    struct mo_error error = {0};
    struct wire_head head;
    size_t bytes;
    int rank = 1;
    begin(0, act_as_rank_1);
    world.start_s = clock_now_s();
    assert_int_equal(ranks_receive(&rank, &head, sizeof head, &bytes, patience_s, &error), MO_E_IO);
    assert_non_null(strstr(error.message, "rank 1 has said nothing for 0.6 s"));
    assert_true(world.n_looks[0] <= world.last_s / 20e-6);
    assert_true(world.n_looks[1] <= (world.last_s - 0.5) / 200e-6 + 1);
    ranks_end();
}

/* Rows of one step. */
static int compute(struct engine *engine, struct mo_error *error) {
    int32_t token[5] = {1, 2, 3, 4, 5}, wanted = 4, page = 0;
    struct batch_seq seq = {0, 5, 0, &page, NULL};
    struct batch batch = {5, token, 1, &seq, 1, &wanted, NULL};
    return forward(engine->backend, &engine->model, &batch, NULL, error);
}

static void test_a_failed_request_fails_its_step(void **state) {
    (void)state;
    struct engine_options options;
    struct engine *engine = NULL;
    struct mo_error error = {0};
    options_of(&options);
    begin(0, act_as_rank_1);
    fill_hello(&world.hello);
    push(&world.hello, sizeof world.hello);
    if (engine_open(&engine, &options, &error)) fail_msg("%s", error.message);
    hidden_of_model = engine->model.hidden;
    int layers = engine->model.layers - engine->model.dense_layers;
    world.failures = 1;
    world.code = 0; /* which means that all is well */
    assert_int_equal(compute(engine, &error), MO_E_CORRUPT);
    world.seen[WIRE_REQUEST] = 0;
    world.failures = 1;
    world.code = MO_E_IO;
    assert_int_equal(compute(engine, &error), MO_E_IO);
    assert_non_null(strstr(error.message, "rank 1 (elsewhere): the disk is on fire"));
    assert_int_equal(world.seen[WIRE_REQUEST], 1); /* the layers after it are not asked for */
    if (compute(engine, &error)) fail_msg("%s", error.message);
    assert_int_equal(world.seen[WIRE_REQUEST], 1 + layers);
    assert_int_equal(world.n, 0);
    engine_close(engine);
    assert_int_equal(world.seen[WIRE_CLOSE], 1);
    ranks_end();
}

/* ---- the other one is rank 0 ---- */

static struct wire_request *request_of(int layer, int row, int expert, size_t *bytes, int hidden) {
    *bytes = sizeof(struct wire_request) + 64 + (size_t)hidden * 4;
    struct wire_request *request = calloc(1, *bytes);
    assert_non_null(request);
    *request = (struct wire_request){
        .head = {WIRE_MAGIC, WIRE_REQUEST}, .layer = layer, .n_rows = 1, .n_pairs = 1, .serial = 7};
    int32_t *pair = (int32_t *)(request + 1);
    pair[0] = row;
    pair[1] = expert;
    return request;
}

static void push_request(int layer, int row, int expert, size_t cut) {
    size_t bytes;
    struct wire_request *request = request_of(layer, row, expert, &bytes, hidden_of_model);
    push(request, bytes - cut);
    free(request);
}

static void act_as_rank_0(const uint8_t *message, size_t bytes) {
    enum wire_kind kind = ((const struct wire_head *)message)->kind;
    struct wire_plan plan = {.head = {WIRE_MAGIC, WIRE_PLAN}, .max_rows = 8, .piece_pairs = world.n_pairs};
    for (int e = 0; e < WIRE_MAX_EXPERTS; e++) plan.owner[e] = e & 1;
    if (kind == WIRE_HELLO) push(&plan, sizeof plan);
    if (kind == WIRE_READY) {
        push_request(0, 0, 1, 0);   /* a dense layer */
        push_request(999, 0, 1, 0); /* no layer */
        push_request(2, 1, 1, 0);   /* a row that did not come */
        push_request(2, 0, 2, 0);   /* rank 0's own expert */
        push_request(2, 0, -1, 0);
        push_request(2, 0, 1, 4); /* cut off */
        push_request(2, 0, 1, 0); /* as it should be */
        push_kind(WIRE_CLOSE);
    }
    if (kind == WIRE_REPLY) {
        const struct wire_reply *reply = (const struct wire_reply *)message;
        assert_true(reply->n_pairs == 1 && reply->serial == 7);
        assert_int_equal(bytes, sizeof *reply + (size_t)hidden_of_model * 4);
    }
}

static void test_nonsense_is_refused(void **state) {
    (void)state;
    struct engine_options options;
    struct engine *engine = NULL;
    struct mo_error error = {0};
    options_of(&options);
    begin(1, act_as_rank_0);
    assert_true(hidden_of_model > 0);
    world.n_pairs = -8;
    assert_int_equal(engine_open(&engine, &options, &error), 1);
    assert_true(world.seen[WIRE_FAILED] == 1 && world.seen[WIRE_READY] == 0);
    world.seen[WIRE_FAILED] = 0;
    world.n_pairs = 8;
    assert_int_equal(engine_open(&engine, &options, &error), 1);
    assert_null(engine);
    assert_int_equal(world.seen[WIRE_FAILED], 6);
    assert_int_equal(world.seen[WIRE_REPLY], 1);
    push_kind(WIRE_END);
    ranks_end();
    assert_int_equal(world.seen[WIRE_BYE], 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_version_and_model), cmocka_unit_test(test_flags_that_do_not_go_together),
        cmocka_unit_test(test_waiting_sleeps),         cmocka_unit_test(test_a_failed_request_fails_its_step),
        cmocka_unit_test(test_nonsense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
