/* server/ollama_show.c - what a model is, in Ollama's words. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "server/ollama.h"
#include "server/respond/ollama.h"
#include "text/fim.h"

/* As Ollama and llama.cpp call V2, V3 and R1 alike, and V4. V4.1 has no name there yet. */
static const char *family_of(const struct model *model) {
    if (model_is_csa2(model)) return "deepseek41";
    return model_is_hybrid(model) ? "deepseek4" : "deepseek2";
}

/* --- details ------------------------------------------------------------------------------------- */

/* "15.7B" */
static json_t *size_json(int64_t n) {
    static const struct {
        double one;
        const char *unit;
    } UNITS[] = {{1e9, "B"}, {1e6, "M"}, {1e3, "K"}};
    for (size_t i = 0; i < sizeof UNITS / sizeof *UNITS; i++) {
        if ((double)n >= UNITS[i].one) return json_sprintf("%.1f%s", (double)n / UNITS[i].one, UNITS[i].unit);
    }
    return json_sprintf("%lld", (long long)n);
}

/* The format of the routed experts, which are nearly all of the bytes. */
static json_t *level_json(const struct engine *engine) {
    const struct model *model = &engine->model;
    const struct layer *last = &engine->weights.layers[model->layers - 1];
    bool is_dense = model_layer_is_dense(model, model->layers - 1);
    char name[32];
    snprintf(name, sizeof name, "%s",
             mat_format_name(is_dense ? last->dense.gate.format : last->experts[0].gate.format));
    for (char *c = name; *c; c++) *c = (char)toupper((unsigned char)*c);
    return json_string(name);
}

json_t *ollama_details_json(const struct engine *engine) {
    const char *family = family_of(&engine->model);
    struct model_params params;
    model_count_params(&engine->model, &params);
    return json_pack("{s:s, s:s, s:s, s:[s], s:o, s:o}", "parent_model", "", "format",
                     engine->checkpoint.gguf ? "gguf" : "safetensors", "family", family, "families", family,
                     "parameter_size", size_json(params.total), "quantization_level", level_json(engine));
}

/* --- numbers ------------------------------------------------------------------------------------- */

/* "deepseek2.block_count" */
static void put(json_t *info, const struct model *model, const char *key, json_t *value) {
    char name[96];
    snprintf(name, sizeof name, "%s.%s", family_of(model), key);
    json_object_set_new(info, name, value);
}

/* The context is the server's: what clients measure their prompts by. */
static void put_sizes(json_t *info, const struct engine *engine) {
    const struct model *m = &engine->model;
    const bool is_hybrid = model_is_hybrid(m);
    put(info, m, "block_count", json_integer(m->layers));
    put(info, m, "context_length", json_integer(engine->options.max_model_len));
    put(info, m, "embedding_length", json_integer(m->hidden));
    put(info, m, "feed_forward_length", json_integer(m->dense_width));
    put(info, m, "attention.head_count", json_integer(m->heads));
    put(info, m, is_hybrid ? "attention.key_length" : "attention.kv_lora_rank",
        json_integer(is_hybrid ? m->v_dim : m->kv_lora));
    put(info, m, "attention.layer_norm_rms_epsilon", json_real(m->norm_eps));
    put(info, m, "expert_count", json_integer(m->experts));
    put(info, m, "expert_used_count", json_integer(m->top_k));
    put(info, m, "expert_shared_count", json_integer(m->shared_experts));
    put(info, m, "expert_feed_forward_length", json_integer(m->expert_width));
    put(info, m, "leading_dense_block_count", json_integer(m->dense_layers));
    put(info, m, "rope.dimension_count", json_integer(m->rope_dim));
    put(info, m, "rope.freq_base", json_real(m->rope.theta));
    put(info, m, "vocab_size", json_integer(m->vocab));
}

static json_t *info_json(const struct engine *engine, const char *name) {
    struct model_params params;
    model_count_params(&engine->model, &params);
    const char *jinja = engine->tokenizer ? tokenizer_chat_template(engine->tokenizer) : NULL;
    int bos = engine->tokenizer ? tokenizer_bos(engine->tokenizer) : engine->model.bos;
    json_t *info = json_pack("{s:s, s:s, s:o, s:I}", "general.architecture", family_of(&engine->model), "general.type",
                             "model", "general.basename", json_stringn(name, strcspn(name, ":")),
                             "general.parameter_count", (json_int_t)params.total);
    put_sizes(info, engine);
    json_t *tokens = json_pack("{s:s, s:i, s:i, s:s*}", "tokenizer.ggml.model", "gpt2", "tokenizer.ggml.bos_token_id",
                               bos, "tokenizer.ggml.eos_token_id", engine->n_eos > 0 ? (int)engine->eos[0] : -1,
                               "tokenizer.chat_template", jinja);
    json_object_update(info, tokens);
    json_decref(tokens);
    return info;
}

/* --- the template -------------------------------------------------------------------------------- */

/* The model's own template around Ollama's variables in the messages' place. */
static void add_chat(const struct engine *engine, struct buffer *out) {
    struct chat_prompt prompt = {0};
    json_t *messages = json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "system", "content", "{{ .System }}", "role",
                                 "user", "content", "{{ .Prompt }}");
    int code = chat_render(engine->chat, messages, true, NULL,
                           tokenizer_token_text(engine->tokenizer, tokenizer_bos(engine->tokenizer)),
                           tokenizer_token_text(engine->tokenizer, tokenizer_eos(engine->tokenizer)), &prompt, NULL);
    if (code)
        out->failed = true;
    else
        buffer_add(out, prompt.text, prompt.size);
    chat_prompt_free(&prompt);
    json_decref(messages);
}

/* In Ollama's language. Clients look for .Suffix in it to know whether a hole can be filled. */
static json_t *template_json(const struct engine *engine) {
    struct buffer text = {0};
    int32_t ids[3];
    bool has_holes = engine->tokenizer && fim_ids(engine->tokenizer, ids) == 3;
    if (has_holes) {
        buffer_printf(&text, "{{ if .Suffix }}%s{{ .Prompt }}", tokenizer_token_text(engine->tokenizer, ids[0]));
        buffer_printf(&text, "%s{{ .Suffix }}%s{{ else }}", tokenizer_token_text(engine->tokenizer, ids[1]),
                      tokenizer_token_text(engine->tokenizer, ids[2]));
    }
    if (engine->tokenizer && engine->chat)
        add_chat(engine, &text);
    else
        buffer_add_text(&text, "{{ .Prompt }}");
    buffer_add_text(&text, has_holes ? "{{ .Response }}{{ end }}" : "{{ .Response }}");
    json_t *json = text.failed ? NULL : json_stringn(text.data, text.size);
    buffer_free(&text);
    return json;
}

/* --- the whole ----------------------------------------------------------------------------------- */

/* Whether a chat can be asked to think aloud first. */
static bool thinks(const struct engine *engine) {
    struct token_list ids = {0};
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "x");
    json_t *kwargs = json_pack("{s:b}", "thinking", 1);
    bool yes = engine->chat && messages && kwargs && !engine_encode_chat(engine, messages, true, kwargs, &ids, NULL) &&
               (chat_template_may_reason(engine->chat) || engine_reasoning_end(engine, &ids) >= 0);
    token_list_free(&ids);
    json_decref(messages);
    json_decref(kwargs);
    return yes;
}

static json_t *capabilities_json(const struct engine *engine) {
    json_t *list = json_pack("[s]", "completion");
    if (engine->tokenizer && fim_supported(engine->tokenizer)) json_array_append_new(list, json_string("insert"));
    if (engine->chat && engine->grammars) json_array_append_new(list, json_string("tools"));
    if (thinks(engine)) json_array_append_new(list, json_string("thinking"));
    return list;
}

json_t *ollama_show_json(const struct engine *engine, const char *name, time_t modified) {
    char time_text[OLLAMA_TIME_BYTES];
    /* no empty line at its end: there are clients that read it line by line and trip */
    json_t *parameters = json_sprintf("%-30s %d", "num_ctx", engine->options.max_model_len);
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:s}", "modelfile", json_sprintf("FROM %s\n", name), "parameters",
                     parameters, "template", template_json(engine), "details", ollama_details_json(engine),
                     "model_info", info_json(engine, name), "capabilities", capabilities_json(engine), "modified_at",
                     ollama_time(time_text, &(struct timespec){.tv_sec = modified}));
}
