/* Ids back to text, whole or as they come. */
#include "text/tokenizer_priv.h"

#include <stdlib.h>
#include "base/utf8.h"

static size_t decoded_bytes(const struct text_stream *stream, int32_t id, const char **bytes) {
    size_t size;
    *bytes = tokenizer_token_bytes(stream->tokenizer, id, &size);
    return stream->skip_special && tokenizer_is_special(stream->tokenizer, id) ? 0 : size;
}

void text_stream_init(struct text_stream *stream, const struct tokenizer *tokenizer, bool skip_special) {
    *stream = (struct text_stream){.tokenizer = tokenizer, .skip_special = skip_special};
}

size_t text_stream_bound(const struct text_stream *stream, int32_t id) {
    const char *bytes;
    return 3 * (decoded_bytes(stream, id, &bytes) + (size_t)stream->n_held) + 1;
}

size_t text_stream_push(struct text_stream *stream, int32_t id, char *out) {
    const char *bytes;
    size_t n = decoded_bytes(stream, id, &bytes);
    return utf8_lossy_push(stream->held, &stream->n_held, (const uint8_t *)bytes, n, out);
}

size_t text_stream_finish(struct text_stream *stream, char *out) {
    if (stream->n_held == 0) return 0;
    stream->n_held = 0;
    out[0] = '\xEF', out[1] = '\xBF', out[2] = '\xBD';
    return 3;
}

int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t n, bool skip_special, char **text,
                     size_t *size, struct mo_error *error) {
    struct text_stream stream;
    text_stream_init(&stream, tokenizer, skip_special);
    size_t bound = 4; /* what finishing may add, and the NUL */
    const char *bytes;
    for (size_t i = 0; i < n; i++) bound += 3 * decoded_bytes(&stream, ids[i], &bytes);
    char *out = malloc(bound);
    if (!out) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for %zu bytes of text", bound);
    *size = 0;
    for (size_t i = 0; i < n; i++) *size += text_stream_push(&stream, ids[i], out + *size);
    *size += text_stream_finish(&stream, out + *size);
    out[*size] = 0;
    *text = out;
    return 0;
}
