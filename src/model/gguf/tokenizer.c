/* tokenizer.json and tokenizer_config.json from a GGUF's values, for text/tokenizer.c.
 *
 * A GGUF names the pre-tokenizer ("tokenizer.ggml.pre") and leaves its steps to the program. They are here as the released
 * tokenizer.json files have them. Source of the expressions: tokenizer.json of DeepSeek-V2 and DeepSeek-V3, and for
 * "deepseek-coder" that of DeepSeek-Coder. */
#include "model/gguf/gguf.h"

#include <stdio.h>
#include <string.h>

/* Far above any model's. */
enum { MAX_TOKENS = 1 << 21, MAX_MERGES = 1 << 22 };

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED, TOKEN_BYTE };

/* ---- the steps ---- */

/* Letters that have case, as a list. */
static const char V2_LETTERS[] =
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+";
static const char V2_PUNCTUATION[] = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+";
static const char V2_EAST_ASIAN[] = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+";
static const char V3_EAST_ASIAN[] = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
static const char V3_WORDS[] =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

/* A step is an expression, or DIGITS: each numeric character alone. */
#define DIGITS "digits"
enum { MAX_STEPS = 6 };

static const struct kind {
    const char *pre;
    const char *steps[MAX_STEPS]; /* up to NULL; ByteLevel comes last everywhere */
} kinds[] = {
    {"deepseek-llm", {"[\r\n]", V2_LETTERS, V2_PUNCTUATION, "\\s+$", V2_EAST_ASIAN, DIGITS}},
    {"deepseek-coder", {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", V2_EAST_ASIAN, DIGITS}},
    {"deepseek-v3", {"\\p{N}{1,3}", V3_EAST_ASIAN, V3_WORDS}},
    {"joyai-llm", {"\\p{N}{1,3}", V3_EAST_ASIAN, V3_WORDS}}, /* what llama.cpp's converter takes V4's for: V3's steps */
};

static json_t *step_json(const char *step) {
    if (!strcmp(step, DIGITS)) return json_pack("{ss sb}", "type", "Digits", "individual_digits", 1);
    return json_pack("{ss s{ss} ss sb}", "type", "Split", "pattern", "Regex", step, "behavior", "Isolated", "invert",
                     0);
}

/* NULL without memory: a step left out would be other ids in silence. */
static json_t *steps_json(const struct kind *kind) {
    json_t *list = json_array();
    int failed = 0;
    for (int i = 0; i < MAX_STEPS && kind->steps[i]; i++) {
        failed |= json_array_append_new(list, step_json(kind->steps[i]));
    }
    failed |= json_array_append_new(list, json_pack("{ss sb sb sb}", "type", "ByteLevel", "add_prefix_space", 0,
                                                    "trim_offsets", 1, "use_regex", 0));
    if (failed) {
        json_decref(list);
        return NULL;
    }
    return json_pack("{ss so}", "type", "Sequence", "pretokenizers", list);
}

static int find_kind(const struct gguf *gguf, const struct kind **kind, struct mo_error *error) {
    struct gguf_text model = {0}, pre = {"none", 4};
    int code = gguf_get_text(gguf, "tokenizer.ggml.model", JSON_REQUIRED_KEY, &model, error);
    if (code) return code;
    if (!gguf_text_is(model, "gpt2")) {
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: key \"tokenizer.ggml.model\": expected gpt2, found %.*s",
                            gguf->path, (int)(model.size < 50 ? model.size : 50), model.data);
    }
    code = gguf_get_text(gguf, "tokenizer.ggml.pre", JSON_OPTIONAL_KEY, &pre, error);
    if (code) return code;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        *kind = &kinds[i];
        if (gguf_text_is(pre, kinds[i].pre)) return 0;
    }
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "%s: key \"tokenizer.ggml.pre\": expected deepseek-llm, deepseek-coder, deepseek-v3 or "
                        "joyai-llm, found %.*s",
                        gguf->path, (int)(pre.size < 50 ? pre.size : 50), pre.data);
}

/* ---- tokens ---- */

/* The document being made. */
struct maker {
    const struct gguf *gguf;
    json_t *vocab, *added;
    int bos, eos;
    struct mo_error *error;
};

static int bad_token(const struct maker *m, uint64_t id, struct gguf_text text, const char *what) {
    return mo_error_set(m->error, MO_E_CORRUPT, "%s: key \"tokenizer.ggml.tokens\": token %llu \"%.*s\" %s",
                        m->gguf->path, (unsigned long long)id, (int)(text.size < 60 ? text.size : 60), text.data, what);
}

static bool begins_with(struct gguf_text text, const char *start) {
    return text.size >= strlen(start) && !memcmp(text.data, start, strlen(start));
}

/* Converters call all of DeepSeek's marks control tokens. Those that its own files call special, and that skip_special leaves
 * out, are fewer: the marks of turns, tools and holes stay in a text. */
static bool is_special(const struct maker *m, uint64_t id, struct gguf_text text) {
    static const char *const marks[] = {"<\uff5cbegin\u2581of\u2581sentence", "<\uff5cend\u2581of\u2581sentence",
                                        "<\uff5c\u2581pad\u2581", "<\uff5cplace\u2581holder"};
    if ((int64_t)id == m->bos || (int64_t)id == m->eos || !begins_with(text, "<\uff5c")) return true;
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (begins_with(text, marks[i])) return true;
    }
    return false;
}

/* Converters of 2024 wrote a space for each "\u2581" in tokens that are not control tokens; DeepSeek's marks have no spaces. */
static json_t *mark_json(struct gguf_text text) {
    static const char lower[] = "\u2581";
    char mark[128];
    size_t n = 0;
    bool spaced = begins_with(text, "<\uff5c") && text.size < 40 && memchr(text.data, ' ', text.size);
    if (!spaced) return json_stringn(text.data, text.size);
    for (size_t i = 0; i < text.size; i++) {
        if (text.data[i] == ' ') {
            memcpy(mark + n, lower, sizeof lower - 1);
            n += sizeof lower - 1;
        } else {
            mark[n++] = text.data[i];
        }
    }
    return json_stringn(mark, n);
}

static int add_mark(const struct maker *m, uint64_t id, struct gguf_text text, int type) {
    bool special = type == TOKEN_CONTROL && is_special(m, id, text);
    json_t *content = mark_json(text);
    if (!content) return bad_token(m, id, text, "is not UTF-8");
    json_t *item = json_pack("{sI so sb sb sb sb sb}", "id", (json_int_t)id, "content", content, "single_word", 0,
                             "lstrip", 0, "rstrip", 0, "normalized", !special, "special", special);
    if (item && !json_array_append_new(m->added, item)) return 0;
    return mo_error_set(m->error, MO_E_NO_MEMORY, "%s: no memory for its tokens", m->gguf->path);
}

/* Rows of the embedding that have no token: "[PAD7]" for id 7. */
static bool is_filler(uint64_t id, struct gguf_text text) {
    char filler[40];
    snprintf(filler, sizeof filler, "[PAD%llu]", (unsigned long long)id);
    return gguf_text_is(text, filler);
}

static int add_token(const struct maker *m, uint64_t id, struct gguf_text text, int type) {
    if (type < TOKEN_NORMAL || type > TOKEN_BYTE) return bad_token(m, id, text, "has an unknown type");
    if (type == TOKEN_UNUSED || is_filler(id, text)) return 0;
    if (type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED) return add_mark(m, id, text, type);
    if (json_object_getn(m->vocab, text.data, text.size)) return bad_token(m, id, text, "is there twice");
    if (text.size && !memchr(text.data, 0, text.size) &&
        !json_object_setn_new(m->vocab, text.data, text.size, json_integer((json_int_t)id)))
        return 0;
    return bad_token(m, id, text, "is empty or not UTF-8");
}

static int add_tokens(const struct maker *m) {
    const struct gguf_value *tokens, *types;
    size_t at = 0;
    int code = gguf_get_array(m->gguf, "tokenizer.ggml.tokens", JSON_REQUIRED_KEY, GGUF_STRING, &tokens, m->error);
    if (!code)
        code = gguf_get_array(m->gguf, "tokenizer.ggml.token_type", JSON_REQUIRED_KEY, GGUF_I32, &types, m->error);
    if (code) return code;
    if (tokens->count > MAX_TOKENS) {
        return mo_error_set(m->error, MO_E_LIMIT, "%s: more than %d tokens", m->gguf->path, MAX_TOKENS);
    }
    if (types->count != tokens->count) {
        return mo_error_set(m->error, MO_E_CORRUPT, "%s: expected a type for each of %llu tokens, found %llu",
                            m->gguf->path, (unsigned long long)tokens->count, (unsigned long long)types->count);
    }
    for (uint64_t i = 0; i < tokens->count && !code; i++) {
        code = add_token(m, i, gguf_next_text(tokens, &at), gguf_i32_at(types, i));
    }
    return code;
}

static int add_merges(const struct maker *m, json_t *merges) {
    const struct gguf_value *list;
    size_t at = 0;
    int code = gguf_get_array(m->gguf, "tokenizer.ggml.merges", JSON_REQUIRED_KEY, GGUF_STRING, &list, m->error);
    if (!code && list->count > MAX_MERGES) {
        return mo_error_set(m->error, MO_E_LIMIT, "%s: more than %d merges", m->gguf->path, MAX_MERGES);
    }
    for (uint64_t i = 0; !code && i < list->count; i++) {
        struct gguf_text text = gguf_next_text(list, &at);
        if (json_array_append_new(merges, json_stringn(text.data, text.size))) {
            code = mo_error_set(m->error, MO_E_CORRUPT, "%s: key \"tokenizer.ggml.merges\": merge %llu is not UTF-8",
                                m->gguf->path, (unsigned long long)i);
        }
    }
    return code;
}

static int get_ends(struct maker *m) {
    int code = gguf_get_int(m->gguf, "tokenizer.ggml.bos_token_id", JSON_OPTIONAL_KEY, 0, INT32_MAX, &m->bos, m->error);
    if (code) return code;
    return gguf_get_int(m->gguf, "tokenizer.ggml.eos_token_id", JSON_OPTIONAL_KEY, 0, INT32_MAX, &m->eos, m->error);
}

int gguf_tokenizer(const struct gguf *gguf, json_t **root, struct mo_error *error) {
    struct maker m = {gguf, json_object(), json_array(), -1, -1, error};
    json_t *merges = json_array();
    const struct kind *kind = NULL;
    int code = m.vocab && m.added && merges ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    if (!code) code = find_kind(gguf, &kind, error);
    if (!code) code = get_ends(&m);
    if (!code) code = add_tokens(&m);
    if (!code) code = add_merges(&m, merges);
    if (code) {
        json_decref(m.vocab);
        json_decref(m.added);
        json_decref(merges);
        return code;
    }
    *root = json_pack("{ss so so s{ss} s{ss so so}}", "version", "1.0", "added_tokens", m.added, "pre_tokenizer",
                      steps_json(kind), "decoder", "type", "ByteLevel", "model", "type", "BPE", "vocab", m.vocab,
                      "merges", merges);
    return *root ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its tokenizer", gguf->path);
}

/* ---- tokenizer_config.json ---- */

/* The token of an id, as text. */
static int put_token(const struct gguf *gguf, const char *key, const char *name, json_t *root, struct mo_error *error) {
    const struct gguf_value *tokens;
    struct gguf_text text = {0};
    size_t at = 0;
    int id = -1;
    int code = gguf_get_int(gguf, key, JSON_OPTIONAL_KEY, 0, INT32_MAX, &id, error);
    if (code || id < 0) return code;
    code = gguf_get_array(gguf, "tokenizer.ggml.tokens", JSON_REQUIRED_KEY, GGUF_STRING, &tokens, error);
    if (code) return code;
    if ((uint64_t)id >= tokens->count) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: key \"%s\": expected an id below %llu, found %d", gguf->path, key,
                            (unsigned long long)tokens->count, id);
    }
    for (int i = 0; i <= id; i++) text = gguf_next_text(tokens, &at);
    if (!json_object_set_new(root, name, mark_json(text))) return 0;
    return mo_error_set(error, MO_E_CORRUPT, "%s: key \"%s\": token %d is not UTF-8", gguf->path, key, id);
}

static int put_template(const struct gguf *gguf, json_t *root, struct mo_error *error) {
    struct gguf_text text = {0};
    int code = gguf_get_text(gguf, "tokenizer.chat_template", JSON_OPTIONAL_KEY, &text, error);
    if (code || !text.data) return code;
    if (!json_object_set_new(root, "chat_template", json_stringn(text.data, text.size))) return 0;
    return mo_error_set(error, MO_E_CORRUPT, "%s: key \"tokenizer.chat_template\" is not UTF-8", gguf->path);
}

/* All of DeepSeek's tokenizers want BOS, also where a converter has not said so. */
int gguf_tokenizer_config(const struct gguf *gguf, json_t **root, struct mo_error *error) {
    bool adds_bos = true;
    json_t *json = json_object();
    int code = json ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    if (!code) code = gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", JSON_OPTIONAL_KEY, &adds_bos, error);
    if (!code) code = put_token(gguf, "tokenizer.ggml.bos_token_id", "bos_token", json, error);
    if (!code) code = put_token(gguf, "tokenizer.ggml.eos_token_id", "eos_token", json, error);
    if (!code) code = put_template(gguf, json, error);
    if (!code && json_object_set_new(json, "add_bos_token", json_boolean(adds_bos)))
        code = mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    if (code) json_decref(json);
    if (!code) *root = json;
    return code;
}
