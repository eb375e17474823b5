/* server/logprobs.c - the two shapes of logprobs: columns for completions, a list of objects for chats. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "server/choice.h"
#include "base/utf8.h"

/* JSON has no infinity; a token that was banned has one. */
static json_t *json_logprob(float logprob) {
    if (isnan(logprob)) return json_null();
    return json_real(logprob < -9999 ? -9999.0 : (double)logprob);
}

static const char *token_bytes(const struct choice *choice, int32_t token, size_t *size) {
    *size = 0;
    return choice->tokenizer ? tokenizer_token_bytes(choice->tokenizer, token, size) : NULL;
}

/* The bytes of a token that is no whole text, as OpenAI's completions show them: "bytes:\xe4\xbd". */
static json_t *escaped_bytes(const char *bytes, size_t size) {
    struct buffer text = {0};
    buffer_add_text(&text, "bytes:");
    for (size_t i = 0; i < size; i++) buffer_printf(&text, "\\x%02x", (unsigned)(unsigned char)bytes[i]);
    json_t *json = text.failed ? NULL : json_stringn(text.data, text.size);
    buffer_free(&text);
    return json;
}

/* The same as chats show it: ill-formed parts are U+FFFD, and the bytes stand beside. */
static json_t *replaced_bytes(const char *bytes, size_t size) {
    uint8_t held[4];
    int n_held = 0;
    char *out = malloc(3 * (size + 4));
    if (!out) return NULL;
    size_t n = utf8_lossy_push(held, &n_held, (const uint8_t *)bytes, size, out);
    if (n_held) {
        memcpy(out + n, "\xef\xbf\xbd", 3);
        n += 3;
    }
    json_t *json = json_stringn(out, n);
    free(out);
    return json;
}

static json_t *token_text(const struct choice *choice, int32_t token) {
    size_t size;
    const char *bytes = token_bytes(choice, token, &size);
    if (!bytes || choice->request->tokens_as_ids) return json_sprintf("token_id:%d", token);
    if (utf8_valid_prefix((const uint8_t *)bytes, size) == size) return json_stringn(bytes, size);
    return choice->request->kind == API_COMPLETION ? escaped_bytes(bytes, size) : replaced_bytes(bytes, size);
}

/* --- chats --------------------------------------------------------------------------------------- */

static json_t *chat_entry(const struct choice *choice, int32_t token, float logprob) {
    size_t size;
    const char *bytes = token_bytes(choice, token, &size);
    json_t *list = json_array();
    for (size_t i = 0; i < size; i++) json_array_append_new(list, json_integer((unsigned char)bytes[i]));
    return json_pack("{s:o, s:o, s:o}", "token", token_text(choice, token), "logprob", json_logprob(logprob), "bytes",
                     list);
}

static int add_chat(struct choice *choice, const struct token_event *event) {
    if (!choice->logprobs) choice->logprobs = json_pack("{s:[], s:n}", "content", "refusal");
    json_t *entry = chat_entry(choice, event->token, event->logprob), *top = json_array();
    for (int i = 0; i < event->n_top; i++) {
        json_array_append_new(top, chat_entry(choice, event->top[i].token, event->top[i].logprob));
    }
    int code = json_object_set_new(entry, "top_logprobs", top);
    if (code) json_decref(entry);
    return code ? code : json_array_append_new(json_object_get(choice->logprobs, "content"), entry);
}

/* --- llama.cpp's ----------------------------------------------------------------------------------- */

static json_t *llama_entry(const struct choice *choice, int32_t token, float logprob) {
    json_t *entry = chat_entry(choice, token, logprob);
    if (entry) json_object_set_new(entry, "id", json_integer(token));
    return entry;
}

static int add_llama(struct choice *choice, const struct token_event *event) {
    if (!choice->logprobs) choice->logprobs = json_array();
    json_t *entry = llama_entry(choice, event->token, event->logprob), *top = json_array();
    for (int i = 0; i < event->n_top; i++) {
        json_array_append_new(top, llama_entry(choice, event->top[i].token, event->top[i].logprob));
    }
    int code = json_object_set_new(entry, "top_logprobs", top);
    if (code) json_decref(entry);
    return code ? code : json_array_append_new(choice->logprobs, entry);
}

/* --- completions --------------------------------------------------------------------------------- */

/* How many code points of the answer's text a token adds: none if it is hidden or completes no character. */
static int64_t count_points(struct choice *choice, const struct token_event *event) {
    if (!choice->tokenizer) return 0;
    struct text_stream *stream = &choice->offsets;
    const struct api_prompt *prompt = choice->prompt;
    bool shows_special = event->is_prompt && prompt->is_text;
    if (shows_special && choice->n_seen++ == 0 && event->token == tokenizer_bos(choice->tokenizer)) {
        size_t size;
        const char *bos = token_bytes(choice, event->token, &size);
        bool in_text = size <= prompt->text_size && memcmp(bos, prompt->text, size) == 0;
        if (!in_text) return 0; /* the server put it there */
    }
    stream->skip_special = !shows_special && !choice->request->sched.keep_special;
    char *text = malloc(text_stream_bound(stream, event->token) + 1);
    if (!text) return -1;
    size_t size = text_stream_push(stream, event->token, text);
    int64_t n = 0;
    for (size_t i = 0; i < size; i++) n += ((unsigned char)text[i] & 0xC0) != 0x80;
    free(text);
    return n;
}

static void set_top(json_t *object, json_t *text, float logprob) {
    const char *key = json_string_value(text);
    bool is_key = key && strlen(key) == json_string_length(text) && !json_object_get(object, key);
    if (is_key) json_object_set_new(object, key, json_logprob(logprob));
    json_decref(text);
}

/* The best ones, and the token itself wherever it ranks. A prompt's first token has none. */
static json_t *completion_top(const struct choice *choice, const struct token_event *event) {
    if (isnan(event->logprob)) return json_null();
    json_t *top = json_object();
    for (int i = 0; i < event->n_top; i++) set_top(top, token_text(choice, event->top[i].token), event->top[i].logprob);
    set_top(top, token_text(choice, event->token), event->logprob);
    return top;
}

static int add_completion(struct choice *choice, const struct token_event *event) {
    if (!choice->logprobs) {
        choice->logprobs =
            json_pack("{s:[], s:[], s:[], s:[]}", "tokens", "token_logprobs", "top_logprobs", "text_offset");
    }
    json_t *columns = choice->logprobs;
    int code = json_array_append_new(json_object_get(columns, "tokens"), token_text(choice, event->token));
    code |= json_array_append_new(json_object_get(columns, "token_logprobs"), json_logprob(event->logprob));
    code |= json_array_append_new(json_object_get(columns, "top_logprobs"), completion_top(choice, event));
    code |= json_array_append_new(json_object_get(columns, "text_offset"), json_integer(choice->text_offset));
    int64_t n = count_points(choice, event);
    choice->text_offset += n > 0 ? n : 0;
    return n < 0 ? -1 : code;
}

int choice_add_logprobs(struct choice *choice, const struct token_event *event) {
    if (api_is_llama(choice->request->kind)) return add_llama(choice, event);
    return choice->request->kind == API_COMPLETION ? add_completion(choice, event) : add_chat(choice, event);
}
