#include "plan/quant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model/recipe.h"

/* Scales included: fp8 has an fp32 one per 128x128 block (fp8_bits: of V4 and V4.1); int8 and int4 an fp16 one per 128; fp4
 * one of 8 bits per 32; AWQ and GPTQ also a
 * 4-bit zero point per group. */
static const struct plan_format formats[] = {
    {"f32", 32, PLAN_K_F32},
    {"bf16", 16, PLAN_K_16BIT},
    {"f16", 16, PLAN_K_16BIT},
    {"int8", 8 + 16.0 / 128, PLAN_K_8BIT},
    {"fp8", 8 + 32.0 / (128 * 128), PLAN_K_8BIT},
    {"fp8-rows", 8 + 8.0 / 32, PLAN_K_8BIT}, /* n-gram tables */
    {"int4", 4 + 16.0 / 128, PLAN_K_4BIT},
    {"fp4", 4 + 8.0 / 32, PLAN_K_4BIT},
    {"awq", 4 + 20.0 / 128, PLAN_K_4BIT},
    {"awq-g64", 4 + 20.0 / 64, PLAN_K_4BIT},
    {"awq-g32", 4 + 20.0 / 32, PLAN_K_4BIT},
    {"gptq", 4 + 20.0 / 128, PLAN_K_4BIT},
    {"packed", 4 + 16.0 / 128, PLAN_K_4BIT}, /* compressed-tensors, symmetric */
};
enum { N_FORMATS = sizeof formats / sizeof *formats };

enum plan_kernel plan_kernel_of(enum mat_format format) {
    switch (format) {
    case MAT_F32:
        return PLAN_K_F32;
    case MAT_F16:
    case MAT_BF16:
        return PLAN_K_16BIT;
    case MAT_FP4:
    case MAT_INT4_AWQ:
    case MAT_INT4_GPTQ:
    case MAT_INT4_PACKED:
    case MAT_INT4:
        return PLAN_K_4BIT;
    case MAT_IQ1_S:
    case MAT_IQ1_M:
    case MAT_IQ2_XXS:
    case MAT_IQ2_XS:
    case MAT_IQ2_S:
    case MAT_IQ3_XXS:
    case MAT_IQ3_S:
        return PLAN_K_GRIDS;
    default:
        return gguf_is_blocks(format) ? PLAN_K_BLOCKS : PLAN_K_8BIT;
    }
}

/* A recipe as plan sees it. Shared and dense experts and the projections of attention have its own format, `routed` is that of
 * routed experts. */
struct mix {
    const char *name, *kv_b, *head, *embedding, *routed;
};

/* What others publish; our own recipes are model/recipe.h's. */
static const struct mix published[] = {
    {"f32", "f32", "f32", "f32", "f32"},
    {"f16", "f16", "f16", "f16", "f16"},
    {"awq-g32", "awq-g32", "f16", "f16", "awq-g32"},
    {"awq-g64", "awq-g64", "f16", "f16", "awq-g64"},
    {"awq", "awq", "f16", "f16", "awq"},
    {"gptq", "gptq", "f16", "f16", "gptq"},
    {"packed", "packed", "bf16", "bf16", "packed"},
};
enum { N_PUBLISHED = sizeof published / sizeof *published, GROUP_SIZE = 128 };

static bool find_mix(struct mix *mix, const char *name, size_t size) {
    char text[16];
    struct recipe recipe;
    for (int i = 0; i < N_PUBLISHED; i++) {
        if (strlen(published[i].name) != size || memcmp(published[i].name, name, size)) continue;
        *mix = published[i];
        return true;
    }
    if (size >= sizeof text) return false;
    snprintf(text, sizeof text, "%.*s", (int)size, name);
    if (recipe_parse(&recipe, text, GROUP_SIZE, NULL)) return false;
    *mix = (struct mix){
        .name = mat_format_name(recipe.format[GROUP_ATTENTION]),
        .routed = mat_format_name(recipe.format[GROUP_ROUTED]),
        .kv_b = mat_format_name(recipe.format[GROUP_KV_B]),
        .head = mat_format_name(recipe.format[GROUP_HEAD]),
        .embedding = mat_format_name(recipe.format[GROUP_EMBEDDING]),
    };
    return true;
}

const char *plan_quant_smaller(const char *recipe) {
    if (!strcmp(recipe, "f32")) return "bf16";
    if (!strcmp(recipe, "bf16") || !strcmp(recipe, "f16") || !strcmp(recipe, "int8")) return "fp8";
    return strcmp(recipe, "int4") ? "int4" : NULL;
}

bool plan_quant_is_real(const struct plan_quant *quant) {
    for (int i = 0; i < PLAN_GROUPS; i++) {
        if (strstr(quant->group[i].name, " bits")) return false;
    }
    return true;
}

/* A format by name, or "2.4": so many bits, in the kernels' next width. */
static bool find_format(struct plan_format *format, const char *name, size_t size) {
    for (int i = 0; i < N_FORMATS; i++) {
        if (strlen(formats[i].name) != size || memcmp(formats[i].name, name, size)) continue;
        *format = formats[i];
        return true;
    }
    char *end;
    double bits = strtod(name, &end);
    if (size >= sizeof format->name || end != name + size || !(bits >= 0.5 && bits <= 32)) return false;
    *format = (struct plan_format){.bits = bits,
                                   .kernel = bits > 16  ? PLAN_K_F32
                                             : bits > 9 ? PLAN_K_16BIT
                                             : bits > 6 ? PLAN_K_8BIT
                                                        : PLAN_K_4BIT};
    snprintf(format->name, sizeof format->name, "%g bits", bits);
    return true;
}

static void set_group(struct plan_quant *quant, enum plan_group group, const char *format) {
    find_format(&quant->group[group], format, strlen(format));
}

static int start_recipe(struct plan_quant *quant, const char *text, size_t size, struct mo_error *error) {
    struct mix mix;
    if (!find_mix(&mix, text, size)) {
        return mo_error_set(error, MO_E_INVALID,
                            "--quant: expected f32, bf16, f16, int8, fp8, int4, fp4, awq, awq-g64, awq-g32, gptq or "
                            "packed, found \"%.*s\"",
                            (int)size, text);
    }
    for (int i = 0; i < PLAN_GROUPS; i++) set_group(quant, (enum plan_group)i, mix.name);
    set_group(quant, PLAN_ROUTED, mix.routed);
    set_group(quant, PLAN_KV_B, mix.kv_b);
    set_group(quant, PLAN_HEAD, mix.head);
    set_group(quant, PLAN_EMBEDDING, mix.embedding);
    const char *wide = quant->group[PLAN_EMBEDDING].name; /* routers and norms are never quantised */
    set_group(quant, PLAN_ROUTER, wide);
    set_group(quant, PLAN_NORM, wide);
    set_group(quant, PLAN_TABLES, !strcmp(mix.routed, "bf16") ? "bf16" : "fp8-rows");
    return 0;
}

static int change_group(struct plan_quant *quant, const char *text, size_t size, struct mo_error *error) {
    size_t name = strcspn(text, "=,");
    for (int i = 0; i < PLAN_TABLES && name < size; i++) { /* tables stay what they are */
        const char *group = plan_group_name((enum plan_group)i);
        if (strlen(group) != name || memcmp(group, text, name)) continue;
        if (find_format(&quant->group[i], text + name + 1, size - name - 1)) return 0;
        return mo_error_set(error, MO_E_INVALID,
                            "--quant: %s: expected a format (f32, bf16, f16, int8, fp8, int4, fp4, awq, awq-g64, "
                            "awq-g32, gptq, packed) "
                            "or bits from 0.5 to 32, found \"%.*s\"",
                            group, (int)(size - name - 1), text + name + 1);
    }
    return mo_error_set(error, MO_E_INVALID,
                        "--quant: expected GROUP=FORMAT with attention, kv_b, dense, shared, routed, router, head, "
                        "embedding or norm, found \"%.*s\"",
                        (int)size, text);
}

int plan_quant_parse(struct plan_quant *quant, const char *text, struct mo_error *error) {
    *quant = (struct plan_quant){0};
    snprintf(quant->name, sizeof quant->name, "%s", text);
    int code = start_recipe(quant, text, strcspn(text, ","), error);
    for (const char *at = text + strcspn(text, ","); *at && !code;) {
        size_t size = strcspn(++at, ",");
        code = change_group(quant, at, size, error);
        at += size;
    }
    return code;
}

/* ---- bytes ---- */

double plan_fp8_card_more(const struct plan_arch *arch, enum plan_group group, const struct plan_format *format,
                          double weights) {
    const bool is_csa2 = plan_arch_is_hybrid(arch) && arch->hybrid.kind == HYBRID_CSA2;
    const bool is_there = group != PLAN_EMBEDDING && group != PLAN_TABLES;
    return is_csa2 && is_there && !strcmp(format->name, "fp8") ? weights * sizeof(float) / 32 : 0;
}

/* V4's and V4.1's published files have scales of 8 bits, and V4.1 has one for 32x32 weights; in what `quantize` makes of it, too. */
static double fp8_bits(const struct plan_arch *arch, const struct plan_quant *quant) {
    const bool is_hybrid = plan_arch_is_hybrid(arch), is_published = !strcmp(quant->name, arch->published);
    const int side = is_hybrid && arch->hybrid.kind == HYBRID_CSA2 ? 32 : 128;
    return 8 + (is_hybrid && is_published ? 8.0 : 32.0) / (side * side);
}

void plan_weights_from_quant(struct plan_weights *weights, const struct plan_arch *arch,
                             const struct plan_quant *quant) {
    int64_t params[PLAN_GROUPS];
    plan_arch_params(arch, params);
    *weights = (struct plan_weights){0};
    for (int i = 0; i < PLAN_GROUPS; i++) {
        weights->params[i] = (double)params[i];
        weights->format[i] = quant->group[i];
        if (!strcmp(quant->group[i].name, "fp8")) weights->format[i].bits = fp8_bits(arch, quant);
        weights->bytes[i] = (double)params[i] * weights->format[i].bits / 8;
        weights->card_more[i] = plan_fp8_card_more(arch, (enum plan_group)i, &quant->group[i], (double)params[i]);
    }
    if (!params[PLAN_TABLES]) weights->format[PLAN_TABLES] = (struct plan_format){0};
}

double plan_weights_total(const struct plan_weights *weights) {
    double total = 0;
    for (int i = 0; i < PLAN_GROUPS; i++) total += i == PLAN_TABLES ? 0 : weights->bytes[i];
    return total;
}

double plan_weights_fixed_card_more(const struct plan_weights *weights) {
    double more = 0;
    for (int i = 0; i < PLAN_GROUPS; i++) more += i == PLAN_ROUTED ? 0 : weights->card_more[i];
    return more;
}

double plan_weights_fixed_bytes(const struct plan_arch *arch, const struct plan_weights *w) {
    double bytes = plan_weights_total(w) - w->bytes[PLAN_ROUTED] - w->bytes[PLAN_EMBEDDING] - w->bytes[PLAN_NORM];
    return arch->tied_embedding ? bytes + w->bytes[PLAN_EMBEDDING] : bytes;
}

double plan_weights_expert_bytes(const struct plan_arch *arch, const struct plan_weights *weights) {
    double count = (double)plan_arch_moe_layers(arch) * arch->experts;
    return count > 0 ? weights->bytes[PLAN_ROUTED] / count : 0;
}

double plan_weights_routed_bytes(const struct plan_arch *arch, const struct plan_weights *weights, int batch) {
    return plan_arch_moe_layers(arch) * plan_arch_distinct_experts(arch, batch) *
           plan_weights_expert_bytes(arch, weights);
}
