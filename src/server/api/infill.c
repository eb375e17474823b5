/* server/api/infill.c - POST /infill: an editor's file around the cursor, and pieces of other files, to the prompt of a hole.
 *
 * A file may be longer than the context: the prefix keeps its end and the suffix its beginning, three to one. What is dropped at
 * the front is dropped in steps, so that the next key stroke finds the rest still in the cache. */
#include <string.h>
#include "server/api/parts.h"
#include "base/buffer.h"
#include "text/fim.h"

enum { STEPS = 16 }; /* of the context */

struct pieces {
    struct token_list extra, prefix, suffix;
};

/* --- text to tokens ------------------------------------------------------------------------------ */

static void encode(struct api_job *job, const char *text, size_t size, const char *param, struct token_list *out) {
    struct mo_error cause = {0};
    if (fields_failed(&job->fields)) return;
    if (tokenizer_encode(job->model->engine->tokenizer, text, size, false, out, &cause)) {
        api_error_from(job->fields.error, &cause, param);
    }
}

static void encode_buffer(struct api_job *job, struct buffer *text, const char *param, struct token_list *out) {
    if (text->failed) api_error_no_memory(job->fields.error);
    encode(job, text->data ? text->data : "", text->size, param, out);
    buffer_free(text);
}

static void add_string(struct buffer *text, const json_t *string) {
    buffer_add(text, json_string_value(string), json_string_length(string));
}

/* A file as DeepSeek-Coder was taught repositories: its name behind a '#', then what is in it. Each is encoded alone, so a file
 * that is dropped changes no token of the others. */
static void encode_file(struct api_job *job, const json_t *file, size_t index, struct token_list *out) {
    const json_t *name = json_object_get(file, "filename"), *content = json_object_get(file, "text");
    struct buffer text = {0};
    if (!json_is_string(content) || (name && !json_is_string(name) && !json_is_null(name))) {
        api_error_field(job->fields.error, "input_extra",
                        "input_extra[%zu]: expected {\"filename\": a string, \"text\": a string}", index);
        return;
    }
    if (json_string_length(name) > 0) {
        buffer_add_text(&text, "#");
        add_string(&text, name);
        buffer_add_text(&text, "\n");
    }
    add_string(&text, content);
    if (text.size > 0 && text.data[text.size - 1] != '\n') buffer_add_text(&text, "\n");
    encode_buffer(job, &text, "input_extra", out);
}

static void encode_extra(struct api_job *job, struct token_list *out) {
    const json_t *files = fields_array(&job->fields, "input_extra");
    size_t n = json_array_size(files);
    if (n > API_EXTRA_MAX) {
        api_error_field(job->fields.error, "input_extra", "input_extra: at most %d files, found %zu", API_EXTRA_MAX, n);
    }
    for (size_t i = 0; i < n && !fields_failed(&job->fields); i++) encode_file(job, json_array_get(files, i), i, out);
}

static void encode_pieces(struct api_job *job, struct pieces *pieces) {
    struct fields *f = &job->fields;
    const json_t *prefix = fields_string(f, "input_prefix"), *suffix = fields_string(f, "input_suffix");
    const json_t *prompt = fields_string(f, "prompt"); /* the line of the cursor: it goes on where the prefix ends */
    if (!prefix || !suffix) {
        const char *missing = prefix ? "input_suffix" : "input_prefix";
        if (!fields_failed(f)) api_error_field(f->error, missing, "%s is missing", missing);
        return;
    }
    struct buffer text = {0};
    add_string(&text, prefix);
    if (prompt) add_string(&text, prompt);
    encode_buffer(job, &text, "input_prefix", &pieces->prefix);
    encode(job, json_string_value(suffix), json_string_length(suffix), "input_suffix", &pieces->suffix);
    encode_extra(job, &pieces->extra);
}

/* --- what there is room for ---------------------------------------------------------------------- */

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* The end of a list that fits: what is dropped is a multiple of `step`. */
static struct token_span keep_end(const struct token_list *list, size_t room, size_t step) {
    size_t dropped = list->n > room ? (list->n - room + step - 1) / step * step : 0;
    dropped = smaller(dropped, list->n);
    return (struct token_span){dropped < list->n ? list->ids + dropped : NULL, list->n - dropped};
}

/* Tokens of the context that the answer may have for sure. */
static size_t answer_room(const struct api_request *request) {
    size_t context = (size_t)request->context;
    if (request->n_predict < 0) return context / 4;
    return smaller((size_t)request->n_predict, context / 2);
}

/* The other files get no more than half of the context, whatever the rest leaves: a warm-up that knows only them then cuts them
 * as the request does that follows it. */
static void assemble(struct api_job *job, const struct pieces *p, struct api_prompt *prompt) {
    enum { SPECIALS = 4 };
    struct mo_error cause = {0};
    size_t context = (size_t)job->request->context, taken = answer_room(job->request) + SPECIALS;
    size_t room = context > taken ? context - taken : 0, step = context / STEPS + 1;
    size_t n_suffix = room / 4;
    if (p->prefix.n < room - n_suffix) n_suffix = room - p->prefix.n;
    n_suffix = smaller(n_suffix, p->suffix.n);
    struct token_span before[2], after = {p->suffix.ids, n_suffix};
    before[1] = keep_end(&p->prefix, room - n_suffix, step);
    before[0] = keep_end(&p->extra, smaller(context / 2, room - n_suffix - before[1].n), step);
    prompt->is_cut = before[0].n < p->extra.n || before[1].n < p->prefix.n || n_suffix < p->suffix.n;
    if (fim_assemble(job->model->engine->tokenizer, before, 2, after, &prompt->ids, &cause)) {
        api_error_from(job->fields.error, &cause, NULL);
    }
}

void api_infill_parse(struct api_job *job) {
    const struct engine *engine = job->model->engine;
    struct pieces pieces = {0};
    if (fields_failed(&job->fields)) return;
    if (!engine->tokenizer || !fim_supported(engine->tokenizer)) {
        api_error_set(job->fields.error, 501, NULL, "not_supported",
                      "this model has no tokens for filling in the middle");
        return;
    }
    if (!api_prompts_reserve(job, 1)) return;
    job->request->n_prompts = 1;
    encode_pieces(job, &pieces);
    if (!fields_failed(&job->fields)) assemble(job, &pieces, &job->request->prompts[0]);
    token_list_free(&pieces.extra);
    token_list_free(&pieces.prefix);
    token_list_free(&pieces.suffix);
}
