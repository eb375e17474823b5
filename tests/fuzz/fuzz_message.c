/* tests/fuzz/fuzz_message.c - an answer's text (the first byte says how it is to be read) gives the same message whole and cut
 * anywhere: valid UTF-8, calls with known names that begin and end in order, arguments that are JSON's brackets at least, and JSON where
 * they were written in DSML. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "server/message.h"
#include "base/utf8.h"
#include "require.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const json_t *tools(void) {
    static json_t *list;
    if (!list) list = json_pack("[{s:{s:s}}, {s:{s:s}}]", "function", "name", "f", "function", "name", "get-it");
    return list;
}

/* What was told: pieces as they came, a byte for each beginning and end. */
struct told {
    struct buffer text, arguments; /* of the last call */
    enum message_kind last;
    int n_calls;
    bool in_call;
};

/* (jansson has no names with NUL, and a limit of nesting, which is one less inside a parameter) */
static void check_arguments(const struct buffer *text) {
    if (text->size > 2000 || memmem(text->data, text->size, "\\u0000", 6)) return;
    json_t *object = json_loadb(text->data, text->size, JSON_DECODE_INT_AS_REAL, NULL);
    require(json_is_object(object));
    json_decref(object);
}

static void check_piece(struct told *told, const struct message_piece *piece) {
    bool has_text = piece->kind != MESSAGE_CALL_END;
    require(utf8_valid_prefix((const uint8_t *)piece->text, piece->size) == piece->size);
    require(has_text == (piece->size > 0));
    if (piece->kind == MESSAGE_CALL) {
        require(!told->in_call && piece->call == told->n_calls++);
        bool is_known =
            (piece->size == 1 && piece->text[0] == 'f') || (piece->size == 6 && !memcmp(piece->text, "get-it", 6));
        require(is_known);
        told->in_call = true;
    } else {
        bool is_of_call = piece->kind == MESSAGE_ARGUMENTS || piece->kind == MESSAGE_CALL_END;
        require(is_of_call == told->in_call && (!is_of_call || piece->call == told->n_calls - 1));
        if (piece->kind == MESSAGE_CALL_END) told->in_call = false;
    }
}

static void follow_arguments(struct told *told, const struct message *message, const struct message_piece *piece) {
    bool is_over = piece->kind == MESSAGE_CALL_END && chat_calls_are_dsml(message->rules.form) && !piece->is_cut_off;
    if (piece->kind == MESSAGE_CALL) told->arguments.size = 0;
    if (piece->kind == MESSAGE_ARGUMENTS) buffer_add(&told->arguments, piece->text, piece->size);
    if (is_over) check_arguments(&told->arguments);
}

static void take(struct told *told, struct message *message) {
    for (int i = 0; i < message_count(message); i++) {
        struct message_piece piece = message_at(message, i);
        check_piece(told, &piece);
        follow_arguments(told, message, &piece);
        bool goes_on = told->text.size > 0 && told->last == piece.kind && piece.kind != MESSAGE_CALL && piece.size > 0;
        if (!goes_on) buffer_printf(&told->text, "\n%d%d:", (int)piece.kind, piece.is_cut_off);
        buffer_add(&told->text, piece.text, piece.size);
        told->last = piece.kind;
    }
    message_clear(message);
}

/* In pieces of up to `most` bytes; 0: whole. */
static void tell(const struct message_rules *rules, const char *text, size_t size, size_t most, struct told *told) {
    struct message message;
    uint32_t random = (uint32_t)(size + most);
    message_init(&message, rules);
    for (size_t at = 0, n; at < size; at += n) {
        random = random * 1664525u + 1013904223u;
        n = most ? 1 + (random >> 16) % most : size;
        if (n > size - at) n = size - at;
        require(message_push(&message, text + at, n) == 0);
        take(told, &message);
    }
    require(message_finish(&message) == 0);
    take(told, &message);
    require(!told->in_call && message_has_called(&message) <= (told->n_calls > 0));
    buffer_free(&told->arguments);
    message_free(&message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    struct message_rules rules = {.thought = (enum message_thought)(data[0] % 3),
                                  .hides_thought = data[0] & 64,
                                  .tools = data[0] & 128 ? NULL : tools(),
                                  .form = (enum chat_calls)(data[0] / 3 % N_CHAT_CALLS)};
    uint8_t held[4];
    int n_held = 0;
    char *text = malloc(3 * size + 1);
    require(text != NULL);
    size_t n = utf8_lossy_push(held, &n_held, data + 1, size - 1, text);
    struct told whole = {0};
    tell(&rules, text, n, 0, &whole);
    for (size_t most = 1; most <= 9; most += 4) {
        struct told cut = {0};
        tell(&rules, text, n, most, &cut);
        require(cut.text.size == whole.text.size &&
                (!n || !whole.text.size || !memcmp(cut.text.data, whole.text.data, cut.text.size)));
        buffer_free(&cut.text);
    }
    buffer_free(&whole.text);
    free(text);
    return 0;
}
