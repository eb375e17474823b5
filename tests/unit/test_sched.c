/* The scheduler, rule by rule, over a fake backend. sim_sched tests what random load
 * does to it. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>
#include "sched_world.h"

static void test_one_request(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    int32_t prompt[150];
    fill_prompt(prompt, 150, 1);
    world_open(&world, world_options());
    struct sched_request request = request_of(&world, &owner, prompt, 150, 30);
    request.ignore_eos = true;
    submit(&world, &request);
    memset(prompt, 0, sizeof prompt); /* it was copied */
    assert_int_equal(stats_of(&world).n_waiting, 1);
    run(&world);
    fill_prompt(prompt, 150, 1);
    assert_int_equal(owner.n_tokens, 30);
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_int_equal(owner.n_ends, 1);
    assert_int_equal(owner.pages_free_at_end, 16);
    expect_greedy(&owner, prompt, 150);
    struct sched_stats stats = stats_of(&world);
    assert_int_equal(stats.steps, 10 + 29); /* 150 rows in chunks of 16, then one by one */
    assert_int_equal(stats.prompt_tokens, 150);
    assert_int_equal(stats.generated_tokens, 30);
    assert_int_equal(stats.finished[FINISH_LENGTH], 1);
    assert_false(sched_step(world.sched));
    world_close(&world);
}

static void test_decode_before_prompt(void **state) {
    (void)state;
    struct world world;
    struct owner short_owner, long_owner;
    int32_t prompt[200];
    fill_prompt(prompt, 200, 2);
    world_open(&world, world_options());
    struct sched_request first = request_of(&world, &short_owner, prompt, 3, 40);
    struct sched_request second = request_of(&world, &long_owner, prompt, 200, 5);
    first.ignore_eos = second.ignore_eos = true;
    submit(&world, &first);
    submit(&world, &second);
    for (int i = 1; i <= 14; i++) {
        sched_step(world.sched);
        assert_int_equal(short_owner.n_tokens, i); /* a long prompt beside it delays no token */
    }
    assert_int_equal(long_owner.n_tokens, 1); /* 13 + 13 * 15 = 208 rows: 200 in 14 steps */
    run(&world);
    expect_greedy(&short_owner, prompt, 3);
    expect_greedy(&long_owner, prompt, 200);
    world_close(&world);
}

static void test_prompt_scores(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    int32_t prompt[100];
    fill_prompt(prompt, 100, 3);
    struct sched_options options = world_options();
    options.max_num_seqs = options.max_logits = 3; /* fewer than a chunk would want */
    world_open(&world, options);
    for (int max_tokens = 0; max_tokens < 2; max_tokens++) {
        struct sched_request request = request_of(&world, &owner, prompt, 100, max_tokens);
        request.prompt_logprobs = true;
        submit(&world, &request);
        run(&world);
        assert_int_equal(owner.n_prompt, 100);
        assert_int_equal(owner.n_tokens, max_tokens);
        assert_int_equal(owner.n_ends, 1);
        assert_true(isnan(owner.prompt_logprobs[0]));
        uint64_t hash = fake_hash_add(0, prompt[0]);
        for (int i = 1; i < 100; i++) {
            float logits[FAKE_VOCAB];
            fake_logits(hash, FAKE_VOCAB, logits);
            assert_int_equal(owner.prompt[i], prompt[i]);
            assert_true(owner.prompt_logprobs[i] == sample_logprobs(logits, FAKE_VOCAB, prompt[i], 0, NULL));
            hash = fake_hash_add(hash, prompt[i]);
        }
    }
    struct sched_request request = request_of(&world, &owner, prompt, 1, 0); /* nothing to score, one row */
    submit(&world, &request);
    run(&world);
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_int_equal(owner.n_prompt + owner.n_tokens, 0);
    world_close(&world);
}

/* Runs one request whose answer is `script`. */
static void run_script(struct owner *owner, const int32_t *script, int n_script,
                       void (*change)(struct sched_request *)) {
    struct world world;
    world_open(&world, world_options());
    world.fake.script = script;
    world.fake.n_script = n_script;
    struct sched_request request = request_of(&world, owner, (int32_t[]){29}, 1, n_script);
    if (change) change(&request);
    submit(&world, &request);
    run(&world);
    assert_int_equal(owner->n_ends, 1);
    owner->text[owner->text_size] = 0;
    world_close(&world);
}

static void keep_special(struct sched_request *request) {
    request->keep_special = true;
}
static void include_stop(struct sched_request *request) {
    request->keep_special = request->include_stop = true;
}
static void ignore_eos(struct sched_request *request) {
    request->ignore_eos = true;
}
static void min_three(struct sched_request *request) {
    request->min_tokens = 3;
}
static void stop_at_five(struct sched_request *request) {
    static const int32_t tokens[] = {9, 5};
    request->stop_tokens = tokens;
    request->n_stop_tokens = 2;
}
static void stop_at_bcd(struct sched_request *request) {
    static const char *const stop[] = {"zzz", "bcd"};
    request->stop = stop;
    request->n_stop = 2;
}
static void stop_at_bcd_include(struct sched_request *request) {
    stop_at_bcd(request);
    request->include_stop = true;
}

static void test_stop_tokens(void **state) {
    (void)state;
    struct owner owner;
    const int32_t script[] = {2, 3, FAKE_EOS, 5, 6};
    run_script(&owner, script, 5, NULL);
    assert_int_equal(owner.finish, FINISH_STOP);
    assert_int_equal(owner.stop_token, FAKE_EOS);
    assert_int_equal(owner.n_tokens, 3);
    assert_string_equal(owner.text, "ab"); /* the eos is a token and no text */
    run_script(&owner, script, 5, keep_special);
    assert_string_equal(owner.text, "ab");
    run_script(&owner, script, 5, include_stop);
    assert_string_equal(owner.text, "ab<eos>");
    run_script(&owner, script, 5, ignore_eos);
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_string_equal(owner.text, "abde");
    assert_int_equal(owner.stop_token, -1);
    run_script(&owner, (int32_t[]){2, 3, 5, FAKE_EOS}, 4, stop_at_five);
    assert_int_equal(owner.stop_token, 5);
    assert_string_equal(owner.text, "ab");
    run_script(&owner, (int32_t[]){2, 3, 4, FAKE_EOS, 5}, 5, min_three); /* allowed from the fourth on */
    assert_int_equal(owner.n_tokens, 4);
    assert_int_equal(owner.stop_token, FAKE_EOS);
    run_script(&owner, script, 5, min_three); /* the third may not be the eos: another one is chosen */
    assert_int_equal(owner.n_tokens, 5);
    assert_true(owner.tokens[2] != FAKE_EOS);
}

static void test_stop_strings(void **state) {
    (void)state;
    struct owner owner;
    run_script(&owner, (int32_t[]){29, 2, 3, 4, 5, 6}, 6, stop_at_bcd); /* x a b c d e */
    assert_int_equal(owner.finish, FINISH_STOP);
    assert_string_equal(owner.stop_string, "bcd");
    assert_int_equal(owner.n_tokens, 5);
    assert_string_equal(owner.text, "xa");
    run_script(&owner, (int32_t[]){29, 2, 3, 4, 5, 6}, 6, stop_at_bcd_include);
    assert_string_equal(owner.text, "xabcd");
    run_script(&owner, (int32_t[]){10, 13, 6}, 3, stop_at_bcd); /* ab cd: begins in one token, ends in the next */
    assert_int_equal(owner.n_tokens, 2);
    assert_string_equal(owner.text, "a");
    run_script(&owner, (int32_t[]){29, 11, 39}, 3, stop_at_bcd); /* x abc abcd: ends with the last token allowed */
    assert_int_equal(owner.finish, FINISH_STOP);
    assert_string_equal(owner.text, "xabca");
    run_script(&owner, (int32_t[]){29, 11, 6}, 3, stop_at_bcd); /* held back, then let go */
    assert_string_equal(owner.text, "xabce");
    assert_string_equal(owner.last_text, "bce");
    run_script(&owner, (int32_t[]){29, 11}, 2, stop_at_bcd); /* held back at the end */
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_string_equal(owner.text, "xabc");
    run_script(&owner, (int32_t[]){29, 11, FAKE_EOS}, 3, stop_at_bcd);
    assert_int_equal(owner.stop_token, FAKE_EOS);
    assert_string_equal(owner.text, "xabc");
    assert_string_equal(owner.last_text, "bc");
}

enum { BLANK = 24, BREAK = 25 };

static void indent_two(struct sched_request *request) {
    request->min_indent = 2;
}
static void indent_two_stop_at_bcd(struct sched_request *request) {
    stop_at_bcd(request);
    request->min_indent = 2;
}
static void limit_45_ms(struct sched_request *request) {
    request->line_limit_s = 0.045; /* a step takes 10 ms */
}
static void limit_45_ms_stop_at_bcd(struct sched_request *request) {
    limit_45_ms(request);
    stop_at_bcd(request);
}

static void test_indentation(void **state) {
    (void)state;
    struct owner owner;
    const int32_t script[] = {29, BREAK, BLANK, BLANK, 2, BREAK, BLANK, 3, 4, 5};
    run_script(&owner, script, 10, indent_two); /* x / two blanks a / one blank: b is cut, and nothing comes after it */
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_int_equal(owner.n_tokens, 8);
    assert_string_equal(owner.text, "x\n  a\n ");
    run_script(&owner, script, 9,
               indent_two_stop_at_bcd); /* held for a stop string, let go at the end, and cut there */
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_int_equal(owner.n_tokens, 9);
    assert_string_equal(owner.text, "x\n  a\n ");
    run_script(&owner, script, 10, indent_two_stop_at_bcd);
    assert_int_equal(owner.finish, FINISH_STOP);
    assert_string_equal(owner.text, "x\n  a\n ");
    run_script(&owner, (int32_t[]){29, BREAK, 29, 3, 4, 5}, 6,
               indent_two_stop_at_bcd); /* the cut comes before the stop */
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_string_equal(owner.stop_string, "");
    assert_string_equal(owner.text, "x\n");
    run_script(&owner, script, 9, NULL);
    assert_string_equal(owner.text, "x\n  a\n bc");
}

static void test_line_limit(void **state) {
    (void)state;
    struct owner owner;
    run_script(&owner, (int32_t[]){2, 2, BREAK, 2, 2, 2, 2, 2, 2}, 9, limit_45_ms);
    assert_int_equal(owner.finish, FINISH_LENGTH);
    assert_int_equal(owner.n_tokens, 6); /* the first is at 0 ms, the sixth at 50 */
    run_script(&owner, (int32_t[]){2, 2, 2, 2, 2, 2, 2, BREAK, 2}, 9,
               limit_45_ms); /* late, and waits for the line's end */
    assert_int_equal(owner.n_tokens, 8);
    run_script(&owner, (int32_t[]){2, 2, 2, 2, 2, 2, 2, 2, 2}, 9, limit_45_ms);
    assert_int_equal(owner.n_tokens, 9);
    run_script(&owner, (int32_t[]){BREAK, 2, 2, 2, 11, 11, 2}, 7, limit_45_ms_stop_at_bcd); /* held back, then let go */
    assert_int_equal(owner.n_tokens, 6);
    assert_string_equal(owner.text, "\naaaabcabc");
}

static void test_times(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    int32_t prompt[40];
    fill_prompt(prompt, 40, 9);
    world_open(&world, world_options()); /* 16 rows a step: a prompt of 40 takes three */
    world.now_s = 7;
    struct sched_request request = request_of(&world, &owner, prompt, 40, 5);
    request.ignore_eos = true;
    submit(&world, &request);
    world.now_s = 8; /* it waits for a second */
    run(&world);
    struct sched_stats stats = stats_of(&world);
    assert_float_equal(owner.prompt_s, 0.02, 1e-9);
    assert_float_equal(owner.answer_s, 0.04, 1e-9);
    assert_float_equal(stats.prompt_s, 0.02, 1e-9);
    assert_float_equal(stats.queue_s.sum, 1, 1e-9);
    assert_float_equal(stats.prefill_s.sum, 0.02, 1e-9);
    assert_float_equal(stats.decode_s.sum, 0.04, 1e-9);
    assert_float_equal(stats.inference_s.sum, 0.06, 1e-9);
    assert_true(stats.prompt_n.total == 1 && stats.prompt_n.sum == 40);
    assert_true(stats.answer_n.sum == 5 && stats.max_n.sum == 5);
    assert_true(stats.step_n.total == stats.steps && stats.step_n.sum == 44); /* the last token has no row */
    world_close(&world);
}

static void test_code_points(void **state) {
    (void)state;
    struct owner owner;
    run_script(&owner, (int32_t[]){2, 16, 17, 18}, 4, NULL); /* a, then three bytes of one character */
    assert_string_equal(owner.text, "a\xe4\xb8\xad");
    assert_string_equal(owner.last_text, "\xe4\xb8\xad");
    run_script(&owner, (int32_t[]){2, 23, FAKE_EOS}, 3, NULL); /* two of three, then the end */
    assert_string_equal(owner.text, "a\xef\xbf\xbd");
    run_script(&owner, (int32_t[]){FAKE_SPECIAL, 2}, 2, NULL);
    assert_string_equal(owner.text, "a");
    run_script(&owner, (int32_t[]){FAKE_SPECIAL, 2}, 2, keep_special);
    assert_string_equal(owner.text, "<tool>a");
}

static void test_context_full(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    int32_t prompt[300];
    fill_prompt(prompt, 300, 4);
    world_open(&world, world_options());
    struct sched_request request = request_of(&world, &owner, prompt, 290, 1000000000);
    request.ignore_eos = true;
    submit(&world, &request);
    run(&world);
    assert_int_equal(owner.n_tokens, 10);
    assert_int_equal(owner.finish, FINISH_LENGTH);
    request = request_of(&world, &owner, prompt, 299, 5);
    submit(&world, &request);
    run(&world);
    assert_int_equal(owner.n_tokens, 1);
    request = request_of(&world, &owner, prompt, 300, 0);
    submit(&world, &request);
    run(&world);
    assert_int_equal(owner.n_ends, 1);
    world_close(&world);
}

static void expect_refused(struct world *world, const struct sched_request *request, int code, const char *word) {
    struct mo_error error = {0};
    uint64_t id;
    assert_int_equal(sched_submit(world->sched, request, &id, &error), code);
    if (!strstr(error.message, word)) fail_msg("'%s' lacks '%s'", error.message, word);
}

static void test_refusals(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    int32_t prompt[301] = {0};
    world_open(&world, world_options());
    const struct sched_request good = request_of(&world, &owner, prompt, 10, 10);
    struct sched_request bad;
#define REFUSED(change, code, word)                                                                                    \
    do {                                                                                                               \
        bad = good;                                                                                                    \
        change;                                                                                                        \
        expect_refused(&world, &bad, code, word);                                                                      \
    } while (0)
    REFUSED(bad.n_prompt = 0, MO_E_INVALID, "prompt");
    REFUSED(bad.prompt = ((int32_t[10]){[9] = FAKE_VOCAB}), MO_E_INVALID, "index 9");
    REFUSED(bad.prompt = ((int32_t[10]){[3] = -1}), MO_E_INVALID, "token -1");
    REFUSED(bad.max_tokens = -1, MO_E_INVALID, "max_tokens");
    REFUSED(bad.min_tokens = -1, MO_E_INVALID, "min_tokens");
    REFUSED(bad.n_logprobs = 21, MO_E_INVALID, "logprobs");
    REFUSED(bad.n_logprobs = -2, MO_E_INVALID, "logprobs");
    REFUSED(bad.sampling.top_p = 0, MO_E_INVALID, "top_p");
    REFUSED((bad.stop_tokens = (int32_t[]){FAKE_VOCAB}, bad.n_stop_tokens = 1), MO_E_INVALID, "stop_token_ids");
    REFUSED((bad.stop = (const char *[]){"a", ""}, bad.n_stop = 2), MO_E_INVALID, "string 1 is empty");
    REFUSED((bad.stop = (const char *[]){"\xe4\xb8"}, bad.n_stop = 1), MO_E_INVALID, "UTF-8");
    REFUSED(bad.n_prompt = 300, MO_E_LIMIT, "300");
    REFUSED((bad.n_prompt = 301, bad.max_tokens = 0), MO_E_LIMIT, "301");
    assert_int_equal(stats_of(&world).n_waiting, 0);
    world_close(&world);

    struct sched_options options = world_options();
    options.n_pages = 2; /* 128 rows; the last token needs none */
    world_open(&world, options);
    REFUSED((bad.n_prompt = 100, bad.max_tokens = 30), MO_E_LIMIT, "3 pages");
    bad.max_tokens = 29;
    bad.ignore_eos = true;
    submit(&world, &bad);
    run(&world);
    assert_int_equal(owner.n_tokens, 29);
    world_close(&world);

    options = world_options();
    world_open(&world, options);
    world.options.tokenizer = NULL;
    struct sched *sched;
    assert_int_equal(sched_create(&sched, &world.options, NULL), 0);
    bad = good;
    bad.stop = (const char *[]){"a"};
    bad.n_stop = 1;
    struct mo_error error;
    assert_int_equal(sched_submit(sched, &bad, NULL, &error), MO_E_INVALID);
    assert_non_null(strstr(error.message, "tokenizer"));
    sched_destroy(sched);
    world_close(&world);
}

static void test_options(void **state) {
    (void)state;
    static const char *const names[] = {"max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_logits",
                                        "n_pages"};
    struct model model = fake_model(FAKE_VOCAB);
    for (int i = 0; i < 5; i++) {
        struct sched_options options = world_options();
        int *const fields[] = {&options.max_model_len, &options.max_num_seqs, &options.max_num_batched_tokens,
                               &options.max_logits, &options.n_pages};
        *fields[i] = i == 2 || i == 3 ? 3 : 0; /* of four sequences each needs a row */
        options.model = &model;
        struct mo_error error = {0};
        struct sched *sched;
        assert_int_equal(sched_create(&sched, &options, &error), MO_E_INVALID);
        assert_null(sched);
        assert_non_null(strstr(error.message, names[i]));
    }
    sched_destroy(NULL);
}

static void test_preemption(void **state) {
    (void)state;
    struct world world;
    struct owner owners[3];
    int32_t prompt[3][60];
    struct sched_options options = world_options();
    options.n_pages = 5; /* three sequences of up to 3 pages each */
    options.max_num_batched_tokens = 100;
    world_open(&world, options);
    for (int i = 0; i < 3; i++) {
        fill_prompt(prompt[i], 20, 10 + i);
        struct sched_request request = request_of(&world, &owners[i], prompt[i], 20, 150);
        request.ignore_eos = true;
        request.prompt_logprobs = true; /* told once, though computed again */
        request.sampling.frequency_penalty = i == 2 ? 0.5f : 0;
        submit(&world, &request);
    }
    run(&world);
    struct sched_stats stats = stats_of(&world);
    assert_true(stats.preemptions >= 1);
    assert_int_equal(stats.prompt_tokens, 60);
    assert_int_equal(stats.generated_tokens, 450);
    assert_int_equal(stats.pages_free, 5);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(owners[i].n_tokens, 150);
        assert_int_equal(owners[i].n_prompt, 20);
        if (i < 2) expect_greedy(&owners[i], prompt[i], 20);
    }
    world_close(&world);
}

static void test_cancel(void **state) {
    (void)state;
    struct world world;
    struct owner owners[4];
    int32_t prompt[5] = {2, 3, 4, 5, 6};
    uint64_t ids[4];
    struct sched_options options = world_options();
    options.max_num_seqs = 2;
    world_open(&world, options);
    for (int i = 0; i < 4; i++) {
        struct sched_request request = request_of(&world, &owners[i], prompt, 5, 200);
        request.ignore_eos = true;
        ids[i] = submit(&world, &request);
    }
    sched_step(world.sched);
    assert_int_equal(stats_of(&world).n_running, 2);
    assert_int_equal(stats_of(&world).n_waiting, 2);
    sched_cancel(world.sched, ids[0]); /* runs */
    sched_cancel(world.sched, ids[2]); /* waits */
    sched_cancel(world.sched, ids[2]);
    sched_cancel(world.sched, 12345);      /* unknown */
    assert_int_equal(owners[0].n_ends, 0); /* at the next step */
    sched_step(world.sched);
    assert_int_equal(owners[0].finish, FINISH_CANCELLED);
    assert_int_equal(owners[2].finish, FINISH_CANCELLED);
    assert_int_equal(owners[2].n_tokens, 0);
    assert_int_equal(owners[1].n_tokens, 2);
    assert_int_equal(owners[3].n_tokens, 1); /* took the place in the same step */
    sched_cancel(world.sched, ids[0]);       /* ended */
    struct owner unseen;
    struct sched_request request = request_of(&world, &unseen, prompt, 5, 5);
    sched_cancel(world.sched, submit(&world, &request)); /* before the engine knew of it */
    sched_step(world.sched);
    assert_int_equal(unseen.finish, FINISH_CANCELLED);
    request = request_of(&world, &unseen, prompt, 5, 5);
    submit(&world, &request);
    world_close(&world); /* cancels what is left: running, and in the inbox */
    assert_int_equal(owners[1].finish, FINISH_CANCELLED);
    assert_int_equal(owners[3].n_ends, 1);
    assert_int_equal(unseen.finish, FINISH_CANCELLED);
}

static void test_failed_pass(void **state) {
    (void)state;
    struct world world;
    struct owner owners[3];
    int32_t prompt[3] = {2, 3, 4};
    struct sched_options options = world_options();
    options.max_num_seqs = 2;
    world_open(&world, options);
    for (int i = 0; i < 3; i++) {
        struct sched_request request = request_of(&world, &owners[i], prompt, 3, 20);
        request.ignore_eos = true;
        submit(&world, &request);
    }
    sched_step(world.sched);
    world.fake.fail_next = true;
    sched_step(world.sched);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(owners[i].finish, FINISH_ERROR);
        assert_non_null(strstr(owners[i].error, "layer 0"));
        assert_int_equal(owners[i].n_tokens, 1);
    }
    run(&world); /* the third was not in that batch */
    assert_int_equal(owners[2].n_tokens, 20);
    assert_int_equal(stats_of(&world).finished[FINISH_ERROR], 2);
    assert_int_equal(stats_of(&world).pages_free, 16);
    world_close(&world);
}

/* A row that is to blame ends its own request; the other goes on as if nothing had happened. */
static void test_failed_row(void **state) {
    (void)state;
    struct world world, quiet;
    struct owner owners[2], alone;
    int32_t prompts[2][3] = {{2, 3, 4}, {5, 3, 2}};
    world_open(&world, world_options());
    world_open(&quiet, world_options());
    for (int i = 0; i < 2; i++) {
        struct sched_request request = request_of(&world, &owners[i], prompts[i], 3, 20);
        request.ignore_eos = true;
        submit(&world, &request);
    }
    struct sched_request same = request_of(&quiet, &alone, prompts[1], 3, 20);
    same.ignore_eos = true;
    submit(&quiet, &same);
    sched_step(world.sched);
    world.fake.fail_next = true;
    world.fake.fault_row = 0; /* decodes are one row each, in order of arrival */
    sched_step(world.sched);
    assert_int_equal(owners[0].finish, FINISH_ERROR);
    assert_int_equal(owners[1].finish, FINISH_NONE);
    run(&world);
    run(&quiet);
    assert_int_equal(owners[1].n_tokens, 20);
    assert_memory_equal(owners[1].tokens, alone.tokens, 20 * sizeof *alone.tokens);
    assert_int_equal(stats_of(&world).pages_free, stats_of(&world).pages_total);
    world_close(&world);
    world_close(&quiet);
}

/* The same for a model whose pages hold what their tokens were summed up to: the other goes back to its page's beginning, since its
 * row was added already. */
static void test_failed_row_that_was_summed_up(void **state) {
    (void)state;
    struct world world;
    struct owner owners[2];
    int32_t prompts[2][100];
    struct sched_options options = world_options();
    options.prefix_caching = true;
    for (int i = 0; i < 100; i++) prompts[0][i] = 2 + i % 7, prompts[1][i] = 2 + i % 11;
    world_open(&world, options);
    world.fake.sums_up = true;
    world.model.hybrid.window = world.fake.window = 128;
    for (int i = 0; i < 2; i++) {
        struct sched_request request = request_of(&world, &owners[i], prompts[i], 100, 60);
        request.ignore_eos = true;
        submit(&world, &request);
    }
    while (owners[1].n_tokens < 10) sched_step(world.sched);
    world.fake.fail_next = true;
    world.fake.fault_row = 0;
    sched_step(world.sched);
    assert_int_equal(owners[0].finish, FINISH_ERROR);
    assert_int_equal(owners[1].finish, FINISH_NONE);
    uint64_t steps = stats_of(&world).steps;
    run(&world); /* 64 to 109 again, 16 a step, which gives a token; then one a step */
    assert_int_equal(stats_of(&world).steps - steps, 3 + 49);
    assert_int_equal(owners[1].n_tokens, 60);
    expect_greedy(&owners[1], prompts[1], 100);
    world_close(&world);
}

/* A prompt of more pages than there are near parts left is let in beside others all the same: it passes by its pages. */
static void test_few_near_parts(void **state) {
    (void)state;
    struct world world;
    struct owner owners[2];
    int32_t prompts[2][1200];
    struct sched_options options = world_options();
    options.max_model_len = 1500;
    options.max_num_seqs = 2;
    options.n_pages = 40;
    options.n_near = 11;
    for (int i = 0; i < 1200; i++) prompts[0][i] = 2 + i % 7, prompts[1][i] = 2 + i % 11;
    world_open(&world, options);
    struct sched_request request = request_of(&world, &owners[0], prompts[0], 100, 300);
    request.ignore_eos = true;
    submit(&world, &request);
    while (owners[0].n_tokens < 10) sched_step(world.sched);
    request = request_of(&world, &owners[1], prompts[1], 1200, 70);
    request.ignore_eos = true;
    submit(&world, &request);
    while (owners[0].finish == FINISH_NONE) sched_step(world.sched);
    assert_true(owners[1].n_tokens > 0);
    run(&world);
    assert_int_equal(owners[1].n_tokens, 70);
    expect_greedy(&owners[0], prompts[0], 100);
    expect_greedy(&owners[1], prompts[1], 1200);
    assert_int_equal(stats_of(&world).preemptions, 0);
    world_close(&world);
}

/* Computes a prompt of n tokens, another for each seed. */
static void compute(struct world *world, int seed, int n) {
    struct owner owner;
    int32_t prompt[1200];
    for (int i = 0; i < n; i++) prompt[i] = 2 + (i * seed + i / 7) % 37;
    struct sched_request request = request_of(world, &owner, prompt, n, 5);
    request.ignore_eos = true;
    submit(world, &request);
    run(world);
    expect_greedy(&owner, prompt, n);
}

static uint64_t found(struct world *world) {
    return stats_of(world).prefix_found_tokens;
}

/* Where a sequence ended another goes on, though a prompt longer than all near parts came in between. Those that other ends have
 * taken are computed again, once: the next who wants them finds them. */
static void test_near_parts_that_were_lost(void **state) {
    (void)state;
    struct world world;
    struct sched_options options = world_options();
    options.prefix_caching = true;
    options.max_model_len = 1500;
    options.max_num_seqs = 2;
    options.n_pages = 60;
    options.n_near = 11;
    world_open(&world, options);
    compute(&world, 3, 300);
    compute(&world, 3, 300);
    assert_int_equal(found(&world), 256);
    compute(&world, 5, 1200);
    compute(&world, 3, 300);
    assert_int_equal(found(&world), 2 * 256);
    for (int i = 0; i < 12; i++) compute(&world, 6 + i, 100);
    assert_int_equal(found(&world), 2 * 256);
    compute(&world, 3, 300);
    assert_int_equal(found(&world), 2 * 256);
    for (int i = 3; i < 5; i++) {
        compute(&world, 3, 300);
        assert_int_equal(found(&world), (uint64_t)i * 256);
    }
    assert_int_equal(stats_of(&world).pages_free, 60);
    world_close(&world);
}

static int bucket_of(const struct sched_histogram *histogram) {
    for (int i = 0; i < SCHED_BUCKETS; i++) {
        if (histogram->count[i] > 0) return i;
    }
    return -1;
}

static void test_histograms(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    world_open(&world, world_options());
    for (int i = 1; i < SCHED_BUCKETS - 1; i++) assert_true(sched_bucket_s[i] > sched_bucket_s[i - 1]);
    struct sched_request request = request_of(&world, &owner, (int32_t[]){2}, 1, 3);
    request.ignore_eos = true;
    world.now_s = 100;
    submit(&world, &request);
    world.now_s = 100.25; /* a bound belongs to its bucket */
    sched_step(world.sched);
    world.now_s += 3;
    sched_step(world.sched);
    world.now_s += 5000;
    sched_step(world.sched);
    struct sched_stats stats = stats_of(&world);
    assert_int_equal(stats.first_token_s.total, 1);
    assert_true(sched_bucket_s[bucket_of(&stats.first_token_s)] == 0.25);
    assert_int_equal(stats.inter_token_s.total, 2);
    assert_true(sched_bucket_s[bucket_of(&stats.inter_token_s)] == 5);
    assert_int_equal(stats.inter_token_s.count[SCHED_BUCKETS - 1], 1);
    assert_true(stats.inter_token_s.sum == 5003);
    assert_int_equal(bucket_of(&stats.request_s), SCHED_BUCKETS - 1);
    world_close(&world);
}

/* ---- threads ---- */

enum { THREADS = 4, THREAD_REQUESTS = 60 };
static atomic_int thread_ends, thread_tokens;

static void on_thread_event(const struct sched_event *event) {
    if (event->token >= 0) atomic_fetch_add(&thread_tokens, 1);
    if (event->finish != FINISH_NONE) atomic_fetch_add(&thread_ends, 1);
}

static void *submit_many(void *context) {
    struct world *world = context;
    for (int i = 0; i < THREAD_REQUESTS; i++) {
        int32_t prompt[20] = {i % FAKE_VOCAB, 3, 4};
        struct sched_request request = {.prompt = prompt, .n_prompt = 1 + i % 20, .max_tokens = 1 + i % 7};
        sampling_init(&request.sampling);
        request.n_logprobs = -1;
        request.ignore_eos = true;
        request.callback = on_thread_event;
        uint64_t id = 0;
        struct mo_error error;
        struct sched_stats stats;
        if (sched_submit(world->sched, &request, &id, &error)) abort();
        if (i % 5 == 0) sched_cancel(world->sched, id);
        sched_stats_get(world->sched, &stats);
        if (i % 16 == 0) usleep(1000); /* let the engine run dry now and then */
    }
    return NULL;
}

static atomic_bool engine_stop;

static void *run_engine(void *context) {
    struct world *world = context;
    while (!atomic_load(&engine_stop)) {
        while (sched_step(world->sched)) continue;
        sched_wait(world->sched);
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    struct world world;
    pthread_t engine, threads[THREADS];
    world_open(&world, world_options());
    assert_int_equal(pthread_create(&engine, NULL, run_engine, &world), 0);
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, submit_many, &world), 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 20000 && atomic_load(&thread_ends) < THREADS * THREAD_REQUESTS; i++) usleep(1000);
    atomic_store(&engine_stop, true);
    sched_wake(world.sched); /* it sleeps */
    pthread_join(engine, NULL);
    assert_int_equal(atomic_load(&thread_ends), THREADS * THREAD_REQUESTS);
    struct sched_stats stats = stats_of(&world);
    assert_int_equal(stats.n_running + stats.n_waiting, 0);
    assert_int_equal(stats.pages_free, stats.pages_total);
    assert_int_equal(stats.generated_tokens, (uint64_t)atomic_load(&thread_tokens));
    world_close(&world);
}

/* ---- a callback that submits the next request ---- */

struct relay {
    struct world *world;
    int left, ends;
};

static void submit_relay(struct relay *relay);

static void on_relay(const struct sched_event *event) {
    struct relay *relay = event->context;
    if (event->finish == FINISH_NONE) return;
    relay->ends++;
    if (relay->left-- > 0) submit_relay(relay);
}

static void submit_relay(struct relay *relay) {
    struct owner unused;
    struct sched_request request = request_of(relay->world, &unused, (int32_t[]){2, 3}, 2, 2);
    request.callback = on_relay;
    request.context = relay;
    submit(relay->world, &request);
}

static void test_callback_submits(void **state) {
    (void)state;
    struct world world;
    world_open(&world, world_options());
    struct relay relay = {&world, 10, 0};
    submit_relay(&relay);
    run(&world);
    assert_int_equal(relay.ends, 11);
    world_close(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_request),    cmocka_unit_test(test_decode_before_prompt),
        cmocka_unit_test(test_prompt_scores),  cmocka_unit_test(test_stop_tokens),
        cmocka_unit_test(test_stop_strings),   cmocka_unit_test(test_code_points),
        cmocka_unit_test(test_context_full),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_options),        cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_cancel),         cmocka_unit_test(test_failed_pass),
        cmocka_unit_test(test_failed_row),     cmocka_unit_test(test_failed_row_that_was_summed_up),
        cmocka_unit_test(test_few_near_parts), cmocka_unit_test(test_histograms),
        cmocka_unit_test(test_threads),        cmocka_unit_test(test_callback_submits),
        cmocka_unit_test(test_indentation),    cmocka_unit_test(test_line_limit),
        cmocka_unit_test(test_times),          cmocka_unit_test(test_near_parts_that_were_lost),
    };
    return cmocka_run_group_tests_name("sched", tests, NULL, NULL);
}
