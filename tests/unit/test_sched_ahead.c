/* Steps that begin before the last one's tokens are read. sim_sched tests what random load does to them. */
#include "sched_world.h"

/* The backend picks, and each decode step begins before the last one's token is read. */
static void test_runs_ahead(void **state) {
    (void)state;
    struct world world;
    struct owner owner, late;
    int32_t prompt[150];
    fill_prompt(prompt, 150, 1);
    world_open(&world, world_options());
    world.fake.base.picks = world.fake.base.runs_ahead = true;
    world.fake.late = true;
    struct sched_request request = request_of(&world, &owner, prompt, 150, 30);
    request.ignore_eos = true;
    submit(&world, &request);
    run(&world);
    assert_int_equal(owner.n_tokens, 30);
    expect_greedy(&owner, prompt, 150);
    assert_int_equal(stats_of(&world).steps, 10 + 29); /* not one too many: that it ends was known */
    assert_int_equal(world.fake.n_begun, 39);
    assert_int_equal(world.fake.n_ahead, 29);

    request = request_of(&world, &owner, prompt, 3, 20);
    request.ignore_eos = true;
    submit(&world, &request);
    for (int i = 1; i <= 5; i++) {
        sched_step(world.sched);
        assert_int_equal(owner.n_tokens, i); /* a token a step, none of them late */
    }
    struct sched_request second = request_of(&world, &late, prompt, 4, 3);
    second.ignore_eos = true;
    submit(&world, &second);
    sched_step(world.sched); /* was begun before it came */
    assert_int_equal(late.n_tokens, 0);
    sched_step(world.sched);
    assert_int_equal(late.n_tokens, 1);
    run(&world);
    expect_greedy(&owner, prompt, 3);
    expect_greedy(&late, prompt, 4);
    world_close(&world);
}

/* An end that only the token tells: its row in the step ahead is thrown away, and only then are its pages free. */
static void test_row_too_many(void **state) {
    (void)state;
    struct world world;
    struct owner owner;
    world_open(&world, world_options());
    world.fake.base.picks = world.fake.base.runs_ahead = true;
    world.fake.late = true;
    world.fake.script = (int32_t[]){2, 3, 4, FAKE_EOS, 5, 6};
    world.fake.n_script = 6;
    struct sched_request request = request_of(&world, &owner, (int32_t[]){29}, 1, 20);
    submit(&world, &request);
    for (int i = 0; i < 4; i++) sched_step(world.sched);
    assert_int_equal(owner.finish, FINISH_STOP);
    assert_int_equal(owner.n_tokens, 4);
    assert_int_equal(world.fake.n_begun, 5);
    assert_int_equal(owner.pages_free_at_end, 15);
    assert_true(sched_step(world.sched));
    assert_int_equal(stats_of(&world).pages_free, 16);
    assert_false(sched_step(world.sched));
    assert_int_equal(stats_of(&world).generated_tokens, 4);
    world_close(&world);
}

/* A step fails while the next one is at work: what that one computes is not looked at, and who is not to blame goes on. */
static void test_failure_before_a_step_ahead(void **state) {
    (void)state;
    struct world world;
    struct owner owners[2];
    int32_t prompts[2][3] = {{2, 3, 4}, {5, 3, 2}};
    world_open(&world, world_options());
    world.fake.base.picks = world.fake.base.runs_ahead = true;
    world.fake.late = true;
    for (int i = 0; i < 2; i++) {
        struct sched_request request = request_of(&world, &owners[i], prompts[i], 3, 20);
        request.ignore_eos = true;
        submit(&world, &request);
    }
    sched_step(world.sched);
    world.fake.fail_next = true;
    world.fake.fault_row = 0;
    sched_step(world.sched);
    assert_int_equal(world.fake.n_begun, 3);
    assert_int_equal(world.fake.n_ended, 3);
    assert_int_equal(owners[0].finish, FINISH_ERROR);
    assert_int_equal(owners[0].n_tokens, 1);
    assert_int_equal(owners[1].finish, FINISH_NONE);
    run(&world);
    assert_int_equal(owners[1].n_tokens, 20);
    expect_greedy(&owners[1], prompts[1], 3);
    assert_int_equal(stats_of(&world).pages_free, stats_of(&world).pages_total);

    struct sched_request request = request_of(&world, &owners[0], prompts[0], 3, 20); /* closed with a step at work */
    submit(&world, &request);
    sched_step(world.sched);
    world_close(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_runs_ahead), cmocka_unit_test(test_row_too_many),
                                       cmocka_unit_test(test_failure_before_a_step_ahead)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
