/* The description of a model: what config.json says, YaRN's numbers, parameter counts of the published models. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "model/model.h"

#define COMMON                                                                                                         \
    "\"max_position_embeddings\": 163840, \"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, "                          \
    "\"qk_rope_head_dim\": 64, \"v_head_dim\": 128, \"hidden_act\": \"silu\", \"rope_theta\": 10000, "
#define YARN(mscale)                                                                                                   \
    "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, \"beta_fast\": 32, \"beta_slow\": 1, "                     \
    "\"mscale\": " mscale ", \"mscale_all_dim\": " mscale ", \"original_max_position_embeddings\": 4096}"

static const char lite[] =
    "{\"architectures\": [\"DeepseekV2ForCausalLM\"], " COMMON "\"num_hidden_layers\": 27, \"hidden_size\": 2048, "
    "\"num_attention_heads\": 16, \"vocab_size\": 102400, \"intermediate_size\": 10944, \"moe_intermediate_size\": "
    "1408, "
    "\"n_routed_experts\": 64, \"num_experts_per_tok\": 6, \"n_shared_experts\": 2, \"first_k_dense_replace\": 1, "
    "\"q_lora_rank\": null, \"topk_method\": \"greedy\", \"scoring_func\": \"softmax\", \"n_group\": 1, "
    "\"topk_group\": 1, " YARN("0.707") "}";

static const char v3[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], " COMMON "\"num_hidden_layers\": 61, \"hidden_size\": 7168, "
    "\"num_attention_heads\": 128, \"vocab_size\": 129280, \"intermediate_size\": 18432, \"moe_intermediate_size\": "
    "2048, "
    "\"n_routed_experts\": 256, \"num_experts_per_tok\": 8, \"n_shared_experts\": 1, \"first_k_dense_replace\": 3, "
    "\"q_lora_rank\": 1536, \"topk_method\": \"noaux_tc\", \"scoring_func\": \"sigmoid\", \"n_group\": 8, "
    "\"topk_group\": 4, "
    "\"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5, \"num_nextn_predict_layers\": 1, " YARN("1.0") "}";

static void parse(struct model *model, const char *json) {
    struct mo_error error = {0};
    int code = model_parse(model, json, strlen(json), "config.json", &error);
    if (code) fail_msg("%s", error.message);
}

/* `json` with the first occurrence of `from` replaced by `to` must be refused with a message that holds `word`. */
static void refused(const char *json, const char *from, const char *to, const char *word) {
    char text[4096];
    const char *at = strstr(json, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    struct model model;
    struct mo_error error = {0};
    assert_true(model_parse(&model, text, strlen(text), "config.json", &error) < 0);
    if (!strstr(error.message, word) || !strstr(error.message, "config.json")) fail_msg("%s: %s", to, error.message);
}

static void test_kinds(void **state) {
    (void)state;
    struct model m;
    parse(&m, lite);
    assert_int_equal(m.q_kind, Q_DIRECT);
    assert_int_equal(m.gate_kind, GATE_SOFTMAX_GREEDY);
    assert_int_equal(m.dense_layers, 1);
    assert_int_equal(model_latent_dim(&m), 576);
    parse(&m, v3);
    assert_int_equal(m.q_kind, Q_LOW_RANK);
    assert_int_equal(m.gate_kind, GATE_SIGMOID_GROUPED);
    assert_true(m.norm_topk);
    assert_int_equal(m.mtp_layers, 1);
}

/* DeepSeek-V2 paper, appendix B, and the V3 report: 15.7 B with 2.4 B active, 671 B with 37 B active. */
static void test_parameter_counts(void **state) {
    (void)state;
    struct model m;
    struct model_params p;
    parse(&m, lite);
    model_count_params(&m, &p);
    assert_true(llabs(p.total - 15706484224) < 1000000);
    assert_true(llabs(p.active - 2451000000) < 5000000);
    assert_int_equal(p.embedding, 102400LL * 2048);
    parse(&m, v3);
    model_count_params(&m, &p);
    assert_true(llabs(p.total - 671026000000) < 10000000);
    assert_true(llabs(p.active - 36620000000) < 10000000);
}

static void test_softmax_scale(void **state) {
    (void)state;
    struct model m;
    parse(&m, lite);
    double magnitude = 0.1 * 0.707 * log(40) + 1;
    assert_true(fabs(model_softmax_scale(&m) - magnitude * magnitude / sqrt(192)) < 1e-12);
    assert_true(fabs(model_softmax_scale(&m) * sqrt(192) - 1.5896) < 1e-3);
    parse(&m, v3);
    assert_true(fabs(model_softmax_scale(&m) - pow(0.1 * log(40) + 1, 2) / sqrt(192)) < 1e-12);
}

static void test_rope_magnitude(void **state) {
    (void)state;
    struct model m;
    parse(&m, lite);
    assert_true(model_rope_magnitude(&m) == 1.0);
    m.rope.mscale = 1.0; /* no published model: the two differ */
    assert_true(fabs(model_rope_magnitude(&m) - (0.1 * log(40) + 1) / (0.1 * 0.707 * log(40) + 1)) < 1e-12);
    m.rope.kind = ROPE_PLAIN;
    assert_true(model_rope_magnitude(&m) == 1.0);
}

/* Against the tables of DeepSeek's reference code. */
static void test_yarn_frequencies(void **state) {
    (void)state;
    struct mo_error error = {0};
    json_t *table;
    if (json_parse_file("tests/golden/data/yarn/yarn.json", 1 << 22, &table, &error)) fail_msg("%s", error.message);
    struct model m;
    double frequency[32];
    parse(&m, lite);
    model_rope_frequencies(&m, &m.rope, frequency);
    const json_t *expected = json_object_get(table, "inv_freq_f32"),
                 *plain = json_object_get(table, "inv_freq_plain_f64");
    assert_int_equal(json_array_size(expected), 32);
    for (size_t i = 0; i < 32; i++) {
        double want = json_number_value(json_array_get(expected, i));
        assert_true(fabs(frequency[i] - want) <= 2e-7 * want);
    }
    m.rope.kind = ROPE_PLAIN;
    model_rope_frequencies(&m, &m.rope, frequency);
    for (size_t i = 0; i < 32; i++) {
        double want = json_number_value(json_array_get(plain, i));
        assert_true(fabs(frequency[i] - want) <= 1e-12 * want);
    }
    const json_t *scales = json_object_get(table, "softmax_scale");
    const char *name;
    json_t *scale;
    int known = 0;
    json_object_foreach((json_t *)scales, name, scale) {
        struct model other;
        parse(&other, strstr(name, "ite") ? lite : v3);
        known += fabs(model_softmax_scale(&other) - json_number_value(json_object_get(scale, "softmax_scale"))) < 1e-6;
    }
    assert_int_equal(known, (int)json_object_size(scales));
    json_decref(table);
}

static void test_refusals(void **state) {
    (void)state;
    refused(lite, "DeepseekV2ForCausalLM", "LlamaForCausalLM", "LlamaForCausalLM");
    refused(lite, "\"num_hidden_layers\": 27", "\"num_hidden_layers\": 2147483648", "num_hidden_layers");
    refused(lite, "\"num_attention_heads\": 16", "\"num_attention_heads\": 0", "num_attention_heads");
    refused(lite, "\"hidden_size\": 2048", "\"hidden_size\": \"2048\"", "hidden_size");
    refused(lite, "\"hidden_size\": 2048, ", "", "hidden_size");
    refused(lite, "\"hidden_size\": 2048", "\"hidden_size\": 2048, \"hidden_size\": 2048", "JSON");
    refused(lite, "\"type\": \"yarn\"", "\"type\": \"longrope\"", "longrope");
    refused(lite, "\"softmax\"", "\"tanh\"", "tanh");
    refused(lite, "\"greedy\"", "\"lottery\"", "lottery");
    refused(lite, "\"silu\"", "\"gelu\"", "gelu");
    refused(lite, "\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 1, \"moe_layer_freq\": 2",
            "moe_layer_freq");
    refused(lite, "\"num_experts_per_tok\": 6", "\"num_experts_per_tok\": 65", "num_experts_per_tok");
    refused(lite, "\"q_lora_rank\": null", "\"quantization_config\": {\"quant_method\": \"gguf\"}", "gguf");
    refused(lite, "\"q_lora_rank\": null",
            "\"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 3, \"group_size\": 64}", "bits");
    refused(lite, "\"q_lora_rank\": null",
            "\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [64, 64]}",
            "weight_block_size");
    refused(lite, "\"rope_theta\": 10000", "\"rope_parameters\": {\"rope_theta\": 10000}", "rope_parameters");
    refused(lite, "\"rope_theta\": 10000", "\"rope_interleave\": false", "rope_interleave");
    refused(lite, "\"rope_theta\": 10000", "\"num_key_value_heads\": 2", "num_key_value_heads");
    refused(v3, "\"norm_topk_prob\": true, ", "", "norm_topk_prob");
    refused(v3, "\"routed_scaling_factor\": 2.5, ", "", "routed_scaling_factor");
    refused(v3, "\"n_group\": 8", "\"n_group\": 7", "n_group");
    refused(v3, "\"topk_group\": 4", "\"topk_group\": 9", "topk_group");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_parameter_counts),
        cmocka_unit_test(test_softmax_scale),
        cmocka_unit_test(test_rope_magnitude),
        cmocka_unit_test(test_yarn_frequencies),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
