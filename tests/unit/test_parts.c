/* An answer as parts: what is told of them, in which order, and that nothing is told of an answer that is not streamed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "server/parts.h"
#include "server/dialect.h"
#include "server/put.h"

static int note_begin(void *context, struct parts *parts, const struct part *part) {
    static const char *const NAMES[] = {"reasoning", "text", "call"};
    buffer_printf(context, "<%d %s", parts_index(parts, part), NAMES[part->kind]);
    if (part->kind == PART_CALL) buffer_printf(context, " %s %s", part->call_id, part->name);
    buffer_add_text(context, ":");
    return 0;
}

static int note_growth(void *context, struct parts *parts, const struct part *part, const char *text, size_t size) {
    assert_true(part->is_open && parts_index(parts, part) == parts->n - 1);
    buffer_printf(context, "[%.*s]", (int)size, text);
    return 0;
}

static int note_end(void *context, struct parts *parts, const struct part *part) {
    (void)parts;
    assert_false(part->is_open);
    buffer_add_text(context, ">");
    return 0;
}

static void speak(struct parts *parts, const struct parts_writer *writer) {
    assert_int_equal(parts_add(parts, writer, PART_REASONING, "hm", 2), 0);
    assert_int_equal(parts_add(parts, writer, PART_REASONING, "", 0), 0);
    assert_int_equal(parts_add(parts, writer, PART_REASONING, "m", 1), 0);
    assert_int_equal(parts_add(parts, writer, PART_TEXT, "so", 2), 0);
    for (int i = 0; i < 5; i++) { /* more than there is room for at first */
        assert_int_equal(parts_add_call(parts, writer, "id", "name that is longer", 4), 0);
        assert_int_equal(parts_add(parts, writer, PART_CALL, "{}", 2), 0);
        if (i != 1) assert_int_equal(parts_end(parts, writer), 0); /* else the next one ends it */
    }
    assert_int_equal(parts_finish(parts, writer), 0);
}

static void test_order(void **state) {
    (void)state;
    struct buffer notes = {0}, out = {0};
    const struct parts_writer writer = {note_begin, note_growth, note_end, &notes};
    struct parts streamed = {.out = &out}, whole = {0};
    speak(&streamed, &writer);
    buffer_add(&notes, "", 1);
    assert_string_equal(notes.data, "<0 reasoning:[hm][m]><1 text:[so]><2 call id name:[{}]><3 call id name:[{}]>"
                                    "<4 call id name:[{}]><5 call id name:[{}]><6 call id name:[{}]>");
    notes.size = 0;
    speak(&whole, &writer);
    assert_int_equal(notes.size, 0);
    assert_int_equal(whole.n, 7);
    assert_int_equal(streamed.n, whole.n);
    for (int i = 0; i < whole.n; i++) {
        json_t *one = put_text(&whole.list[i].text), *other = put_text(&streamed.list[i].text);
        assert_true(json_equal(one, other));
        json_decref(one);
        json_decref(other);
    }
    parts_free(&streamed);
    parts_free(&whole);
    buffer_free(&notes);
}

static void test_nothing_said(void **state) {
    (void)state;
    struct buffer notes = {0}, out = {0};
    const struct parts_writer writer = {note_begin, note_growth, note_end, &notes};
    struct parts parts = {.out = &out};
    assert_int_equal(parts_finish(&parts, &writer), 0);
    buffer_add(&notes, "", 1);
    assert_string_equal(notes.data, "<0 text:>");
    parts_free(&parts);
    buffer_free(&notes);
}

/* A stream that has nothing to say yet: Anthropic's has an event for that. */
static void test_pings(void **state) {
    (void)state;
    static const struct {
        enum api_kind kind;
        const char *frame;
    } CASES[] = {{API_CHAT, ": ping\n\n"},
                 {API_RESPONSES, ": ping\n\n"},
                 {API_MESSAGES, "event: ping\ndata: {\"type\":\"ping\"}\n\n"}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        struct api_request request = {.kind = CASES[i].kind};
        struct respond_head head = {.request = &request, .dialect = dialect_of(request.kind)};
        struct buffer out = {0};
        assert_int_equal(head.dialect->stream_ping(&out, &head), 0);
        buffer_add(&out, "", 1);
        assert_string_equal(out.data, CASES[i].frame);
        buffer_free(&out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order), cmocka_unit_test(test_nothing_said),
                                       cmocka_unit_test(test_pings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
