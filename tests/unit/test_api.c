/* Limits of a request that a small model's vocabulary cannot reach. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "server/api.h"

enum { VOCAB = 5000 };

/* {"prompt": [7], "stop_token_ids": [0 .. n-1, and all of them again]} */
static int parse_ids(int n, struct api_request *request, struct api_error *error) {
    static const char *const names[] = {"tiny"};
    struct engine engine = {.model.vocab = VOCAB, .options = {.max_model_len = 100, .generation_config = 1}};
    const struct api_model model = {&engine, names, 1, false, false};
    json_t *ids = json_array();
    for (int i = 0; i < 2 * n; i++) json_array_append_new(ids, json_integer(i % n));
    json_t *root = json_pack("{s:[i], s:o}", "prompt", 7, "stop_token_ids", ids);
    char *body = json_dumps(root, 0);
    assert_non_null(body);
    int code = api_request_parse(request, API_COMPLETION, &model, body, strlen(body), error);
    json_decref(root);
    free(body);
    return code;
}

static void test_stop_tokens(void **state) {
    (void)state;
    struct api_request request;
    struct api_error error;
    assert_int_equal(parse_ids(API_STOP_TOKENS_MAX, &request, &error), 0);
    assert_int_equal(request.sched.n_stop_tokens, API_STOP_TOKENS_MAX);
    assert_int_equal(request.n_named_stop_tokens, API_STOP_TOKENS_MAX);
    for (int i = 0; i < API_STOP_TOKENS_MAX; i++) assert_int_equal(request.sched.stop_tokens[i], i);
    api_request_free(&request);

    assert_int_equal(parse_ids(API_STOP_TOKENS_MAX + 1, &request, &error), -1);
    assert_int_equal(error.status, 400);
    assert_string_equal(error.param, "stop_token_ids");
    api_request_free(&request);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stop_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
