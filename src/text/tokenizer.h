/* text/tokenizer.h - byte-level BPE as tokenizer.json describes it, and the way back to text.
 *
 * The file's own pre-tokenizer steps run in order, each on the pieces of the one before (matches become
 * pieces, and so do the gaps); then bytes are mapped by the GPT-2 table and merged by rank. Added tokens are
 * cut out first, leftmost-longest, where the caller allows it. A loaded tokenizer is immutable: any thread
 * may use it. Includes: base, model (to find the files). Source: huggingface/tokenizers' tokenizer.json format. */
#ifndef MOEBIUS_TEXT_TOKENIZER_H
#define MOEBIUS_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

struct tokenizer;

/* A growing list of ids. Zero it before use; token_list_free accepts a zeroed one. */
struct token_list {
    int32_t *ids; /* [n] */
    size_t n, capacity;
    size_t limit; /* > 0: one more is MO_E_LIMIT, and it is_full */
    bool is_full;
};
int token_list_push(struct token_list *list, int32_t id, struct mo_error *error);
void token_list_free(struct token_list *list);

/* A half-open range of bytes. */
struct text_range {
    size_t begin, end;
};

struct checkpoint;
/* Reads tokenizer.json and, if there, tokenizer_config.json and a file with a template; without one config.json, too. */
int tokenizer_load(struct tokenizer **tokenizer, const struct checkpoint *checkpoint, struct mo_error *error);
/* The same from memory; `config` may be NULL. `where` names the source in messages. */
int tokenizer_parse(struct tokenizer **tokenizer, const char *json, size_t size, const char *config, size_t config_size,
                    const char *where, struct mo_error *error);
void tokenizer_free(struct tokenizer *tokenizer); /* accepts NULL */

/* Appends the ids of `text` (valid UTF-8, else MO_E_INVALID with the byte offset; may hold NUL). With
 * `special`, every added token in the text is recognised; without, none is. BOS is never added. */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size, bool special,
                     struct token_list *out, struct mo_error *error);
/* The same, with added tokens recognised only if they lie wholly inside one of the ranges (ascending,
 * disjoint): what lies between recognised tokens is encoded as one text. */
int tokenizer_encode_ranges(const struct tokenizer *tokenizer, const char *text, size_t size,
                            const struct text_range *ranges, size_t n_ranges, struct token_list *out,
                            struct mo_error *error);

/* Ids to text: bytes joined, then each maximal ill-formed part becomes one U+FFFD. With skip_special, tokens
 * marked special are dropped; ids without a token are always dropped. *text is malloc'd, NUL-terminated, the
 * caller's. */
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t n, bool skip_special, char **text,
                     size_t *size, struct mo_error *error);

/* Bytes of one token, owned by the tokenizer; NULL and *size 0 for an id without a token. */
const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *size);
/* The same as a C string: "" where there are none. */
const char *tokenizer_token_text(const struct tokenizer *tokenizer, int32_t id);
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);
/* The id of an added token by its exact content, or -1. */
int32_t tokenizer_added_id(const struct tokenizer *tokenizer, const char *content);
int tokenizer_size(const struct tokenizer *tokenizer); /* largest id + 1 */

/* -1 where the files name none. */
int32_t tokenizer_bos(const struct tokenizer *tokenizer);
int32_t tokenizer_eos(const struct tokenizer *tokenizer);
bool tokenizer_adds_bos(const struct tokenizer *tokenizer); /* add_bos_token */
/* chat_template of tokenizer_config.json (the string, or the entry "default" of a named list), else
 * chat_template.jinja; NULL if there is none. */
const char *tokenizer_chat_template(const struct tokenizer *tokenizer);
/* Where there is no chat template, encoding/encoding_dsv4.py or encoding/encoding.py: V4's and V4.1's releases have these in its
 * place. They are Python, and only looked at. NULL if there is none. */
const char *tokenizer_chat_module(const struct tokenizer *tokenizer);
/* Where there is no chat template, the first of config.json's "architectures"; else "". */
const char *tokenizer_architecture(const struct tokenizer *tokenizer);

/* The first ASCII look-alike of a special token in `text` ("<|fim_begin|>" or "<|fim▁begin|>" for
 * "<｜fim▁begin｜>", ...), as the genuine token's content, or NULL. For warnings. */
const char *tokenizer_lookalike(const struct tokenizer *tokenizer, const char *text, size_t size);

/* Streaming decode: ids go in one by one, whole code points come out. Bytes that are an incomplete but so far
 * valid sequence are held back; ill-formed ones become U+FFFD at once. */
struct text_stream {
    const struct tokenizer *tokenizer;
    bool skip_special;
    uint8_t held[4];
    int n_held;
};
void text_stream_init(struct text_stream *stream, const struct tokenizer *tokenizer, bool skip_special);
/* Writes the text that `id` completes to `out`, which holds text_stream_bound(stream, id) bytes; returns how
 * many were written. */
size_t text_stream_bound(const struct text_stream *stream, int32_t id);
size_t text_stream_push(struct text_stream *stream, int32_t id, char *out);
/* What is still held, as U+FFFD: at most 3 bytes. */
size_t text_stream_finish(struct text_stream *stream, char *out);

#endif
