#include "plan/headers.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/text.h"
#include "model/format.h"
#include "model/names.h"

static const uint64_t MAX_HEADER_BYTES = 100u << 20;

/* ---- the header ---- */

static int read_bytes(FILE *file, const char *path, void *out, size_t size, struct mo_error *error) {
    size_t n = fread(out, 1, size, file);
    if (n == size) return 0;
    if (ferror(file)) return mo_error_set(error, MO_E_IO, "%s: %s", path, strerror(errno));
    return mo_error_set(error, MO_E_CORRUPT, "%s: its safetensors header is cut off: %zu bytes are missing", path,
                        size - n);
}

static int read_header(FILE *file, const char *path, json_t **header, struct mo_error *error) {
    uint8_t prefix[8];
    uint64_t size = 0;
    int code = read_bytes(file, path, prefix, sizeof prefix, error);
    if (code) return code;
    for (int i = 7; i >= 0; i--) size = size << 8 | prefix[i];
    if (size < 2 || size > MAX_HEADER_BYTES) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: no safetensors file: a header of %llu bytes", path,
                            (unsigned long long)size);
    }
    char *text = malloc((size_t)size);
    if (!text) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for its header", path);
    code = read_bytes(file, path, text, (size_t)size, error);
    if (!code) code = json_parse(text, (size_t)size, path, header, error);
    free(text);
    if (code || json_is_object(*header)) return json_damage(code, error);
    json_decref(*header);
    return mo_error_set(error, MO_E_CORRUPT, "%s: its safetensors header is not a JSON object", path);
}

int plan_header_read(json_t **header, const char *path, struct mo_error *error) {
    FILE *file = fopen(path, "rb");
    if (!file) return mo_error_set(error, MO_E_IO, "%s: %s", path, strerror(errno));
    int code = read_header(file, path, header, error);
    fclose(file);
    return code;
}

const char *plan_header_config(const json_t *header) {
    return json_string_value(json_object_get(json_object_get(header, "__metadata__"), "moebius.config.json"));
}

/* ---- which model is it ---- */

static int dimension(const json_t *header, const char *tensor, size_t index) {
    const json_t *shape = json_object_get(json_object_get(header, tensor), "shape");
    json_int_t n = json_integer_value(json_array_get(shape, index));
    return n > 0 && n < INT32_MAX ? (int)n : 0;
}

/* Experts are numbered from 0: the highest one that has a tensor. */
static int count_experts(const json_t *header) {
    const char *name;
    json_t *entry;
    long highest = -1;
    json_object_foreach((json_t *)header, name, entry) {
        const char *at = strstr(name, ".experts.");
        long expert = at ? strtol(at + strlen(".experts."), NULL, 10) : -1;
        if (expert > highest && expert < INT32_MAX) highest = expert;
    }
    return (int)highest + 1;
}

/* A norm of the residual has its width, in every shard that holds a layer's end or beginning. */
const char *plan_header_match(const json_t *header) {
    int hidden = dimension(header, "model.embed_tokens.weight", 1),
        vocab = dimension(header, "model.embed_tokens.weight", 0);
    const char *name;
    json_t *entry;
    if (!hidden) hidden = dimension(header, "embed.weight", 1);
    if (!vocab) vocab = dimension(header, "embed.weight", 0);
    json_object_foreach((json_t *)header, name, entry) {
        const char *end = strstr(name, "input_layernorm.weight");
        if (!end) end = strstr(name, ".attn_norm.weight");
        if (!hidden && end) hidden = dimension(header, name, 0);
    }
    int experts = count_experts(header);
    return hidden ? plan_arch_match(hidden, vocab, experts) : NULL;
}

/* ---- bytes by group ---- */

struct entry {
    const char *name, *dtype;
    double elements, bytes;
    int last_dim;
};

/* V4: what mixes the streams of the residual. */
static bool is_mixer(const char *name) {
    return strstr(name, "hc_attn_") || strstr(name, "hc_ffn_") || strstr(name, "hc_head_");
}

/* Includes the names of the models that are here for comparison. */
static enum plan_group group_of(const char *name) {
    static const struct {
        const char *part;
        enum plan_group group;
    } parts[] = {
        {".engram.embed.", PLAN_TABLES},
        {".engram.q_weight", PLAN_NORM},
        {".engram.k_weight", PLAN_NORM},
        {"embed_tokens", PLAN_EMBEDDING},
        {".tid2eid", PLAN_EMBEDDING}, /* V4: a row a token id, looked up */
        {".gate.bias", PLAN_ROUTER},
        {".ape", PLAN_NORM},
        {".attn_sink", PLAN_NORM},
        {".indexer.weights_proj.", PLAN_ROUTER},
        {".indexer.w", PLAN_KV_B},
        {"lm_head", PLAN_HEAD},
        {"norm", PLAN_NORM},
        {"_bias", PLAN_ROUTER},
        {".bias", PLAN_NORM},
        {".experts.", PLAN_ROUTED},
        {".shared_experts.", PLAN_SHARED},
        {".mlp.gate.", PLAN_ROUTER},
        {".block_sparse_moe.gate.", PLAN_ROUTER},
        {".mlp.", PLAN_DENSE},
        {".kv_b_proj.", PLAN_KV_B},
        {".compressor.", PLAN_KV_B},
        {".ffn.gate.", PLAN_ROUTER},
    };
    if (is_mixer(name)) return text_ends_with(name, "_fn") ? PLAN_ROUTER : PLAN_NORM;
    if (!strncmp(name, "embed.", strlen("embed."))) return PLAN_EMBEDDING;
    if (!strncmp(name, "head.", strlen("head."))) return PLAN_HEAD;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (strstr(name, parts[i].part)) return parts[i].group;
    }
    return PLAN_ATTENTION;
}

/* Sizes far above any model's, so that sums of them stay numbers. */
static const double MOST_BYTES = 1ll << 50, MOST_ELEMENTS = 1ll << 50;

static bool read_shape(const json_t *shape, struct entry *entry) {
    entry->elements = 1;
    for (size_t i = 0; i < json_array_size(shape); i++) {
        json_int_t n = json_integer_value(json_array_get(shape, i));
        if (n < 0 || n > INT32_MAX) return false;
        entry->elements *= (double)n;
        entry->last_dim = (int)n;
    }
    return json_is_array(shape) && entry->elements <= MOST_ELEMENTS;
}

static int read_entry(const char *name, const json_t *json, const char *path, struct entry *entry,
                      struct mo_error *error) {
    const json_t *offsets = json_object_get(json, "data_offsets");
    json_int_t from = json_integer_value(json_array_get(offsets, 0)),
               to = json_integer_value(json_array_get(offsets, 1));
    *entry = (struct entry){.name = name, .dtype = json_string_value(json_object_get(json, "dtype"))};
    bool good = entry->dtype && read_shape(json_object_get(json, "shape"), entry) && json_array_size(offsets) == 2;
    if (!good || from < 0 || to < from || (double)to > MOST_BYTES) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: tensor %s: expected dtype, shape and two data_offsets", path,
                            name);
    }
    entry->bytes = (double)(to - from);
    return 0;
}

/* What belongs to a matrix, or is a table of experts: bytes without weights of their own. */
static bool has_no_weights(const char *name) {
    static const char *const beside[] = {"qzeros", ".g_idx", ".weight_shape", ".weight_zero_point", ".tid2eid"};
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        if (strstr(name, beside[i])) return true;
    }
    return strstr(name, "scale") && !is_mixer(name);
}

/* GGUF's blocks, which have names of their own. */
static bool find_gguf_format(const char *dtype, struct plan_format *format) {
    for (int i = 0; i < MAT_FORMATS; i++) {
        int values;
        size_t bytes;
        if (!gguf_block((enum mat_format)i, &values, &bytes)) continue;
        if (strcasecmp(mat_format_name((enum mat_format)i), dtype) != 0) continue;
        *format =
            (struct plan_format){.bits = (double)bytes * 8 / values, .kernel = plan_kernel_of((enum mat_format)i)};
        snprintf(format->name, sizeof format->name, "%s", mat_format_name((enum mat_format)i));
        return true;
    }
    return false;
}

/* What others' formats call bytes: one INT8, or two of FP4. NULL: the type says enough. */
static const char *format_of_bytes(const struct entry *e, const struct plan_arch *arch, double *weights) {
    *weights = e->elements;
    if (!strcmp(e->dtype, "I8") && !strcmp(arch->published, "int8")) return "int8";
    return NULL;
}

/* How many weights a tensor holds, and in what; scales and zero points count as bytes of their matrix only. */
static double count_weights(const struct entry *e, const struct plan_arch *arch, struct plan_format *format) {
    static const struct {
        const char *dtype, *format;
        double weights;
    } kinds[] = {{"F32", "f32", 1}, {"BF16", "bf16", 1}, {"F16", "f16", 1}, {"F8_E4M3", "fp8", 1},
                 {"I32", "awq", 8}, {"I8", "fp4", 2},    {"F4", "fp4", 1}};
    enum mat_format block;
    int group;
    struct plan_quant quant;
    const char *recipe = NULL;
    double weights = 0, bytes;
    if (has_no_weights(e->name)) return 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].dtype, e->dtype) != 0) continue;
        recipe = kinds[i].format;
        weights = kinds[i].weights * e->elements;
    }
    if (recipe && !strcmp(e->dtype, "I32") && !strcmp(arch->published, "gptq")) recipe = "gptq"; /* looks like AWQ */
    if (text_ends_with(e->name, ".weight_packed")) recipe = "packed";
    const char *others = format_of_bytes(e, arch, &bytes);
    if (others) {
        recipe = others;
        weights = bytes;
    } else if (!strcmp(e->dtype, "U8") && e->last_dim > 0 && !block_format_of((size_t)e->last_dim, &block, &group)) {
        recipe = block == MAT_INT4 ? "int4" : "int8";
        weights = e->elements / e->last_dim * BLOCK_ROWS * BLOCK_COLS;
    }
    if (recipe && !plan_quant_parse(&quant, recipe, NULL)) *format = quant.group[PLAN_ROUTED];
    if (!recipe && find_gguf_format(e->dtype, format)) weights = e->elements;
    return weights;
}

/* Bytes that a card takes beside those of the file (backend/cuda/params.h): scales of six bits become bytes, kv_b BF16; the embedding
 * stays as it is. */
static double card_more(const struct entry *e, enum plan_group group, const struct plan_format *format,
                        double weights) {
    static const struct {
        enum mat_format format;
        double bits;
    } wider[] = {{MAT_Q3_K, 0.125}, {MAT_Q4_K, 0.125}, {MAT_Q5_K, 0.125}, {MAT_IQ4_XS, 0.0625}};
    if (format->kernel != PLAN_K_BLOCKS || group == PLAN_EMBEDDING) return 0;
    if (group == PLAN_KV_B) return 2 * weights - e->bytes;
    for (size_t i = 0; i < sizeof wider / sizeof *wider; i++) {
        if (!strcmp(format->name, mat_format_name(wider[i].format))) return weights * wider[i].bits / 8;
    }
    return 0;
}

/* A group is called what its largest tensor is; GGUF files have several kinds of blocks in one. */
static void note_format(struct plan_seen *seen, enum plan_group group, const struct plan_format *format, double bytes) {
    struct plan_format *kept = &seen->format[group];
    bool blocks = kept->kernel >= PLAN_K_BLOCKS && format->kernel >= PLAN_K_BLOCKS;
    bool mixed = blocks && strcmp(kept->name, format->name) != 0;
    if (bytes > seen->largest[group]) {
        seen->largest[group] = bytes;
        *kept = *format;
    }
    if (mixed) snprintf(kept->name, sizeof kept->name, "mixed");
}

/* What is turned at start (model/format.h) has, in memory and on a card: of words, a word for each scale, zero point included; of INT8
 * fp16 scales among the values. */
static void count_as_turned(struct entry *e, const struct plan_arch *arch) {
    if (!strcmp(arch->published, "int8")) {
        if (!strcmp(e->dtype, "I8")) e->bytes = e->elements * (1 + 2.0 / BLOCK_COLS);
        if (strstr(e->name, ".weight_scale")) e->bytes = 0;
        return;
    }
    static const char *const gone[] = {".qzeros", ".g_idx", ".weight_shape", ".weight_zero_point"};
    if (strcmp(arch->published, "gptq") != 0 && strcmp(arch->published, "packed") != 0) return;
    if (text_ends_with(e->name, ".scales") || text_ends_with(e->name, ".weight_scale")) e->bytes = 4 * e->elements;
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
        if (text_ends_with(e->name, gone[i])) e->bytes = 0;
    }
}

int plan_header_add(struct plan_seen *seen, const json_t *header, const struct plan_arch *arch, const char *path,
                    struct mo_error *error) {
    const char *name;
    json_t *json;
    json_object_foreach((json_t *)header, name, json) {
        struct entry entry;
        struct plan_format format = {0};
        if (!strcmp(name, "__metadata__") || !strncmp(name, "moebius.", strlen("moebius."))) continue;
        int code = read_entry(name, json, path, &entry, error);
        if (code) return code;
        seen->tensors++;
        if (names_is_left_out(name, arch->layers)) {
            seen->left_out_bytes += entry.bytes;
            continue;
        }
        count_as_turned(&entry, arch);
        enum plan_group group = group_of(name);
        double weights = count_weights(&entry, arch, &format);
        seen->params[group] += weights;
        seen->bytes[group] += entry.bytes;
        seen->card_more[group] +=
            card_more(&entry, group, &format, weights) + plan_fp8_card_more(arch, group, &format, weights);
        if (group == PLAN_TABLES && !strcmp(format.name, "fp8")) snprintf(format.name, sizeof format.name, "fp8-rows");
        if (weights > 0) note_format(seen, group, &format, entry.bytes);
    }
    return 0;
}

/* ---- the whole ---- */

static struct plan_format usual_format(const struct plan_seen *seen) {
    int best = PLAN_ROUTED;
    for (int i = 0; i < PLAN_GROUPS; i++) {
        if (seen->bytes[i] > seen->bytes[best]) best = i;
    }
    struct plan_format format = seen->format[best];
    if (seen->params[best] > 0) format.bits = seen->bytes[best] * 8 / seen->params[best];
    return format;
}

void plan_seen_finish(const struct plan_seen *seen, const struct plan_arch *arch, struct plan_weights *weights) {
    int64_t params[PLAN_GROUPS];
    double there = 0, all = 0;
    plan_arch_params(arch, params);
    *weights = (struct plan_weights){.left_out_bytes = seen->left_out_bytes, .measured = true};
    for (int i = 0; i < PLAN_GROUPS; i++) {
        double expected = (double)params[i], part = expected > 0 ? seen->params[i] / expected : 1;
        bool partial = part < 0.98;
        weights->params[i] = expected;
        weights->format[i] = seen->params[i] > 0 ? seen->format[i] : usual_format(seen);
        bool scaled = partial && seen->params[i] > 0;
        weights->bytes[i] = scaled ? seen->bytes[i] / part : seen->bytes[i];
        weights->card_more[i] = scaled ? seen->card_more[i] / part : seen->card_more[i];
        if (partial && seen->params[i] <= 0) weights->bytes[i] = expected * weights->format[i].bits / 8;
        if (expected > 0) weights->format[i].bits = weights->bytes[i] * 8 / expected;
        all += expected;
        there += fmin(seen->params[i], expected);
    }
    if (there >= 0.98 * all) return;
    snprintf(weights->note, sizeof weights->note,
             "%.1f %% of the weights are in the headers that are here; the rest is taken to be stored alike",
             100 * there / all);
}
