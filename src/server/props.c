#include "server/props.h"

#include "server/api/parts.h"
#include "server/put.h"
#include "server/respond/llama.h"

static json_t *token_text(const struct tokenizer *tokenizer, int32_t id) {
    size_t size = 0;
    const char *bytes = id >= 0 ? tokenizer_token_bytes(tokenizer, id, &size) : NULL;
    return json_stringn(bytes ? bytes : "", size);
}

/* generation_settings of a request that says nothing. */
static json_t *default_settings(const struct server *server, const struct engine *engine) {
    struct api_request request = {.kind = API_LLAMA,
                                  .model = server->options.names[0],
                                  .n_predict = engine->defaults.max_tokens > 0 ? engine->defaults.max_tokens : -1,
                                  .context = engine->options.max_model_len,
                                  .sched.n_logprobs = -1};
    engine_sampling(engine, &request.sched.sampling);
    api_llama_defaults(engine, &request.sched.sampling);
    request.sched.sampling.seed = UINT32_MAX; /* llama.cpp's for a random one */
    return respond_llama_settings(&request);
}

static const char *jinja(const struct engine *engine) {
    const char *text = engine->tokenizer ? tokenizer_chat_template(engine->tokenizer) : NULL;
    return text ? text : "";
}

/* What the paths under /v1 take where a request says nothing: llama.cpp's own paths have other values. */
static json_t *chat_defaults(const struct engine *engine) {
    struct sampling sampling;
    engine_sampling(engine, &sampling);
    return json_pack("{s:o, s:o, s:o, s:i}", "temperature", put_number((double)sampling.temperature), "top_p",
                     put_number((double)sampling.top_p), "min_p", put_number((double)sampling.min_p), "top_k",
                     sampling.top_k);
}

json_t *props_json(const struct server *server) {
    const struct engine *engine = atomic_load(&server->engine);
    const struct tokenizer *tokenizer = engine->tokenizer;
    const char *name = server->options.names[0]; /* not the path: that is nobody's business */
    return json_pack("{s:{s:i, s:o}, s:o, s:i, s:i, s:s, s:s, s:s, s:o, s:o, s:{s:b, s:b}, s:s, s:b}",
                     "default_generation_settings", "n_ctx", engine->options.max_model_len, "params",
                     default_settings(server, engine), "openai_defaults", chat_defaults(engine), "n_ctx",
                     engine->options.max_model_len, "total_slots", engine->options.max_num_seqs, "model_alias", name,
                     "model_path", name, "chat_template", jinja(engine), "bos_token",
                     token_text(tokenizer, tokenizer ? tokenizer_bos(tokenizer) : -1), "eos_token",
                     token_text(tokenizer, tokenizer ? tokenizer_eos(tokenizer) : -1), "modalities", "vision", 0,
                     "audio", 0, "build_info", "moebius-" MOEBIUS_VERSION, "is_sleeping", 0);
}

/* A special token's text, or null. */
static json_t *name_or_null(const struct tokenizer *tokenizer, int32_t id) {
    return id >= 0 ? token_text(tokenizer, id) : json_null();
}

json_t *props_tokenizer_json(const struct server *server) {
    const struct engine *engine = atomic_load(&server->engine);
    const struct tokenizer *tokenizer = engine->tokenizer;
    return json_pack(
        "{s:o, s:o, s:b, s:s?, s:i}", "bos_token", name_or_null(tokenizer, tokenizer ? tokenizer_bos(tokenizer) : -1),
        "eos_token", name_or_null(tokenizer, tokenizer ? tokenizer_eos(tokenizer) : -1), "add_bos_token",
        tokenizer && tokenizer_adds_bos(tokenizer), "chat_template",
        tokenizer ? tokenizer_chat_template(tokenizer) : NULL, "model_max_length", engine->options.max_model_len);
}

static int running(const struct engine *engine) {
    struct sched_stats stats;
    sched_stats_get(engine->sched, &stats);
    return stats.n_running;
}

int slots_idle(const struct server *server) {
    const struct engine *engine = atomic_load(&server->engine);
    return engine->options.max_num_seqs - running(engine);
}

json_t *slots_json(const struct server *server) {
    const struct engine *engine = atomic_load(&server->engine);
    int n_running = running(engine);
    json_t *list = json_array();
    for (int i = 0; i < engine->options.max_num_seqs; i++) {
        json_array_append_new(list, json_pack("{s:i, s:i, s:b, s:b}", "id", i, "n_ctx", engine->options.max_model_len,
                                              "speculative", 0, "is_processing", i < n_running));
    }
    return list;
}
