/* Sequences whose answers follow a grammar: beside others, preempted, picked by nobody, and where they end. */
#include "sched_world.h"

static const char WORDS[] = "(ab|cd|xyz)+[xyz]{2}[0-2]", SQUARE[] = "[a-d]{300}[0-2]+";

static struct vocabulary *vocabulary;

static struct grammar *regex(struct world *world, const char *text) {
    struct grammar *grammar = NULL;
    struct mo_error error = {0};
    if (!vocabulary && vocabulary_create(&vocabulary, world->tokenizer, FAKE_VOCAB, &error))
        fail_msg("%s", error.message);
    if (grammar_compile(&grammar, GRAMMAR_REGEX, text, strlen(text), vocabulary, &error)) fail_msg("%s", error.message);
    return grammar;
}

static void close_world(struct world *world) {
    world_close(world);
    vocabulary_free(vocabulary);
    vocabulary = NULL;
}

/* Submits a request with a grammar, whose only reference is the sequence's from then on. */
static void submit_regex(struct world *world, struct owner *owner, struct sched_request request, const char *text) {
    request.grammar = regex(world, text);
    request.grammar_after = -1;
    request.context = owner;
    submit(world, &request);
    grammar_release(request.grammar);
}

/* Whether the answer is one that a fresh grammar allows, and ended as one. */
static void expect_match(struct world *world, const struct owner *owner, const char *text) {
    struct grammar *grammar = regex(world, text);
    struct grammar_cursor cursor = {0};
    int n = owner->n_tokens - (owner->stop_token >= 0);
    assert_int_equal(owner->finish, FINISH_STOP);
    if (grammar_follow(grammar, &cursor, owner->tokens, n, NULL) || !grammar_may_end(grammar, &cursor)) {
        fail_msg("\"%s\" does not match %s", owner->text, text);
    }
    grammar_release(grammar);
}

static struct sched_request random_request(struct world *world, struct owner *owner, const int32_t *prompt,
                                           int n_prompt, int seed) {
    struct sched_request request = request_of(world, owner, prompt, n_prompt, 200);
    request.sampling.temperature = 1;
    request.sampling.seed = (uint64_t)seed;
    return request;
}

/* What each says alone it says beside others too, though they take each other's pages, and though the backend could pick. */
static void test_alone_and_together(void **state) {
    (void)state;
    enum { N = 4 };
    static struct owner alone[N], owners[N];
    int32_t prompts[N][20];
    for (int picks = 0; picks < 2; picks++) {
        for (int together = 0; together < 2; together++) {
            struct world world;
            struct sched_options options = world_options();
            options.n_pages = together ? 5 : 16;
            options.max_num_batched_tokens = 100;
            world_open(&world, options);
            world.fake.base.picks = world.fake.base.runs_ahead = world.fake.late = picks;
            for (int i = 0; i < N; i++) {
                struct owner *owner = together ? &owners[i] : &alone[i];
                fill_prompt(prompts[i], 20, 10 + i);
                struct sched_request request = random_request(&world, owner, prompts[i], 20, i);
                request.sampling.frequency_penalty = i == 2 ? 0.5f : 0;
                request.n_logprobs = i == 1 ? 2 : -1;
                if (i < 3)
                    submit_regex(&world, owner, request, SQUARE);
                else
                    submit(&world, &request);
                if (!together) run(&world);
            }
            run(&world);
            assert_true(!together || stats_of(&world).preemptions > 0);
            for (int i = 0; i < 3 && together; i++) expect_match(&world, &owners[i], SQUARE);
            close_world(&world);
        }
        for (int i = 0; i < N; i++) {
            assert_int_equal(owners[i].n_tokens, alone[i].n_tokens);
            assert_memory_equal(owners[i].tokens, alone[i].tokens, (size_t)alone[i].n_tokens * sizeof(int32_t));
        }
    }
}

/* eos only where the text may end; the end of itself where nothing can follow, eos or not. */
static void test_ends(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    const int32_t prompt[] = {5, 6, 7};
    world_open(&world, world_options());
    for (int seed = 0; seed < 40; seed++) {
        struct sched_request request = random_request(&world, &owner, prompt, 3, seed);
        request.ignore_eos = seed % 2;
        request.min_tokens = seed % 4 < 2 ? 0 : 12;
        submit_regex(&world, &owner, request, WORDS);
        run(&world);
        expect_match(&world, &owner, WORDS);
        assert_int_equal(owner.stop_token, -1); /* there is one end only */

        submit_regex(&world, &owner, random_request(&world, &owner, prompt, 3, seed), "[ab]+x?");
        run(&world);
        expect_match(&world, &owner, "[ab]+x?");
        assert_true(owner.stop_token == FAKE_EOS || owner.tokens[owner.n_tokens - 1] == 29 /* x */);
    }
    struct sched_request cut = random_request(&world, &owner, prompt, 3, 1);
    cut.max_tokens = 4;
    submit_regex(&world, &owner, cut, SQUARE);
    run(&world);
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_int_equal(owner.n_tokens, 4);
    close_world(&world);
}

/* Nothing that was added to the logits is stronger than the grammar, greedy or not. */
static void test_bias(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    const int32_t prompt[] = {5};
    struct logit_bias bias[FAKE_VOCAB];
    world_open(&world, world_options());
    for (int i = 0; i < FAKE_VOCAB; i++) bias[i] = (struct logit_bias){i, i == 31 ? 100 : -100};
    for (int temperature = 0; temperature < 2; temperature++) {
        struct sched_request request = random_request(&world, &owner, prompt, 1, 3);
        request.sampling.temperature = (float)temperature;
        request.sampling.bias = bias;
        request.sampling.n_bias = FAKE_VOCAB;
        submit_regex(&world, &owner, request, "h(z|c)d");
        run(&world);
        assert_string_equal(owner.text, "hzd");
        request.sampling.n_bias = 0;
        request.stop_tokens = (const int32_t[]){2, 10}; /* "a" and "ab" are banned at first: nothing else is allowed */
        request.n_stop_tokens = 2;
        request.min_tokens = 3;
        submit_regex(&world, &owner, (owner = (struct owner){.world = &world}, request), "abxyz");
        run(&world);
        assert_int_equal(owner.finish, FINISH_STOP);
        assert_string_equal(owner.text, "abxyz");
    }
    close_world(&world);
}

/* Behind a token that ends the reasoning; before it, anything but an end. */
static void test_after(void **state) {
    (void)state;
    struct world world;
    static struct owner owner;
    const int32_t prompt[] = {5, 6};
    int n_reasoned = 0;
    world_open(&world, world_options());
    for (int seed = 0; seed < 20; seed++) {
        struct sched_request request = random_request(&world, &owner, prompt, 2, seed);
        request.grammar = regex(&world, WORDS);
        request.grammar_after = FAKE_SPECIAL;
        submit(&world, &request);
        grammar_release(request.grammar);
        run(&world);
        int first = 0;
        while (first < owner.n_tokens && owner.tokens[first] != FAKE_SPECIAL) {
            assert_int_not_equal(owner.tokens[first], FAKE_EOS);
            first++;
        }
        if (first == owner.n_tokens) { /* it thought too long */
            assert_int_equal(owner.finish, FINISH_LENGTH);
            continue;
        }
        n_reasoned++;
        struct owner rest = owner;
        rest.n_tokens -= first + 1;
        memmove(rest.tokens, owner.tokens + first + 1, (size_t)rest.n_tokens * sizeof *rest.tokens);
        expect_match(&world, &rest, WORDS);
    }
    assert_true(n_reasoned > 5);
    close_world(&world);
}

/* A grammar that takes too much ends its own sequence, with an error; the one beside it goes on. */
static void test_failure(void **state) {
    (void)state;
    struct world world;
    struct owner bad, good;
    const int32_t prompt[] = {2};
    world_open(&world, world_options());
    struct sched_request request = random_request(&world, &bad, prompt, 1, 1);
    request.sampling.bias = (const struct logit_bias[]){{3, -100}, {10, -100}, {15, -100}}; /* no b */
    request.sampling.n_bias = 3;
    submit_regex(&world, &bad, request, "(((a|aa){0,100}){0,100}){0,100}b");
    submit_regex(&world, &good, random_request(&world, &good, prompt, 1, 1), SQUARE);
    struct sched_stats stats;
    run(&world);
    sched_stats_get(world.sched, &stats);
    assert_int_equal(bad.finish, FINISH_ERROR);
    assert_non_null(strstr(bad.error, "too many ways"));
    expect_match(&world, &good, SQUARE);
    assert_int_equal(stats.pages_free, 16);
    close_world(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone_and_together),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_bias),
        cmocka_unit_test(test_after),
        cmocka_unit_test(test_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
