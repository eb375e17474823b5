#include "server/dialect.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include "base/clock.h"
#include "server/frame.h"

const struct dialect *dialect_of(enum api_kind kind) {
    static const struct dialect *const DIALECTS[] = {
        [API_CHAT] = &dialect_chat,           [API_COMPLETION] = &dialect_completion,
        [API_LLAMA] = &dialect_llama,         [API_INFILL] = &dialect_llama,
        [API_OLLAMA_CHAT] = &dialect_ollama,  [API_OLLAMA_GENERATE] = &dialect_ollama,
        [API_MESSAGES] = &dialect_messages,   [API_COUNT] = &dialect_messages,
        [API_RESPONSES] = &dialect_responses, [API_RESPONSES_COUNT] = &dialect_responses,
    };
    return DIALECTS[kind];
}

static bool is_below(const char *path, const char *front) {
    size_t n = strlen(front);
    return strncmp(path, front, n) == 0 && (path[n] == 0 || path[n] == '/');
}

const struct dialect *dialect_at(const char *path) {
    if (is_below(path, "/api")) return &dialect_ollama;
    return is_below(path, "/v1/messages") ? &dialect_messages : &dialect_chat;
}

int dialect_stream_error(struct buffer *out, const struct respond_head *head, struct choice *choices,
                         const struct api_error *error) {
    (void)head, (void)choices;
    return frame_add(out, NULL, api_error_json(error));
}

int dialect_stream_ping(struct buffer *out, const struct respond_head *head) {
    (void)head;
    return frame_add_comment(out);
}

void respond_fingerprint(char text[RESPOND_FINGERPRINT_SIZE], const char *hash) {
    snprintf(text, RESPOND_FINGERPRINT_SIZE, "moebius-" MOEBIUS_VERSION "-%.12s", hash);
}

void respond_head_init(struct respond_head *head, const struct api_request *request, const char *fingerprint) {
    uint64_t random[2] = {0};
    if (getrandom(random, sizeof random, 0) < 0) random[0] = (uint64_t)(uintptr_t)head; /* ids need not be secret */
    *head = (struct respond_head){.created = time(NULL),
                                  .started_s = clock_now_s(),
                                  .fingerprint = fingerprint,
                                  .request = request,
                                  .dialect = dialect_of(request->kind)};
    snprintf(head->id, sizeof head->id, "%s%016" PRIx64 "%016" PRIx64, head->dialect->id_prefix, random[0], random[1]);
}
