#include "server/sse.h"
#include "server/frame.h"
#include "server/respond_llama.h"
#include "server/respond_message.h"
#include "server/respond_ollama.h"
#include "server/respond_anthropic.h"
#include "server/respond_responses.h"

/* Takes `json` over. */
static int add_frame(struct buffer *out, json_t *json) {
    return frame_add(out, NULL, json);
}

/* Takes `json` over: Ollama's frame is a line. */
static int add_line(struct buffer *out, json_t *json) {
    char *text = json ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(json);
    if (!text) return -1;
    buffer_add_text(out, text);
    buffer_add_text(out, "\n");
    free(text);
    return out->failed ? -1 : 0;
}

/* Its pieces; logprobs go with the first. */
static int add_pieces(struct buffer *out, const struct respond_head *head, struct choice *choice, bool *added) {
    int code = 0;
    for (int i = 0; !code && i < message_count(&choice->message); i++) {
        struct message_piece piece = message_at(&choice->message, i);
        if (!respond_has_delta(&piece)) continue;
        code = add_frame(out, respond_chat_piece(head, choice, &piece));
        *added = true;
    }
    message_clear(&choice->message);
    return code;
}

static int add_chat(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    int code = 0;
    bool ends = choice->finish != FINISH_NONE, added = false;
    if (!choice->role_sent) code = add_frame(out, respond_chat_role(head, choice));
    choice->role_sent = true;
    if (!code) code = add_pieces(out, head, choice, &added);
    /* a token without text (its end, a mark, or half a character) leaves its logprobs to the chunk that ends */
    if (!code && !added && choice->logprobs && !ends) code = add_frame(out, respond_chat_logprobs(head, choice));
    if (!code && ends) code = add_frame(out, respond_chat_end(head, choice));
    return code;
}

/* llama.cpp's: pieces, then an end without text. */
static int add_llama(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    int code = choice->text.size > 0 ? add_frame(out, respond_llama_piece(head, choice)) : 0;
    if (!code && choice->finish != FINISH_NONE) code = add_frame(out, respond_llama_end(head, choice));
    return code;
}

/* A call is one object: it waits until it is whole. */
static int add_ollama(struct buffer *out, const struct respond_head *head, struct choice *choice) {
    bool ends = choice->finish != FINISH_NONE;
    bool has_content = respond_ollama_has_piece(choice) || (choice->logprobs && !ends);
    int code = has_content ? add_line(out, respond_ollama_piece(head, choice)) : 0;
    if (!code && ends) code = add_line(out, respond_ollama_end(head, choice));
    return code;
}

int sse_add_event(struct buffer *out, const struct respond_head *head, struct choice *choice,
                  const struct token_event *event) {
    int code = choice_take(choice, event);
    if (code || event->is_prompt) return code; /* an echoed prompt goes out with the first token */
    if (head->request->kind == API_CHAT) return add_chat(out, head, choice);
    if (api_is_llama(head->request->kind)) return add_llama(out, head, choice);
    if (api_is_ollama(head->request->kind)) return add_ollama(out, head, choice);
    if (head->request->kind == API_MESSAGES) return respond_anthropic_stream(out, head, choice);
    if (head->request->kind == API_RESPONSES) return respond_responses_stream(out, head, choice);
    if (choice->text.size == 0 && !choice->logprobs && choice->finish == FINISH_NONE) return 0;
    return add_frame(out, respond_chunk(head, choice));
}

int sse_add_end(struct buffer *out, const struct respond_head *head, const struct choice *choices, int n_choices) {
    int code = 0;
    if (api_is_ollama(head->request->kind)) return 0;
    if (head->request->include_usage) code = add_frame(out, respond_usage_chunk(head, choices, n_choices));
    bool says_done = !api_is_llama(head->request->kind) && !api_is_translated(head->request->kind);
    if (says_done) buffer_add_text(out, "data: [DONE]\n\n");
    return out->failed ? -1 : code;
}

int sse_add_error(struct buffer *out, const struct respond_head *head, struct choice *choices,
                  const struct api_error *error) {
    if (api_is_ollama(head->request->kind)) return add_line(out, api_error_json_plain(error));
    if (head->request->kind == API_MESSAGES) return respond_anthropic_error(out, error);
    if (head->request->kind == API_RESPONSES) return respond_responses_error(out, head, choices, error);
    return add_frame(out, api_error_json(error));
}

int sse_add_ping(struct buffer *out, const struct respond_head *head) {
    if (api_is_ollama(head->request->kind)) return add_line(out, respond_ollama_ping(head));
    if (head->request->kind == API_MESSAGES) return respond_anthropic_ping(out);
    buffer_add_text(out, ": ping\n\n");
    return out->failed ? -1 : 0;
}
