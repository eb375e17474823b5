#include "cmd/serve/words.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"

/* --- what means something ------------------------------------------------------------------------ */

int words_flags(struct words_flags *given, struct cli_flag flags[WORDS_MEANT_MAX]) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "--ctx-size,-c", .type = CLI_INT, .target = &given->context, .max = INT_MAX, .value = "N",
         .help = "as --max-model-len; 0: what the model has, or what fits"},
        {.names = "--gpu-layers,--n-gpu-layers,-ngl", .type = CLI_STRING, .target = &given->gpu_layers, .value = "N",
         .help = "layers on the card of --device cuda: it takes all of them (\"all\", 99)\nor, with 0, none"},
        {.names = "--split-mode,-sm", .type = CLI_CHOICE, .target = &given->only, .choices = "layer|none",
         .help = "several cards share layers; --device says which"},
        {.names = "--scheduling-policy", .type = CLI_CHOICE, .target = &given->only, .choices = "fcfs",
         .help = "who comes first is served first"},
        {.names = "--task,--runner", .type = CLI_CHOICE, .target = &given->only, .choices = "auto|generate", .help = "text is generated"},
    };
    /* clang-format on */
    static_assert(sizeof table / sizeof *table <= WORDS_MEANT_MAX, "room for all");
    memcpy(flags, table, sizeof table);
    return (int)(sizeof table / sizeof *table);
}

static bool is_card(const struct engine_options *engine) {
    return engine->device && !strncmp(engine->device, "cuda", 4);
}

/* How many layers: -1 if nothing is said, INT_MAX for all; false if it is no number. */
static bool read_layers(const char *text, int *n) {
    char *end;
    *n = -1;
    if (!text || !strcmp(text, "auto")) return true;
    *n = INT_MAX;
    if (!strcmp(text, "all")) return true;
    long number = strtol(text, &end, 10);
    if (end == text || *end || number > INT_MAX) return false;
    *n = number < 0 ? -1 : (int)number; /* llama.cpp's -1 is "auto", too */
    return true;
}

int words_flags_settle(const struct words_flags *given, struct engine_options *engine, struct mo_error *error) {
    int layers;
    if (given->context > 0) engine->max_model_len = given->context;
    if (!read_layers(given->gpu_layers, &layers)) {
        return mo_error_set(error, MO_E_INVALID, "--gpu-layers: expected a number, \"all\" or \"auto\", found \"%s\"",
                            given->gpu_layers);
    }
    if (layers == 0 && is_card(engine)) {
        return mo_error_set(error, MO_E_INVALID, "--gpu-layers 0 and --device %s exclude each other", engine->device);
    }
    if (layers == 0) engine->device = "cpu";
    if (layers > 0 && !is_card(engine))
        log_info("--gpu-layers %s: a card is taken with --device cuda", given->gpu_layers);
    return 0;
}

int words_flags_check(const struct words_flags *given, const struct engine_options *engine, const struct model *model,
                      struct mo_error *error) {
    int layers;
    if (!read_layers(given->gpu_layers, &layers) || layers < 0 || layers >= model->layers || !is_card(engine)) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "--gpu-layers %d: a card takes all %d layers; --n-cpu-moe N leaves the experts of N layers to "
                        "the CPU, --tensor-split shares layers among cards",
                        layers, model->layers);
}

/* --- all others ---------------------------------------------------------------------------------- */

struct word {
    const char *names, *why;
    const char *choices; /* of a flag whose value may be left out */
};

/* clang-format off */
static const struct word VLLM_NOTHING[] = {
    {"--trust-remote-code", "nothing to trust: no code of the model is ever run", NULL},
    {"--enable-chunked-prefill,--enable-auto-tool-choice,--enable-prompt-tokens-details", "always on", NULL},
    {"--enable-request-id-headers,--enable-tokenizer-info-endpoint", "always on", NULL},
    {"--enable-prefix-caching", "on unless switched off", NULL},
    {"--enforce-eager", "there are no graphs to capture", NULL},
    {"--disable-log-requests,--no-enable-log-requests,--disable-uvicorn-access-log", "requests are never logged", NULL},
    {"--disable-log-stats,--enable-server-load-tracking", "numbers are at /metrics only", NULL},
    {"--disable-custom-all-reduce", "nothing to reduce: cards share the layers", NULL},
    {"--enable-expert-parallel,--enable-eplb", "a layer's experts are all on one device", NULL},
    {"--enable-reasoning", "on where the chat template has thoughts", NULL},
    {"--async-scheduling,--no-async-scheduling", "steps overlap where the device picks tokens", NULL},
    {"--disable-fastapi-docs", "there are none", NULL},
    {"--language-model-only", "text is all there is", NULL},
    {"--calculate-kv-scales", "a cache of fp8 brings its scales", NULL},
    {"--disable-hybrid-kv-cache-manager,--disable-cascade-attn", "there is no such thing to switch off", NULL},
};

static const struct word VLLM_NOTHING_VALUE[] = {
    {"--tool-call-parser", "calls are read as the chat template's family writes them", NULL},
    {"--reasoning-parser", "thoughts are split off where the chat template has them", NULL},
    {"--chat-template-content-format", "a message's content may be a text or a list of parts", NULL},
    {"--swap-space,--preemption-mode", "no swap: a sequence that has to wait is computed again", NULL},
    {"--cpu-offload-gb", "weights are mapped from their files, in this machine's memory", NULL},
    {"--block-size", "pages have 64 tokens", NULL},
    {"--seed,-s", "a request without a seed gets a random one", NULL},
    {"--load-format,--safetensors-load-strategy", "the checkpoint's files are read as they are", NULL},
    {"--tokenizer-mode,--model-impl", "there is one", NULL},
    {"--distributed-executor-backend", "one process does everything, or those of an mpirun share experts", NULL},
    {"--max-seq-len-to-capture,--cuda-graph-sizes,--max-cudagraph-capture-size", "there are no graphs to capture", NULL},
    {"--compilation-config,--optimization-level", "nothing is compiled at start", NULL},
    {"--attention-backend,--moe-backend,--all2all-backend", "kernels are chosen at start, for processor and card", NULL},
    {"--guided-decoding-backend,--structured-outputs-config", "grammars are this engine's own", NULL},
    {"--limit-mm-per-prompt,--mm-processor-kwargs", "text is all there is", NULL},
    {"--num-scheduler-steps,--stream-interval", "tokens are sent with the step that made them", NULL},
    {"--max-num-partial-prefills,--max-long-partial-prefills,--long-prefill-token-threshold", "the oldest prompt always advances", NULL},
    {"--prefix-caching-hash-algo", "tokens are compared, not hashes alone", NULL},
    {"--uvicorn-log-level,--log-config-file,--max-log-len", "requests are never logged", NULL},
    {"--api-server-count,--threads-http", "one thread speaks HTTP", NULL},
    {"--shutdown-timeout", "SIGTERM waits for running answers; once more ends them", NULL},
    {"--allowed-methods,--allowed-headers,--cors-methods,--cors-headers", "pages of --allowed-origins may use all that there is", NULL},
};

static const struct word VLLM_REFUSED[] = {
    {"--no-enable-chunked-prefill", "prompts are always computed in chunks", NULL},
    {"--enable-log-requests,--enable-log-outputs", "requests are never logged: they are their users' own", NULL},
    {"--allow-credentials,--cors-credentials", "keys come in headers, never in cookies", NULL},
    {"--enable-lora", "there are no adapters here", NULL},
    {"--trust-request-chat-template", "chat templates are known by name: --chat-template", NULL},
    {"--enable-sleep-mode", "weights stay where they are while the server runs", NULL},
    {"--headless", "one process serves; those of an mpirun share experts", NULL},
};

static const struct word VLLM_REFUSED_VALUE[] = {
    {"--lora-modules,--lora,--lora-scaled,--control-vector", "there are no adapters here", NULL},
    {"--kv-transfer-config,--kv-offloading-size,--slot-save-path", "a cache that outlives the memory is --prefix-cache-dir", NULL},
    {"--kv-cache-memory-bytes,--num-gpu-blocks-override", "--gpu-memory-utilization says what weights and cache may take", NULL},
    {"--rope-scaling,--rope-scale,--rope-freq-base,--rope-freq-scale", "the model is run as its config.json says: --hf-overrides", NULL},
    {"--tokenizer-revision,--code-revision", "the tokenizer is the model's: --revision", NULL},
    {"--config", "flags are given on the command line", NULL},
    {"--middleware,--tool-parser-plugin,--reasoning-parser-plugin,--logits-processors", "no Python runs here", NULL},
    {"--tool-server,--tools,--mcp-servers-config", "functions are called by clients, never here", NULL},
    {"--response-role", "an answer's role is assistant", NULL},
    {"--otlp-traces-endpoint", "numbers are at /metrics only", NULL},
    {"--speculative-model,--model-draft,-md", "guesses come from the text itself: --draft-max", NULL},
};

static const struct word LLAMA_NOTHING[] = {
    {"--flash-attn,-fa", "attention is computed so in any case", "on|off|auto"},
    {"--fit,-fit", "what does not fit is refused with the numbers", "on|off"},
    {"--jinja", "chat templates are known here, functions included", NULL},
    {"--mlock,--mmap,--no-mmap,--direct-io,-dio", "weights are mapped from their files, and stay while they are used", NULL},
    {"--cont-batching,-cb,--metrics,--props,--slots", "always on", NULL},
    {"--cache-prompt", "on unless switched off", NULL},
    {"--kv-unified,-kvu", "one cache is for all", NULL},
    {"--repack,--op-offload,--webui,--ui", "on unless switched off", NULL},
    {"--warmup,--no-warmup", "kernels are tried at start (--no-self-test leaves it out)", NULL},
    {"--no-context-shift", "an answer ends where the context does", NULL},
    {"--no-mmproj,--swa-full", "there is none here", NULL},
    {"--check-tensors", "`moebius info --verify` looks at every byte", NULL},
    {"--log-disable,--log-prefix,--log-timestamps,--perf,--no-perf,--verbose,-v", "the log is a few lines at start, and warnings", NULL},
};

static const struct word LLAMA_NOTHING_VALUE[] = {
    {"--ubatch-size,-ub", "--batch-size says how many tokens a step computes", NULL},
    {"--threads-batch,-tb", "--threads is for prompts and answers alike", NULL},
    {"--load-mode,-lm", "weights are mapped from their files, and stay while they are used", NULL},
    {"--prio,--prio-batch,--poll,--poll-batch", "threads wait as this engine has it", NULL},
    {"--cache-ram,-cram", "earlier prompts stay in the cache itself", NULL},
    {"--cache-reuse", "what is found again are beginnings", NULL},
    {"--slot-prompt-similarity,-sps", "every place sees the same cache", NULL},
    {"--keep", "nothing is shifted out of a context", NULL},
    {"--repeat-last-n", "penalties look at the whole text, unless a request says otherwise", NULL},
    {"--draft-min,--draft-n-min,--draft-p-min", "guesses grow while they are right, and shrink when not", NULL},
    {"--defrag-thold,-dt", "pages have no order to mend", NULL},
    {"--sse-ping-interval", "a silent stream gives a sign of life every 15 s", NULL},
    {"--verbosity,-lv,--log-verbosity,--log-colors", "the log is a few lines at start, and warnings", NULL},
};

static const struct word LLAMA_REFUSED[] = {
    {"--no-cont-batching,-nocb", "requests share steps; --max-num-seqs 1 takes one after the other", NULL},
    {"--no-slots", "--api-key says who may look", NULL},
    {"--no-jinja", "chat templates are part of this program", NULL},
    {"--context-shift", "an answer ends where the context does", NULL},
    {"--embedding,--embeddings,--reranking,--rerank", "text is generated here, and nothing else", NULL},
    {"--no-kv-offload,-nkvo", "the cache lies with its layers", NULL},
    {"--ignore-eos,--special,-sp,--spm-infill", "that is a request's to say, where there is such a thing", NULL},
    {"--agent,-ag", "functions are called by clients, never here", NULL},
};

static const struct word LLAMA_REFUSED_VALUE[] = {
    {"--cache-type-k,-ctk,--cache-type-v,-ctv", "keys and values are one row: --kv-cache-dtype f32, bf16 or fp8", NULL},
    {"--override-tensor,-ot", "--cpu-moe and --n-cpu-moe N say whose experts the CPU computes", NULL},
    {"--main-gpu,-mg", "--device cuda:N names the card", NULL},
    {"--rpc", "several machines share experts by mpirun", NULL},
    {"--mmproj,-mm,--mmproj-url", "text is all there is", NULL},
    {"--pooling", "text is generated here, and nothing else", NULL},
    {"--samplers,--sampler-seq,--sampling-seq", "the order is: penalties, temperature, min-p, top-k, top-p", NULL},
    {"--mirostat,--typical,--top-nsigma,--xtc-probability,--dry-multiplier,--dynatemp-range", "there is no such sampler here", NULL},
    {"--logit-bias,-l,--grammar,--grammar-file,--json-schema,-j", "a request brings its own", NULL},
    {"--chat-template-file", "chat templates are known by name: --chat-template", NULL},
    {"--log-file", "the log goes to standard error", NULL},
    {"--path,--media-path", "no files are served", NULL},
    {"--models-dir,--models-preset", "one server has one model", NULL},
    {"--lookup-cache-static,-lcs,--lookup-cache-dynamic,-lcd", "guesses come from the text itself: --draft-max", NULL},
    {"--model-url,-mu,--docker-repo,-dr", "`moebius pull` brings models from the Hugging Face hub", NULL},
};
/* clang-format on */

static int add_words(const struct word *words, size_t bytes, enum cli_type type, struct cli_flag *out) {
    int n = (int)(bytes / sizeof *words);
    for (int i = 0; i < n; i++) {
        out[i] =
            (struct cli_flag){.names = words[i].names, .type = type, .help = words[i].why, .choices = words[i].choices};
    }
    return n;
}

int words_flags_other(struct cli_flag flags[WORDS_OTHER_MAX]) {
    int n = add_words(VLLM_NOTHING, sizeof VLLM_NOTHING, CLI_IGNORED_FLAG, flags);
    n += add_words(VLLM_NOTHING_VALUE, sizeof VLLM_NOTHING_VALUE, CLI_IGNORED, flags + n);
    n += add_words(VLLM_REFUSED, sizeof VLLM_REFUSED, CLI_REFUSED_FLAG, flags + n);
    n += add_words(VLLM_REFUSED_VALUE, sizeof VLLM_REFUSED_VALUE, CLI_REFUSED, flags + n);
    flags[n++] = (struct cli_flag){.names = "llama-server's flags", .type = CLI_HEADING};
    n += add_words(LLAMA_NOTHING, sizeof LLAMA_NOTHING, CLI_IGNORED_FLAG, flags + n);
    n += add_words(LLAMA_NOTHING_VALUE, sizeof LLAMA_NOTHING_VALUE, CLI_IGNORED, flags + n);
    n += add_words(LLAMA_REFUSED, sizeof LLAMA_REFUSED, CLI_REFUSED_FLAG, flags + n);
    n += add_words(LLAMA_REFUSED_VALUE, sizeof LLAMA_REFUSED_VALUE, CLI_REFUSED, flags + n);
    assert(n < WORDS_OTHER_MAX);
    return n;
}
