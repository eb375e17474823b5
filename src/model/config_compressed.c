/* model/config_compressed.c - compressed-tensors' quantization_config. Groups of layers say how their weights are stored, and a layer that is in
 * none, or in "ignore", is plain: its tensors show that. Source: compressed-tensors (quantization/quant_args.py, config/format.py). */
#include <stdio.h>
#include <string.h>
#include "model/config_priv.h"

/* What a format's name says of the weights. */
struct packing {
    const char *name;
    enum quant_kind kind;
    int bits;
    const char *type;
    int (*read)(const struct reader *weights, struct model *model);
};

static int read_scaled(const struct reader *r, struct model *model) {
    const char *strategy = "none";
    int code = may_string(r, "strategy", &strategy);
    (void)model;
    if (code || !strcmp(strategy, "channel") || !strcmp(strategy, "tensor")) return code;
    return refuse(r, "strategy", "channel or tensor", strategy);
}

static int read_int8(const struct reader *r, struct model *model) {
    bool is_symmetric = true;
    int code = may_bool(r, "symmetric", &is_symmetric);
    if (!code && !is_symmetric) code = refuse(r, "symmetric", "true", "false");
    return code ? code : read_scaled(r, model);
}

/* Columns that were quantised in another order lie in their own, unless groups were made of that order. */
static int check_order(const struct reader *r) {
    const json_t *order = json_object_get(r->object, "actorder");
    const char *name = json_string_value(order);
    if (!order || json_is_null(order) || json_is_false(order)) return 0;
    if (name && (!strcmp(name, "weight") || !strcmp(name, "static"))) return 0;
    return refuse(r, "actorder", "none or \"weight\" (groups of columns in their own order)", name ? name : "true");
}

static int read_int4(const struct reader *r, struct model *model) {
    const char *strategy = "none";
    model->quant_symmetric = true;
    int code = may_bool(r, "symmetric", &model->quant_symmetric);
    if (!code) code = check_order(r);
    if (!code) code = may_string(r, "strategy", &strategy);
    if (code) return code;
    model->quant_group = 0;
    if (!strcmp(strategy, "channel")) return 0;
    return strcmp(strategy, "group") ? refuse(r, "strategy", "group or channel", strategy)
                                     : config_read_group(r, false, model);
}

static const struct packing packings[] = {
    {"float-quantized", QUANT_FP8_SCALED, 8, "float", read_scaled},
    {"int-quantized", QUANT_INT8, 8, "int", read_int8},
    {"pack-quantized", QUANT_PACKED, 4, "int", read_int4},
};
enum { N_PACKINGS = sizeof packings / sizeof *packings };
static const char all_packings[] = "float-quantized, int-quantized or pack-quantized";

static const struct packing *find_packing(const char *name) {
    for (int i = 0; name && i < N_PACKINGS; i++) {
        if (!strcmp(packings[i].name, name)) return &packings[i];
    }
    return NULL;
}

static int read_weights(const struct reader *r, const struct packing *packing, struct model *model) {
    const char *type = "int";
    int bits = 0;
    char expected[16];
    int code = need_int(r, "num_bits", 1, 64, &bits);
    if (!code) code = may_string(r, "type", &type);
    if (code) return code;
    snprintf(expected, sizeof expected, "%d", packing->bits);
    if (bits != packing->bits) return refuse(r, "num_bits", expected, "another number");
    if (strcmp(type, packing->type) != 0) return refuse(r, "type", packing->type, type);
    model->quant = packing->kind;
    return packing->read(r, model);
}

/* FP8 beside another kind counts as that one: tensors of FP8 show what they are. */
static bool is_alike(const struct model *a, const struct model *b) {
    if (a->quant == QUANT_FP8_SCALED || b->quant == QUANT_FP8_SCALED)
        return a->quant != QUANT_PACKED && b->quant != QUANT_PACKED;
    return a->quant == b->quant && a->quant_group == b->quant_group && a->quant_symmetric == b->quant_symmetric;
}

static int read_group(const struct reader *config, const char *name, const json_t *group, const char *format,
                      struct model *model) {
    char where[1024];
    snprintf(where, sizeof where, "%s: config_groups.%s", config->where, name);
    const struct reader whole = {group, where, config->error};
    int code = may_string(&whole, "format", &format); /* where formats are mixed, each group says its own */
    if (code) return code;
    const struct packing *packing = find_packing(format);
    if (!packing) return refuse(&whole, "format", all_packings, format);
    char inner[1100];
    snprintf(inner, sizeof inner, "%s.weights", where);
    const struct reader weights = {json_object_get(group, "weights"), inner, config->error};
    return read_weights(&weights, packing, model);
}

int config_read_compressed_tensors(const struct reader *r, struct model *model) {
    const char *format = "none", *key;
    json_t *group;
    int code = may_string(r, "format", &format), n = 0;
    if (code) return code;
    const struct packing *packing = find_packing(format);
    if (!packing && strcmp(format, "mixed-precision") != 0) return refuse(r, "format", all_packings, format);
    json_object_foreach((json_t *)json_object_get(r->object, "config_groups"), key, group) {
        struct model one = *model;
        code = read_group(r, key, group, format, &one);
        if (code) return code;
        if (n++ && !is_alike(model, &one)) return refuse(r, "config_groups", "groups that are alike", key);
        if (n == 1 || one.quant != QUANT_FP8_SCALED) *model = one;
    }
    if (!n && packing) model->quant = packing->kind;
    if (n || model->quant == QUANT_FP8_SCALED) return 0;
    return refuse(r, "config_groups", "a group of layers", "none");
}
