/* What the server's tests cannot reach: limits that a small model's vocabulary does not know, and what streams say after a long
 * silence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/json.h"
#include "server/api/fields.h"
#include "server/dialect.h"
#include "server/put.h"

enum { VOCAB = 5000 };

/* {"prompt": [7], "stop_token_ids": [0 .. n-1, and all of them again]} */
static int parse_ids(int n, struct api_request *request, struct api_error *error) {
    static const char *const names[] = {"tiny"};
    struct engine engine = {.model.vocab = VOCAB, .options.max_model_len = 100, .defaults = generation_defaults_none()};
    const struct api_model model = {&engine, names, 1, false, false, NULL};
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

/* Clients of Ollama read line by line: what keeps a stream alive, and what ends it badly, is JSON like the rest. */
static void test_lines_of_json(void **state) {
    (void)state;
    const enum api_kind kinds[] = {API_OLLAMA_GENERATE, API_OLLAMA_CHAT};
    for (int i = 0; i < 2; i++) {
        struct api_request request = {.kind = kinds[i], .model = "tiny"};
        struct respond_head head;
        struct buffer out = {0};
        struct api_error error = {.status = 500, .message = "why"};
        respond_head_init(&head, &request, "x");
        assert_int_equal(head.dialect->stream_ping(&out, &head), 0);
        const char *end = memchr(out.data, '\n', out.size), *text = NULL;
        assert_ptr_equal(end, out.data + out.size - 1);
        json_t *ping = json_loadb(out.data, out.size, 0, NULL);
        int code =
            i == 0 ? json_unpack(ping, "{s:s, s:s, s:b}", "model", &(const char *){NULL}, "response", &text, "done",
                                 &(int){1})
                   : json_unpack(ping, "{s:{s:s, s:s}}", "message", "role", &(const char *){NULL}, "content", &text);
        assert_int_equal(code, 0);
        assert_string_equal(text, "");
        assert_true(json_is_false(json_object_get(ping, "done")));
        json_decref(ping);
        buffer_consume(&out, out.size);
        assert_int_equal(head.dialect->stream_error(&out, &head, NULL, &error), 0);
        buffer_add(&out, "", 1);
        assert_string_equal(out.data, "{\"error\":\"why\"}\n");
        buffer_free(&out);
    }
    struct api_request request = {.kind = API_CHAT, .model = "tiny"};
    struct respond_head head;
    struct buffer out = {0};
    respond_head_init(&head, &request, "x");
    assert_int_equal(head.dialect->stream_ping(&out, &head), 0);
    buffer_add(&out, "", 1);
    assert_string_equal(out.data, ": ping\n\n");
    buffer_free(&out);
}

/* {"a": [{}, {}, ...]} with n brackets that open; the same with n commas and brackets, of ",0". */
static json_t *parse_many(const char *more, size_t n, struct api_error *error) {
    struct buffer body = {0};
    buffer_add_text(&body, "{\"a\":[{}");
    for (size_t i = 3; i < n; i++) buffer_add_text(&body, more);
    buffer_add_text(&body, "],\"b\":\"[[{{,,\"}");
    *error = (struct api_error){0};
    json_t *root = fields_parse(body.data, body.size, error);
    buffer_free(&body);
    return root;
}

/* Small in a body, large in memory. */
static void test_many_values(void **state) {
    (void)state;
    struct api_error error;
    json_t *root = parse_many(",{}", API_JSON_BRACKETS_MAX, &error);
    assert_int_equal(json_array_size(json_object_get(root, "a")), API_JSON_BRACKETS_MAX - 2);
    json_decref(root);
    assert_null(parse_many(",{}", API_JSON_BRACKETS_MAX + 1, &error));
    assert_int_equal(error.status, 400);
    assert_non_null(strstr(error.message, "objects and arrays"));
    root = parse_many(",0", API_JSON_VALUES_MAX - 1, &error); /* and the comma before "b" */
    assert_int_equal(json_array_size(json_object_get(root, "a")), API_JSON_VALUES_MAX - 3);
    json_decref(root);
    assert_null(parse_many(",0", API_JSON_VALUES_MAX, &error));
    assert_non_null(strstr(error.message, "values"));
}

static void expect_dump(json_t *json, const char *expected) {
    struct buffer text = {0};
    assert_int_equal(put_dump(&text, json), 0);
    buffer_add(&text, "", 1);
    assert_string_equal(text.data, expected);
    buffer_free(&text);
}

/* What a model may write as a call's arguments, and what a client gets that wants them as JSON. */
static void test_arguments(void **state) {
    (void)state;
    static const struct {
        const char *written, *told; /* NULL: no arguments */
    } CASES[] = {
        {"{\"a\": 48.85661234567, \"b\": [0.1, -3]}", "{\"a\":48.85661234567,\"b\":[0.1,-3]}"},
        {"{\"a\":\"x\\u0000y\"}", "{\"a\":\"x\\u0000y\"}"},
        {"{\"a\":123456789012345678901234567890}", "{\"a\":1.2345678901234568e29}"},
        {"{\"a\":1e999}", NULL},
        {"{\"a\":", NULL},
        {"[1]", NULL},
        {"", NULL},
    };
    assert_null(json_read_object(NULL, 0));
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        json_t *json = json_read_object(CASES[i].written, strlen(CASES[i].written));
        assert_int_equal(json != NULL, CASES[i].told != NULL);
        if (!json) continue;
        expect_dump(json, CASES[i].told);
    }
    json_t *numbers = json_pack("[o, o]", put_number((double)0.1f), put_number(1.0 / 3));
    expect_dump(numbers, "[0.100000001,0.333333333]"); /* what a float is good for */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stop_tokens), cmocka_unit_test(test_lines_of_json),
                                       cmocka_unit_test(test_many_values), cmocka_unit_test(test_arguments)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
