/* model/config_quant.c - quantization_config: how a checkpoint's weights are stored. */
#include <stdio.h>
#include <string.h>
#include "model/config_priv.h"

int config_read_block_size(const struct reader *r, const json_t *block, struct model *model) {
    const json_int_t rows = json_integer_value(json_array_get(block, 0));
    const json_int_t cols = json_integer_value(json_array_get(block, 1));
    if (json_array_size(block) != 2 || rows != cols || (rows != 128 && rows != 32))
        return refuse(r, "weight_block_size", "[128, 128] or [32, 32]", "another size");
    model->quant_block[0] = model->quant_block[1] = (int)rows;
    return 0;
}

static int read_fp8(const struct reader *r, struct model *model) {
    const char *format = "e4m3";
    int code = may_string(r, "fmt", &format);
    if (code) return code;
    if (strcmp(format, "e4m3") && strcmp(format, "float8_e4m3fn")) return refuse(r, "fmt", "e4m3", format);
    const json_t *block = json_object_get(r->object, "weight_block_size");
    if (!block || json_is_null(block)) {
        model->quant = QUANT_FP8_SCALED;
        return 0;
    }
    model->quant = QUANT_FP8_BLOCK;
    return config_read_block_size(r, block, model);
}

int config_read_group(const struct reader *r, bool may_be_row, struct model *model) {
    int group;
    int code = need_int(r, "group_size", -1, MAX_DIM, &group);
    if (code) return code;
    const bool is_row = group == -1 && may_be_row;
    model->quant_group = is_row ? 0 : group;
    if (is_row || group == 32 || group == 64 || group == 128) return 0;
    return refuse(r, "group_size", may_be_row ? "32, 64, 128 or -1" : "32, 64 or 128", "another number");
}

int config_read_four_bits(const struct reader *r, const char *key) {
    int bits = 4;
    int code = may_int(r, key, 1, 64, &bits);
    return code || bits == 4 ? code : refuse(r, key, "4", "another number");
}

static int read_awq(const struct reader *r, struct model *model) {
    const char *version = "gemm";
    bool zero_point = true;
    int code = config_read_four_bits(r, "bits");
    if (!code) code = may_string(r, "version", &version);
    if (!code && strcmp(version, "gemm") && strcmp(version, "GEMM")) code = refuse(r, "version", "gemm", version);
    if (!code) code = may_bool(r, "zero_point", &zero_point);
    if (!code && !zero_point) code = refuse(r, "zero_point", "true", "false");
    model->quant = QUANT_AWQ;
    return code ? code : config_read_group(r, false, model);
}

/* The first version of the format stores zero points less one (GPTQModel, docs of `FORMAT`; AutoGPTQ's kernels add it). */
static int read_gptq(const struct reader *r, struct model *model) {
    const char *format = "gptq", *dtype = "int32";
    bool by_activation = false, is_marlin = false;
    int code = config_read_four_bits(r, "bits");
    if (!code) code = may_bool(r, "desc_act", &by_activation);
    if (!code && by_activation)
        code = refuse(r, "desc_act", "false (columns in their own order: `desc_act` true sorts them by activation)",
                      "true");
    if (!code) code = may_string(r, "format", &format);
    if (!code) code = may_string(r, "checkpoint_format", &format);
    if (!code && strcmp(format, "gptq") && strcmp(format, "gptq_v2"))
        code = refuse(r, "checkpoint_format", "gptq or gptq_v2", format);
    if (!code) code = may_bool(r, "is_marlin_format", &is_marlin);
    if (!code && is_marlin) code = refuse(r, "is_marlin_format", "false", "true");
    if (!code) code = may_string(r, "pack_dtype", &dtype);
    if (!code && strcmp(dtype, "int32")) code = refuse(r, "pack_dtype", "int32", dtype);
    model->quant = QUANT_GPTQ;
    model->quant_zero_bias = !strcmp(format, "gptq");
    return code ? code : config_read_group(r, true, model);
}

/* Intel's quantizer writes the tensors of others. */
static int read_auto_round(const struct reader *r, struct model *model) {
    static const char gptq[] = "auto_round:auto_gptq", awq[] = "auto_round:auto_awq";
    const char *packing = "none", *type = "int";
    int code = may_string(r, "packing_format", &packing);
    if (!code) code = may_string(r, "data_type", &type);
    if (!code && strcmp(type, "int")) code = refuse(r, "data_type", "int", type);
    if (code) return code;
    if (!strcmp(packing, gptq)) return read_gptq(r, model);
    if (!strcmp(packing, awq)) return read_awq(r, model);
    return refuse(r, "packing_format", "auto_round:auto_gptq or auto_round:auto_awq", packing);
}

/* SGLang's INT8: a scale for each block of weights (Meituan's DeepSeek-R1-Block-INT8), or for each row. */
static int read_int8(const struct reader *r, bool is_by_block, struct model *model) {
    const json_t *block = json_object_get(r->object, "weight_block_size");
    model->quant = QUANT_INT8;
    if (!is_by_block) return 0;
    if (block) return config_read_block_size(r, block, model);
    return refuse(r, "weight_block_size", "[128, 128] or [32, 32]", "nothing");
}

/* Our own: the tensors' types and shapes say the rest. */
static int read_moebius(const struct reader *r, struct model *model) {
    const json_t *block = json_object_get(r->object, "weight_block_size");
    model->quant = QUANT_MOEBIUS;
    model->quant_block[0] = model->quant_block[1] = 128;
    int code = may_bool(r, "synthetic", &model->synthetic);
    return code || !block ? code : config_read_block_size(r, block, model);
}

/* Some write it into the part that it is about. What `quantize` and `synth` write stands outside, and counts before that. */
int config_read_quantization(const struct reader *config, struct model *model) {
    const json_t *quantization = json_object_get(config->object, "quantization_config");
    if (!quantization && config_is_csa2(model))
        quantization = json_object_get(json_object_get(config->object, "text_config"), "quantization_config");
    if (!quantization || json_is_null(quantization)) return 0;
    char where[512];
    snprintf(where, sizeof where, "%s: quantization_config", config->where);
    struct reader r = {quantization, where, config->error};
    const char *method = NULL;
    int code = json_get_string(quantization, "quant_method", JSON_REQUIRED_KEY, where, &method, r.error);
    if (code) return code;
    if (!strcmp(method, "fp8")) return read_fp8(&r, model);
    if (!strcmp(method, "awq")) return read_awq(&r, model);
    if (!strcmp(method, "gptq")) return read_gptq(&r, model);
    if (!strcmp(method, "auto-round")) return read_auto_round(&r, model);
    if (!strcmp(method, "compressed-tensors")) return config_read_compressed_tensors(&r, model);
    if (!strcmp(method, "blockwise_int8")) return read_int8(&r, true, model);
    if (!strcmp(method, "w8a8_int8")) return read_int8(&r, false, model);
    if (!strcmp(method, "moebius")) return read_moebius(&r, model);
    return refuse(&r, "quant_method",
                  "fp8, compressed-tensors, awq, gptq, auto-round, blockwise_int8, w8a8_int8 or moebius", method);
}
