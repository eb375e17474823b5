/* An answer between the scheduler and whoever reads it: a long one that is sent whole is taken in pieces as it comes, so that its end
 * keeps nobody waiting, and says the same as one that is taken at its end. */
#include "sched_world.h"
#include "server/answer.h"

enum { TOKENS = 1500, PROMPT = 8 };

struct reader {
    bool is_asleep;
    int n_woken;
};

static void go_to_sleep(void *context) {
    struct reader *reader = context;
    assert_false(reader->is_asleep);
    reader->is_asleep = true;
}

static void wake_up(void *context) {
    struct reader *reader = context;
    assert_true(reader->is_asleep);
    reader->is_asleep = false;
    reader->n_woken++;
}

/* A completion of ids with logprobs, which are most of it. */
static struct api_request request_of_ids(void) {
    struct api_request request = {.kind = API_COMPLETION, .model = "fake", .n = 1, .n_prompts = 1};
    int32_t prompt[PROMPT];
    fill_prompt(prompt, PROMPT, 1);
    request.prompts = calloc(1, sizeof *request.prompts);
    for (int i = 0; i < PROMPT; i++) assert_int_equal(token_list_push(&request.prompts->ids, prompt[i], NULL), 0);
    sampling_init(&request.sched.sampling);
    request.sched.sampling.temperature = 0;
    request.sched.max_tokens = TOKENS;
    request.sched.n_logprobs = 5;
    request.sched.ignore_eos = true;
    return request;
}

static struct answer *start(struct world *world, struct reader *reader, bool only_at_end) {
    static struct engine engine;
    struct sched_options options = world_options();
    const struct answer_waker waker = {go_to_sleep, wake_up, reader, only_at_end};
    struct api_request request = request_of_ids();
    struct api_error error = {0};
    struct answer *answer;
    options.max_model_len = 2 * TOKENS;
    options.n_pages = 64;
    world_open(world, options);
    engine.sched = world->sched;
    engine.tokenizer = world->tokenizer;
    *reader = (struct reader){0};
    assert_int_equal(answer_start(&answer, &request, &engine, "x", &waker, &error), 0);
    return answer;
}

/* Its choices as text, the caller's; how often its reader was woken. */
static char *read_whole(bool only_at_end, int *n_woken) {
    struct world world;
    struct reader reader;
    struct api_error error = {0};
    struct answer *answer = start(&world, &reader, only_at_end);
    enum answer_state state = answer_wait(answer);
    while (state == ANSWER_WAITS && sched_step(world.sched)) {
        if (!reader.is_asleep) state = answer_wait(answer);
    }
    assert_int_equal(state, ANSWER_DONE);
    json_t *json = answer_take(answer, &error);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "usage"), "completion_tokens")), TOKENS);
    char *text = json_dumps(json_object_get(json, "choices"), JSON_COMPACT);
    json_decref(json);
    answer_release(answer);
    world_close(&world);
    *n_woken = reader.n_woken;
    return text;
}

static void test_pieces(void **state) {
    (void)state;
    int n_often, n_once;
    char *in_pieces = read_whole(false, &n_often), *at_end = read_whole(true, &n_once);
    assert_int_equal(n_once, 1);
    assert_in_range(n_often, 3, TOKENS / 10); /* neither at the end alone nor with every token */
    assert_string_equal(in_pieces, at_end);
    free(in_pieces);
    free(at_end);
}

/* A reader that goes leaves nothing that the scheduler would have to clear away but the answer's own few bytes. */
static void test_left(void **state) {
    (void)state;
    struct world world;
    struct reader reader;
    struct answer *answer = start(&world, &reader, false);
    assert_int_equal(answer_wait(answer), ANSWER_WAITS);
    while (reader.n_woken < 3 && sched_step(world.sched)) {
        if (!reader.is_asleep && reader.n_woken < 3) assert_int_equal(answer_wait(answer), ANSWER_WAITS);
    }
    assert_false(reader.is_asleep);
    answer_release(answer);
    run(&world);
    assert_int_equal(stats_of(&world).finished[FINISH_CANCELLED], 1);
    assert_int_equal(reader.n_woken, 3);
    world_close(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pieces), cmocka_unit_test(test_left)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
