/* Every JSON value that a request or an answer makes may find no memory: then the client is told so, and never half of it. Each
 * allocation of theirs fails once, in turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "server/api/parts.h"
#include "server/api/translate.h"
#include "server/dialect.h"
#include "server/put.h"
#include "text/calls.h"

enum { RUNS_MAX = 20000 };

/* --- jansson's memory ---------------------------------------------------------------------------- */

static int left = -1; /* allocations until the one that fails; negative: none does */

static void *take(size_t size) {
    if (left >= 0 && left-- == 0) return NULL;
    return malloc(size);
}

static bool has_failed(void) {
    return left < 0;
}

/* --- requests ------------------------------------------------------------------------------------ */

#define TOOL "\"name\":\"f\",\"description\":\"d\""
#define SCHEMA "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}}"
#define CALLS                                                                                                          \
    "[{\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}},{\"id\":\"b\",\"function\":{\"name\":"      \
    "\"f\"}}]"

static const struct {
    enum api_kind kind;
    const char *body;
} BODIES[] = {
    {API_CHAT,
     "{\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
     "\"text\":\"x\"},{\"type\":\"text\",\"text\":\"y\"}]},{\"role\":\"assistant\",\"tool_calls\":" CALLS
     "},{\"role\":\"tool\",\"tool_call_id\":\"b\",\"content\":\"2\"},{\"role\":\"tool\",\"tool_call_id\":\"a\","
     "\"content\":\"1\"}],\"tools\":[{\"type\":\"function\",\"function\":{" TOOL ",\"parameters\":" SCHEMA
     "}}],\"thinking\":{\"type\":\"enabled\"},\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{"
     "\"schema\":" SCHEMA "}},\"stop\":[\"q\"],\"logit_bias\":{\"5\":1}}"},
    {API_MESSAGES,
     "{\"max_tokens\":9,\"system\":[{\"type\":\"text\",\"text\":\"s\"}],\"messages\":[{\"role\":\"user\",\"content\":"
     "\"x\"},{\"role\":\"assistant\",\"content\":[{\"type\":\"thinking\",\"thinking\":\"h\"},"
     "{\"type\":\"text\",\"text\":\"t\"},{\"type\":\"thinking\",\"thinking\":\"m\"},{\"type\":\"tool_use\",\"id\":"
     "\"a\",\"name\":\"f\",\"input\":{\"a\":1}}]},{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\","
     "\"tool_use_id\":\"a\",\"content\":[{\"type\":\"text\",\"text\":\"r\"},{\"type\":\"tool_reference\","
     "\"tool_name\":\"f\"}]},{\"type\":\"text\",\"text\":\"u\"}]},{\"role\":\"assistant\",\"content\":\"go\"}],"
     "\"tools\":[{" TOOL ",\"input_schema\":" SCHEMA ",\"defer_loading\":true}],\"tool_choice\":{\"type\":\"tool\","
     "\"name\":\"f\",\"disable_parallel_tool_use\":true},\"stop_sequences\":[\"q\"],\"thinking\":{\"type\":"
     "\"enabled\",\"budget_tokens\":5}}"},
    {API_RESPONSES,
     "{\"max_output_tokens\":9,\"instructions\":\"s\",\"input\":[{\"role\":\"user\",\"content\":[{\"type\":"
     "\"input_text\",\"text\":\"x\"}]},{\"type\":\"reasoning\",\"content\":[{\"text\":\"h\"},{\"text\":\"m\"}]},"
     "{\"type\":\"function_call\",\"call_id\":\"a\",\"namespace\":\"n\",\"name\":"
     "\"f\",\"arguments\":\"{}\"},{\"type\":\"function_call_output\",\"call_id\":\"a\",\"output\":\"r\"}],\"tools\":"
     "[{\"type\":\"namespace\",\"name\":\"n\",\"tools\":[{\"type\":\"function\"," TOOL ",\"parameters\":" SCHEMA
     "}]}],\"tool_choice\":{\"type\":\"allowed_tools\",\"mode\":\"auto\",\"tools\":[{\"type\":\"function\",\"name\":"
     "\"n.f\"}]},\"text\":{\"format\":{\"type\":\"json_schema\",\"schema\":" SCHEMA
     "}},\"reasoning\":{\"effort\":\"high\"}}"},
};

/* What becomes of a body before there is a prompt. The parser of JSON is not ours, so it has its memory. */
static json_t *translate(size_t i, const json_t *body, struct api_error *error) {
    switch (BODIES[i].kind) {
    case API_MESSAGES:
        return api_anthropic_to_chat(body, false, true, error);
    case API_RESPONSES:
        return api_responses_to_chat(body, true, error);
    default:
        return api_messages_copy(json_object_get(body, "messages"), chat_template_by_name("deepseek-v3.1"), error);
    }
}

static void test_requests(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof BODIES / sizeof *BODIES; i++) {
        struct api_error error = {0};
        left = -1;
        json_t *body = json_loads(BODIES[i].body, 0, NULL), *good = translate(i, body, &error);
        if (!good) fail_msg("body %zu: %s", i, error.message);
        int run = 0;
        for (bool fails = true; fails && run < RUNS_MAX; run++) {
            error = (struct api_error){0};
            left = run;
            json_t *found = translate(i, body, &error);
            fails = has_failed();
            left = -1;
            if (found && !json_equal(found, good)) fail_msg("body %zu, allocation %d: lost", i, run);
            if (!found && error.status != 503) fail_msg("body %zu, allocation %d: %s", i, run, error.message);
            json_decref(found);
        }
        assert_true(run > 20 && run < RUNS_MAX);
        json_decref(good);
        json_decref(body);
    }
}

/* --- answers ------------------------------------------------------------------------------------- */

/* A thought, a text and a call, in pieces. */
static const char *const PIECES[] = {
    "<think>hm", "m</think>", "so", CALLS_BEGIN CALL_BEGIN "f" CALL_SEPARATOR "{\"a\":", "1}", CALL_END CALLS_END};
enum { N_PIECES = sizeof PIECES / sizeof *PIECES, N_OF_CALL = 3 };

/* Arguments without memory for them are taken for cut off ones there: the parser does not tell. */
static bool reads_arguments(enum api_kind kind) {
    return api_is_ollama(kind) || kind == API_MESSAGES;
}

/* Digits are times and ids, which differ. */
static void blot_digits(struct buffer *text) {
    size_t n = 0;
    for (size_t i = 0; i < text->size; i++) {
        if (text->data[i] < '0' || text->data[i] > '9') text->data[n++] = text->data[i];
    }
    text->size = n;
}

/* An answer of this kind, streamed or whole, without its digits. -1 without memory. */
static int answer(const struct api_request *request, bool streams, struct buffer *out) {
    struct respond_head head;
    struct choice choice;
    int code = 0;
    respond_head_init(&head, request, "x");
    choice_init(&choice, 0, request, &request->prompts[0], NULL);
    memcpy(choice.message.id, "call_x", sizeof "call_x");
    memset(head.id + strlen(head.dialect->id_prefix), '0', 8);
    head.id[strlen(head.dialect->id_prefix) + 8] = 0;
    int n = reads_arguments(request->kind) ? N_PIECES - N_OF_CALL : N_PIECES;
    for (int i = 0; i < n && !code; i++) {
        struct token_event event = {.token = i,
                                    .n_generated = i + 1,
                                    .n_prompt = 3,
                                    .stop_index = -1,
                                    .stop_token = -1,
                                    .text = PIECES[i],
                                    .text_size = strlen(PIECES[i]),
                                    .logprob = -1,
                                    .finish = i + 1 == n ? FINISH_STOP : FINISH_NONE};
        code = choice_take(&choice, &event);
        if (!code && streams) code = head.dialect->stream(out, &head, &choice);
    }
    if (!code && !streams) {
        code = put_dump(out, head.dialect->whole(&head, &choice, 1));
    } else if (!code && head.dialect->stream_end) {
        code = head.dialect->stream_end(out, &head, &choice, 1);
    }
    choice_free(&choice);
    blot_digits(out);
    return code;
}

static void try_answers(const struct api_request *request, bool streams) {
    struct buffer good = {0};
    left = -1;
    assert_int_equal(answer(request, streams, &good), 0);
    int run = 0;
    for (bool fails = true; fails && run < RUNS_MAX; run++) {
        struct buffer out = {0};
        left = run;
        int code = answer(request, streams, &out);
        fails = has_failed();
        left = -1;
        bool is_same = out.size == good.size && memcmp(out.data, good.data, good.size) == 0;
        if (!code && !is_same) fail_msg("kind %d, allocation %d: lost", (int)request->kind, run);
        buffer_free(&out);
    }
    assert_true(run > 10 && run < RUNS_MAX);
    buffer_free(&good);
}

static void test_answers(void **state) {
    (void)state;
    static const enum api_kind KINDS[] = {API_CHAT,     API_COMPLETION,      API_LLAMA,    API_OLLAMA_CHAT,
                                          API_MESSAGES, API_OLLAMA_GENERATE, API_RESPONSES};
    left = -1;
    json_t *tools = json_pack("[{s:s, s:{s:s}}]", "type", "function", "function", "name", "f");
    json_t *given = json_pack("{s:{}, s:[{s:s}]}", "metadata", "tools", "name", "f");
    struct api_prompt prompt = {.ids = {.ids = (int32_t[]){1, 2, 3}, .n = 3}};
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        struct api_request request = {.kind = KINDS[i],
                                      .model = "tiny",
                                      .n = 1,
                                      .prompts = &prompt,
                                      .n_prompts = 1,
                                      .given = given,
                                      .context = 100,
                                      .include_usage = true,
                                      .timings = true,
                                      .return_tokens = true};
        request.sched.n_logprobs = KINDS[i] == API_MESSAGES || KINDS[i] == API_RESPONSES ? -1 : 0;
        if (api_has_message(KINDS[i])) {
            request.message = (struct message_rules){MESSAGE_MAYBE_THOUGHT, false, tools, CHAT_CALLS_BARE};
        }
        for (int streams = 0; streams < 2; streams++) {
            request.stream = streams;
            try_answers(&request, streams);
        }
    }
    json_decref(tools);
    json_decref(given);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_requests), cmocka_unit_test(test_answers)};
    json_set_alloc_funcs(take, free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
