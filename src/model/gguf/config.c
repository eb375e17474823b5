/* config.json and generation_config.json from a GGUF's values, as config.c wants to read them: what all families share.
 *
 * llama.cpp's converter leaves some things out, and older ones left out more; what they were is known for DeepSeek's own models, and
 * a warning says what was taken. */
#include "model/gguf/config_priv.h"

#include <stdio.h>
#include <string.h>

static const struct family {
    const char *architecture;
    int (*put)(const struct gguf_maker *m);
} families[] = {{"deepseek2", gguf_put_latent}, {"deepseek4", gguf_put_hybrid}};

static const struct family *find_family(const struct gguf *gguf) {
    const struct gguf_value *value = gguf_find(gguf, "general.architecture");
    struct gguf_text name;
    if (!value || value->type != GGUF_STRING) return NULL;
    name = (struct gguf_text){(const char *)value->data + 8, value->bytes - 8};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (gguf_text_is(name, families[i].architecture)) return &families[i];
    }
    return NULL;
}

const char *gguf_architecture(const struct gguf *gguf) {
    const struct family *family = find_family(gguf);
    return (family ? family : families)->architecture;
}

/* ---- the document being made ---- */

const char *maker_key(const struct gguf_maker *m, const char *key, char full[GGUF_KEY_BYTES]) {
    snprintf(full, GGUF_KEY_BYTES, "%s%s", key[0] == '.' ? gguf_architecture(m->gguf) : "", key);
    return full;
}

int maker_int(const struct gguf_maker *m, const char *key, enum json_need need, int64_t max, int *out) {
    char full[GGUF_KEY_BYTES];
    return gguf_get_int(m->gguf, maker_key(m, key, full), need, 0, max, out, m->error);
}

int maker_double(const struct gguf_maker *m, const char *key, enum json_need need, double *out) {
    char full[GGUF_KEY_BYTES];
    return gguf_get_double(m->gguf, maker_key(m, key, full), need, out, m->error);
}

void maker_put(const struct gguf_maker *m, const char *key, json_t *value) {
    if (json_object_set_new(m->root, key, value)) *m->failed = true;
}

void maker_put_int(const struct gguf_maker *m, const char *key, int value) {
    maker_put(m, key, json_integer(value));
}

int maker_refuse(const struct gguf_maker *m, const char *key, const char *expected, const char *found) {
    char full[GGUF_KEY_BYTES];
    return mo_error_set(m->error, MO_E_UNSUPPORTED, "%s: key \"%s\": expected %s, found %s", m->gguf->path,
                        maker_key(m, key, full), expected, found);
}

int maker_sizes(const struct gguf_maker *m, const struct maker_size *sizes, int n) {
    for (int i = 0; i < n; i++) {
        int value = 0;
        int code = maker_int(m, sizes[i].key, sizes[i].need, INT32_MAX, &value);
        if (code) return code;
        if (value || sizes[i].need == JSON_REQUIRED_KEY) maker_put_int(m, sizes[i].name, value);
    }
    return 0;
}

/* The document, or the error that stands in its way. */
static int finish(const struct gguf_maker *m, int code, json_t **root) {
    if (!code && *m->failed) code = mo_error_set(m->error, MO_E_NO_MEMORY, "%s: no memory for its keys", m->gguf->path);
    if (code) {
        json_decref(m->root);
    } else {
        *root = m->root;
    }
    return code;
}

static int check_architecture(const struct gguf_maker *m) {
    struct gguf_text name = {0};
    char found[100];
    int code = gguf_get_text(m->gguf, "general.architecture", JSON_REQUIRED_KEY, &name, m->error);
    if (code || find_family(m->gguf)) return code;
    snprintf(found, sizeof found, "\"%.*s\"", (int)(name.size < 90 ? name.size : 90), name.data);
    return maker_refuse(m, "general.architecture",
                        "\"deepseek2\" (DeepSeek-V2, V2-Lite, Coder-V2, V3, R1) or \"deepseek4\" (V4)", found);
}

/* ---- layers and tokens ---- */

static bool has_prefix(const struct gguf *gguf, const char *prefix) {
    for (int i = 0; i < gguf->n_tensors; i++) {
        if (!strncmp(gguf->tensors[i].name, prefix, strlen(prefix))) return true;
    }
    return false;
}

/* block_count has the prediction layers in it where the file has them (or its converter has left them out afterwards). */
static int put_layers(const struct gguf_maker *m) {
    int layers = 0, predictions = 0;
    char nextn[64], norm[64];
    int code = maker_int(m, ".block_count", JSON_REQUIRED_KEY, 1 << 20, &layers);
    if (!code) code = maker_int(m, ".nextn_predict_layers", JSON_OPTIONAL_KEY, 1 << 20, &predictions);
    if (code) return code;
    snprintf(nextn, sizeof nextn, "blk.%d.nextn.", layers - 1);
    snprintf(norm, sizeof norm, "blk.%d.attn_norm.weight", layers - 1);
    bool counted = has_prefix(m->gguf, nextn) || !gguf_find_tensor(m->gguf, norm);
    if (counted && predictions < layers) layers -= predictions;
    maker_put_int(m, "num_hidden_layers", layers);
    maker_put_int(m, "num_nextn_predict_layers", predictions);
    return 0;
}

static int put_vocabulary(const struct gguf_maker *m) {
    static const char *const ids[][2] = {{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                         {"tokenizer.ggml.eos_token_id", "eos_token_id"}};
    const struct gguf_value *tokens;
    int vocab = 0;
    int code = maker_int(m, ".vocab_size", JSON_OPTIONAL_KEY, INT32_MAX, &vocab);
    if (!code && !vocab) {
        code = gguf_get_array(m->gguf, "tokenizer.ggml.tokens", JSON_REQUIRED_KEY, GGUF_STRING, &tokens, m->error);
        if (!code) vocab = tokens->count < INT32_MAX ? (int)tokens->count : INT32_MAX;
    }
    maker_put_int(m, "vocab_size", vocab);
    for (int i = 0; i < 2 && !code; i++) {
        int id = -1;
        code = maker_int(m, ids[i][0], JSON_OPTIONAL_KEY, INT32_MAX, &id);
        if (!code && id >= 0) maker_put_int(m, ids[i][1], id);
    }
    return code;
}

int maker_refuse_foreign_rope(const struct gguf_maker *m) {
    static const char *const ones[] = {".rope.scaling.attn_factor", ".rope.scaling.yarn_attn_factor",
                                       ".rope.scaling.yarn_ext_factor"};
    double value, temperature = 0;
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) {
        value = 1;
        int code = maker_double(m, ones[i], JSON_OPTIONAL_KEY, &value);
        if (code) return code;
        if (value != 1) return maker_refuse(m, ones[i], "1", "another number");
    }
    int code = maker_double(m, ".attention.temperature_scale", JSON_OPTIONAL_KEY, &temperature);
    if (!code && temperature != 0) code = maker_refuse(m, ".attention.temperature_scale", "none", "one");
    return code;
}

int gguf_config(const struct gguf *gguf, json_t **root, struct mo_error *error) {
    bool failed = false;
    const struct gguf_maker maker = {gguf, json_object(), &failed, error}, *m = &maker;
    if (!maker.root) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory", gguf->path);
    int code = check_architecture(m);
    if (!code) code = put_layers(m);
    if (!code) code = find_family(gguf)->put(m);
    if (!code) code = put_vocabulary(m);
    bool tied = !gguf_find_tensor(gguf, "output.weight");
    maker_put(&maker, "tie_word_embeddings", json_boolean(tied));
    return finish(&maker, code, root);
}

/* What some files suggest for sampling; the end of a turn ends an answer as the end of the text does. */
int gguf_generation_config(const struct gguf *gguf, json_t **root, struct mo_error *error) {
    static const char *const numbers[][2] = {{"general.sampling.temp", "temperature"},
                                             {"general.sampling.top_p", "top_p"},
                                             {"general.sampling.min_p", "min_p"},
                                             {"general.sampling.penalty_repeat", "repetition_penalty"}};
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"};
    bool failed = false;
    const struct gguf_maker maker = {gguf, json_object(), &failed, error};
    json_t *eos = json_array();
    int code = 0;
    failed = !maker.root || !eos;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !code; i++) {
        double value;
        if (!gguf_find(gguf, numbers[i][0])) continue;
        code = maker_double(&maker, numbers[i][0], JSON_REQUIRED_KEY, &value);
        if (!code) maker_put(&maker, numbers[i][1], json_real(value));
    }
    for (int i = 0; i < 2 && !code; i++) {
        int id = -1;
        code = maker_int(&maker, ends[i], JSON_OPTIONAL_KEY, INT32_MAX, &id);
        if (!code && id >= 0 && json_array_append_new(eos, json_integer(id))) failed = true;
    }
    int top_k = -1;
    if (!code) code = maker_int(&maker, "general.sampling.top_k", JSON_OPTIONAL_KEY, INT32_MAX, &top_k);
    if (!code && top_k >= 0) maker_put_int(&maker, "top_k", top_k);
    maker_put(&maker, "eos_token_id", eos);
    return finish(&maker, code, root);
}
