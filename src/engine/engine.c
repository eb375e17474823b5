#include "engine/engine.h"

#include "engine/cards.h"
#include "engine/device.h"
#include "engine/disk.h"
#include "engine/experts.h"
#include "engine/fold.h"
#include "engine/numa.h"
#include "engine/offload.h"
#include "engine/plan.h"
#include "engine/ranks.h"
#include "engine/selftest.h"
#include "engine/turn.h"
#include "engine/weights.h"
#include "plan/memory.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/pool.h"
#include "sched/draft.h"

enum {
    MAX_BATCHED_TOKENS = 1 << 16,
    MAX_SEQS = 4096,
    MAX_THREADS = 1024,
    MAX_DRAFT_LOGITS = 64, /* V3's are half a megabyte each */
};

void engine_options_init(struct engine_options *options) {
    *options = (struct engine_options){.memory_utilization = 0.9, .like_seed = 1, .n_cpu_moe = -1};
}

/* What is computed, and where. Each adds its flags to those that are there, and returns how many there are then. */
static size_t add_place_flags(struct engine_options *o, struct cli_flag *flags, size_t n) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "Engine", .type = CLI_HEADING},
        {.names = "--model,-m", .type = CLI_STRING, .target = &o->model, .value = "MODEL",
         .help = "the model, if not given as MODEL: a folder, a file, or org/name at the\nHugging Face hub"},
        {.names = "--device", .type = CLI_STRING, .target = &o->device, .value = "auto|cpu|cuda[:N]",
         .help = "where to compute (default auto); several cards share the layers:\ncuda:0,cuda:1 (cuda alone: as few as hold "
                 "the model)"},
        {.names = "--tensor-split,-ts", .type = CLI_STRING, .target = &o->tensor_split, .value = "N,N,...",
         .help = "how much of the model each card holds, in proportion, in whole\nlayers: 3,1 (default: by their free memory)"},
        {.names = "--pipeline-parallel-size,-pp", .type = CLI_INT, .target = &o->pipeline_parallel, .min = 1, .max = CUDA_PARTS_MAX,
         .value = "N", .help = "with --device cuda, the first N cards, which work one after another:\nfor memory, not for speed"},
        {.names = "--expert-device,--experts", .type = CLI_CHOICE, .target = &o->expert_device, .choices = "auto|gpu|cpu",
         .help = "with --device cuda, where routed experts are computed; cpu: from\nthe machine's memory, where they lie "
                 "(default auto: on the GPU, but\nfor as many layers as do not fit there)"},
        {.names = "--n-cpu-moe,-ncmoe", .type = CLI_INT, .target = &o->n_cpu_moe, .max = 1 << 16, .value = "N",
         .help = "with --device cuda, the routed experts of N layers on the CPU: the\nfirst that have some (llama.cpp's N counts "
                 "layers without, too)"},
        {.names = "--cpu-moe,-cmoe", .type = CLI_FLAG, .target = &o->cpu_moe, .help = "the same as --expert-device cpu"},
        {.names = "--no-op-offload", .type = CLI_FLAG, .target = &o->no_op_offload,
         .help = "the CPU computes those experts in long prompts, too; else they are sent\nto the card for the time of a step"},
        {.names = "--op-offload-min-batch", .type = CLI_INT, .target = &o->op_offload_rows, .min = 1, .max = 1 << 20, .value = "N",
         .help = "tokens of a step from which they are sent (default: from where it\npays, by plan's estimate)"},
        {.names = "--expert-shares", .type = CLI_STRING, .target = &o->expert_shares, .value = "N,N,...",
         .help = "with mpirun -n, how many routed experts each process holds, one to\nanother (default: as many as each other, or "
                 "what there is room for)"},
        {.names = "--expert-cache", .type = CLI_STRING, .target = &o->expert_cache, .value = "GIB",
         .help = "memory for routed experts, the others are read from disk when\nthey are needed; 0: they are mapped "
                 "(default auto: 0 if the model fits\ninto memory, else all that is left)"},
        {.names = "--threads,-t", .type = CLI_INT, .target = &o->threads, .min = 1, .max = MAX_THREADS, .value = "N",
         .help = "threads (default: the processors this process may use)"},
        {.names = "--cpu-strict", .type = CLI_INT, .target = &o->cpu_strict, .max = 1, .value = "0|1",
         .help = "1: each thread stays on a processor of its own, one a core first\n(default 0; other programs then delay every step)"},
        {.names = "--numa", .type = CLI_CHOICE, .target = &o->numa, .choices = "auto|distribute|isolate|numactl",
         .help = "memory nodes (sockets): distribute: threads and pages over all of them;\nisolate: both on one; numactl: as the "
                 "system has it (default auto:\ndistribute, where this process is not bound to anything yet)"},
    };
    /* clang-format on */
    memcpy(flags + n, table, sizeof table);
    return n + sizeof table / sizeof *table;
}

/* How much at once, and how. */
static size_t add_work_flags(struct engine_options *o, struct cli_flag *flags, size_t n) {
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "--max-model-len,--context,--ctx-size,-c", .type = CLI_INT, .target = &o->max_model_len, .min = 1,
         .max = 1 << 26, .value = "N", .help = "longest sequence, prompt and answer\n(default: the model's, or what fits)"},
        {.names = "--max-num-seqs,--seqs,--parallel,-np", .type = CLI_INT, .target = &o->max_num_seqs, .min = 1, .max = MAX_SEQS,
         .value = "N", .help = "sequences that run at once; more wait (default: serve 8, eval 16,\nbench its largest --batch)"},
        {.names = "--max-num-batched-tokens,--batch-size,-b", .type = CLI_INT, .target = &o->max_num_batched_tokens, .min = 1,
         .max = MAX_BATCHED_TOKENS, .value = "N", .help = "tokens computed in one step (default 512; 2048 with a card, or with\nexperts that are read from disk)"},
        {.names = "--draft-max,--draft", .type = CLI_INT, .target = &o->max_drafts, .max = DRAFT_MAX, .value = "N",
         .help = "guess up to N tokens a step where the text repeats itself, and keep\nthose that are right: the same answers, "
                 "sooner for edits and lists\n(default 0: none)"},
        {.names = "--gpu-memory-utilization,--memory-utilization", .type = CLI_DOUBLE, .target = &o->memory_utilization,
         .min = 0.01, .max = 1, .value = "X",
         .help = "share of the memory that weights and cache may take (default 0.9);\non a CPU, of the machine's"},
        {.names = "--kv-cache-dtype,--kv", .type = CLI_CHOICE, .target = &o->kv, .choices = "auto|f32|bf16|fp8",
         .help = "format of the latent cache (default auto: bf16; f32 with\n--compute f32)"},
        {.names = "--quantization,--quant,-q", .type = CLI_STRING, .target = &o->quantization, .value = "Q",
         .help = "int4, fp4, int8, fp8 or bf16: quantize while loading (`moebius quantize`\ndoes it once and for all); "
                 "default auto: as the weights are"},
        {.names = "--compute", .type = CLI_CHOICE, .target = &o->compute, .choices = "fast|f32",
         .help = "fast (default): 8-bit activations for INT4, INT8, FP4, AWQ weights and\nGGUF's blocks; f32: everything in single precision, the yardstick"},
        {.names = "--attention", .type = CLI_CHOICE, .target = &o->attention, .choices = "auto|absorbed|expanded",
         .help = "form of latent attention (default auto: by chunk length)"},
        {.names = "--batch-invariant", .type = CLI_FLAG, .target = &o->batch_invariant,
         .help = "same bits for a sequence whatever runs beside it"},
        {.names = "--chat-template", .type = CLI_STRING, .target = &o->chat_template, .value = "NAME",
         .help = "deepseek-coder-v2, deepseek-v3, deepseek-v3-0324, deepseek-r1,\ndeepseek-r1-0528, deepseek-v3.1, "
                 "deepseek-v3.1-terminus, deepseek-v3.2,\ndeepseek-v4, deepseek-v4-0731, deepseek-v4.1\n(default: recognised from the model)"},
        {.names = "--generation-config", .type = CLI_CHOICE, .target = &o->generation_config, .choices = "auto|none",
         .help = "auto (default): start from the model's own sampling settings"},
        {.names = "--no-repack,-nr", .type = CLI_FLAG, .target = &o->no_repack,
         .help = "use AWQ's words and GGUF's blocks as they lie in the file: ready at once,\nand slower (default: in memory, 16 "
                 "rows side by side, if there is room)"},
        {.names = "--no-self-test", .type = CLI_FLAG, .target = &o->no_self_test,
         .help = "do not compare this machine's kernels (and card) with plain C before\nstarting"},
    };
    /* clang-format on */
    memcpy(flags + n, table, sizeof table);
    return n + sizeof table / sizeof *table;
}

void engine_flags(struct engine_options *o, struct cli_flag flags[ENGINE_FLAGS_MAX]) {
    size_t n = add_work_flags(o, flags, add_place_flags(o, flags, 0));
    n += find_model_flags(&o->hub, &o->model, &o->revision, flags + n);
    n += override_flags_add(&o->overrides, flags + n);
    assert(n < ENGINE_FLAGS_MAX);
    flags[n] = (struct cli_flag){0};
}

/* Rows of logits for the guesses of several sequences: those of the later ones have to wait for room. */
static int logits_for_drafts(const struct engine_options *o) {
    int wanted = o->max_num_seqs * (1 + o->max_drafts), most = o->max_num_seqs + MAX_DRAFT_LOGITS;
    if (wanted > most) wanted = most;
    return wanted > o->max_logits ? wanted : o->max_logits;
}

static void settle_options(struct engine_options *o) {
    if (!o->threads) o->threads = pool_default_threads();
    if (!o->max_num_seqs) o->max_num_seqs = 1;
    if (!o->max_num_batched_tokens) {
        o->max_num_batched_tokens = PLAN_STEP_TOKENS;
        o->may_lengthen_steps = true;
    }
    if (o->max_num_batched_tokens < o->max_num_seqs) o->max_num_batched_tokens = o->max_num_seqs;
    if (o->max_logits < o->max_num_seqs) o->max_logits = o->max_num_seqs;
    if (o->max_drafts > 0) o->max_logits = logits_for_drafts(o);
    if (!o->kv) o->kv = 1 + (o->compute == COMPUTE_F32 ? KV_F32 : KV_BF16);
    if (o->batch_invariant) o->attention = ATTENTION_ABSORBED;
}

static void add_eos(struct engine *engine, int32_t id) {
    for (int i = 0; i < engine->n_eos; i++) {
        if (engine->eos[i] == id) return;
    }
    if (id >= 0 && id < engine->model.vocab && engine->n_eos < MODEL_MAX_EOS) engine->eos[engine->n_eos++] = id;
}

/* A folder without tokenizer.json still computes: ids in, ids out. */
static int open_text(struct engine *engine, struct mo_error *error) {
    for (int i = 0; i < engine->model.n_eos; i++) add_eos(engine, engine->model.eos[i]);
    if (!checkpoint_has_file(&engine->checkpoint, "tokenizer.json")) return 0;
    int code = tokenizer_load(&engine->tokenizer, &engine->checkpoint, error);
    if (code) return code;
    add_eos(engine, tokenizer_eos(engine->tokenizer));
    if (tokenizer_size(engine->tokenizer) > engine->model.vocab) {
        return mo_error_set(error, MO_E_CORRUPT, "%s: tokenizer.json has ids up to %d, config.json a vocab_size of %d",
                            engine->path, tokenizer_size(engine->tokenizer) - 1, engine->model.vocab);
    }
    code = grammar_cache_create(&engine->grammars, engine->tokenizer, engine->model.vocab, error);
    if (code) return code;
    struct mo_error unknown;
    code = chat_template_choose(&engine->chat, engine->options.chat_template, engine->tokenizer, &unknown);
    if (!code || code == MO_E_UNSUPPORTED) return 0; /* completions work without a template; a chat will say so */
    *error = unknown;
    return code;
}

static int open_sched(struct engine *engine, struct mo_error *error) {
    const struct engine_options *o = &engine->options;
    struct sched_options options = {
        .backend = engine->backend,
        .model = &engine->model,
        .tokenizer = engine->tokenizer,
        .eos = engine->eos,
        .n_eos = engine->n_eos,
        .max_model_len = o->max_model_len,
        .max_num_seqs = o->max_num_seqs,
        .max_num_batched_tokens = o->max_num_batched_tokens,
        .max_logits = o->max_logits,
        .n_pages = engine->n_pages,
        .n_near = engine->n_near,
        .prefix_caching = o->prefix_caching,
        .disk = engine->disk,
        .max_drafts = o->max_drafts,
    };
    return sched_create(&engine->sched, &options, error);
}

int engine_find(const struct engine_options *o, char *path, size_t path_size, struct mo_error *error) {
    const struct find_request request = {.model = o->model,
                                         .revision = o->revision,
                                         .hub = &o->hub,
                                         .need = FIND_TO_RUN,
                                         .quantization = o->quantization,
                                         .device = o->device};
    return find_model(&request, path, path_size, error);
}

/* Names, description and small files; then, when these are known to be good, the weights. */
static int open_checkpoint(struct engine *engine, struct mo_error *error) {
    int code = override_flags_read(&engine->options.overrides, &engine->overrides, error);
    if (!code) code = engine_find(&engine->options, engine->path, sizeof engine->path, error);
    if (!code) code = checkpoint_open_files(&engine->checkpoint, engine->path, error);
    if (code) return code;
    engine->checkpoint.overrides = engine->overrides;
    code = model_load(&engine->model, &engine->checkpoint, error);
    if (!code) code = override_flags_say(&engine->checkpoint, NULL, error);
    return code ? code : engine_plan_check_context(engine, error);
}

static int open_weights(struct engine *engine, struct mo_error *error) {
    int code = checkpoint_open_tensors(&engine->checkpoint, error);
    return code ? code : engine_bind_weights(engine, error);
}

int engine_open_weights(struct engine *engine, struct mo_error *error) {
    settle_options(&engine->options);
    int code = open_checkpoint(engine, error);
    return code ? code : open_weights(engine, error);
}

/* A guess that was wrong leaves rows behind the sequence, which are computed again; V4's pages hold sums that no row leaves. */
static int check_drafts(const struct engine *engine, struct mo_error *error) {
    if (!engine->options.max_drafts || !model_is_hybrid(&engine->model)) return 0;
    return mo_error_set(
        error, MO_E_UNSUPPORTED,
        "--draft-max %d: %s keeps sums of its tokens in the cache, and a wrong guess could not be taken out of them "
        "again: it runs without guesses only",
        engine->options.max_drafts, engine->model.architecture);
}

/* V4's rows are keys and values as they are: there is nothing to expand. */
static void say_attention(const struct engine *engine) {
    if (engine->options.attention != ATTENTION_EXPANDED || !model_is_hybrid(&engine->model)) return;
    log_warn("--attention expanded changes nothing: %s has one form of attention", engine->model.architecture);
}

static void lay_over(struct generation_defaults *to, const struct generation_defaults *from) {
    double *const values[] = {
        &to->temperature,      &to->top_p, &to->min_p, &to->repetition_penalty, &to->presence_penalty,
        &to->frequency_penalty};
    const double given[] = {
        from->temperature,      from->top_p, from->min_p, from->repetition_penalty, from->presence_penalty,
        from->frequency_penalty};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        if (!isnan(given[i])) *values[i] = given[i];
    }
    if (from->top_k >= 0) to->top_k = from->top_k;
    if (from->max_tokens > 0) to->max_tokens = from->max_tokens;
}

static int load_defaults(struct engine *engine, struct mo_error *error) {
    const struct engine_options *o = &engine->options;
    int code = model_load_generation(&engine->model, &engine->checkpoint, &engine->defaults, error);
    if (o->generation_config) engine->defaults = generation_defaults_none();
    if (o->defaults) lay_over(&engine->defaults, o->defaults);
    return code;
}

static int open_all(struct engine *engine, struct mo_error *error) {
    struct backend_options backend;
    settle_options(&engine->options);
    int code = engine->options.like ? engine_make_weights(engine, error) : open_checkpoint(engine, error);
    if (!code) code = check_drafts(engine, error);
    if (!code) say_attention(engine);
    if (!code) code = load_defaults(engine, error);
    if (!code) code = open_text(engine, error);
    if (!code && !engine->options.like) code = open_weights(engine, error);
    engine_offload_begin(engine);
    if (!code) code = engine_device_choose(engine, error);
    if (!code && engine->gpu >= 0) engine_offload_look(engine);
    if (!code) code = engine_settle_weights(engine, error);
    if (!code && engine->gpu >= 0) code = engine_cards_add(engine, error);
    if (!code && engine->gpu >= 0) engine_plan_lengthen_steps(engine);
    if (!code) code = engine_ranks_meet(engine, error);
    if (!code) code = engine_offload_choose(engine, error);
    if (!code) code = engine_fold_tokens(engine, error);
    if (!code) code = engine_experts_choose(engine, error);
    if (!code && engine->store) engine_plan_lengthen_steps(engine);
    if (!code) code = engine_plan(engine, &backend, error);
    if (!code) code = engine_turn_choose(engine, &backend, error);
    if (!code) code = engine_turn_first(engine, error);
    if (!code) code = engine_numa_place(engine, NULL, NULL, error);
    if (!code) code = engine_experts_start(engine, &backend, error);
    if (!code) code = engine_ranks_begin(engine, &backend, error);
    if (!code) code = engine_device_open(engine, &backend, error);
    if (!code) code = engine_selftest(engine, &backend, error);
    weights_end_later(&engine->weights);
    if (!code) code = engine_disk_open(engine, error);
    if (!code) code = open_sched(engine, error);
    if (!code) code = engine_disk_start(engine, error);
    return code;
}

int engine_open(struct engine **out, const struct engine_options *wished, struct mo_error *error) {
    double start = clock_now_s();
    struct engine_options settled = *wished, *options = &settled;
    if (!options->model && !options->like)
        return mo_error_set(error, MO_E_INVALID, "no MODEL given (--help shows how)");
    if (options->like && (options->overrides.json || options->overrides.kv.n))
        return mo_error_set(error, MO_E_INVALID, "--hf-overrides and --override-kv go with a MODEL, not with --like");
    int code = engine_offload_settle(options, error);
    if (!code) code = engine_numa_settle(options, error);
    if (!code && ranks_self() > 0) return engine_ranks_work(options, error);
    if (!code) code = engine_ranks_check(options, error);
    if (code) return code;
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the engine");
    engine->options = *options;
    code = open_all(engine, error);
    if (code) {
        engine_close(engine);
        return code;
    }
    engine->load_s = clock_now_s() - start;
    *out = engine;
    return 0;
}

static void *engine_main(void *argument) {
    struct engine *engine = argument;
    while (!atomic_load(&engine->stop)) {
        turner_adopt(engine->turner);
        if (!sched_step(engine->sched)) sched_wait(engine->sched);
    }
    return NULL;
}

int engine_start(struct engine *engine, struct mo_error *error) {
    engine_turn_begin(engine);
    int reason = pthread_create(&engine->thread, NULL, engine_main, engine);
    if (reason) return mo_error_set(error, MO_E_NO_MEMORY, "cannot start the engine thread: %s", strerror(reason));
    engine->started = true;
    return 0;
}

void engine_close(struct engine *engine) {
    if (!engine) return;
    if (engine->started) {
        atomic_store(&engine->stop, true);
        sched_wake(engine->sched);
        pthread_join(engine->thread, NULL);
    }
    turner_end(engine->turner);
    engine_disk_stop(engine);
    sched_destroy(engine->sched);
    disk_close(engine->disk);
    engine_ranks_close(engine);
    if (engine->backend) engine->backend->ops->close(engine->backend);
    grammar_cache_free(engine->grammars);
    store_close(engine->store);
    tokenizer_free(engine->tokenizer);
    weights_free(&engine->weights);
    checkpoint_close(&engine->checkpoint);
    overrides_free(engine->overrides);
    free(engine);
}

void engine_sampling(const struct engine *engine, struct sampling *sampling) {
    sampling_init(sampling);
    const struct generation_defaults *d = &engine->defaults;
    if (!isnan(d->temperature)) sampling->temperature = (float)d->temperature;
    if (!isnan(d->top_p)) sampling->top_p = (float)d->top_p;
    if (!isnan(d->min_p)) sampling->min_p = (float)d->min_p;
    if (!isnan(d->repetition_penalty)) sampling->repetition_penalty = (float)d->repetition_penalty;
    if (!isnan(d->presence_penalty)) sampling->presence_penalty = (float)d->presence_penalty;
    if (!isnan(d->frequency_penalty)) sampling->frequency_penalty = (float)d->frequency_penalty;
    if (d->top_k >= 0) sampling->top_k = d->top_k;
}

static int need_tokenizer(const struct engine *engine, struct mo_error *error) {
    if (engine->tokenizer) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED, "%s has no tokenizer.json: only token ids can be used", engine->path);
}

int engine_encode_prompt(const struct engine *engine, const char *text, size_t size, struct token_list *out,
                         struct mo_error *error) {
    int code = need_tokenizer(engine, error);
    if (code) return code;
    static atomic_bool told; /* once: those who send a server texts do not read its log */
    const char *genuine = atomic_load(&told) ? NULL : tokenizer_lookalike(engine->tokenizer, text, size);
    if (genuine && !atomic_exchange(&told, true))
        log_warn("the prompt holds an ASCII look-alike of the special token %s; it is plain text here", genuine);
    if (tokenizer_adds_bos(engine->tokenizer) && tokenizer_bos(engine->tokenizer) >= 0) {
        code = token_list_push(out, tokenizer_bos(engine->tokenizer), error);
    }
    size_t bos = out->n;
    if (!code) code = tokenizer_encode(engine->tokenizer, text, size, true, out, error);
    if (!code && bos == 1 && out->n > 1 && out->ids[1] == out->ids[0]) { /* the text brought its own: exactly one */
        memmove(out->ids, out->ids + 1, --out->n * sizeof *out->ids);
    }
    return code;
}

int engine_encode_chat(const struct engine *engine, const json_t *messages, bool add_generation_prompt,
                       const json_t *kwargs, struct token_list *out, struct mo_error *error) {
    int code = need_tokenizer(engine, error);
    if (code) return code;
    const struct chat_template *none;
    if (!engine->chat) return chat_template_choose(&none, NULL, engine->tokenizer, error);
    struct chat_prompt prompt = {0};
    code = chat_render(engine->chat, messages, add_generation_prompt, kwargs,
                       tokenizer_token_text(engine->tokenizer, tokenizer_bos(engine->tokenizer)),
                       tokenizer_token_text(engine->tokenizer, tokenizer_eos(engine->tokenizer)), &prompt, error);
    if (!code) {
        code = tokenizer_encode_ranges(engine->tokenizer, prompt.text, prompt.size, prompt.ranges, prompt.n_ranges, out,
                                       error);
    }
    chat_prompt_free(&prompt);
    return code;
}

/* A user's text cannot open it: in a chat it never becomes these tokens. */
int32_t engine_reasoning_end(const struct engine *engine, const struct token_list *prompt) {
    if (!engine->tokenizer || prompt->n == 0) return -1;
    int32_t begin = tokenizer_added_id(engine->tokenizer, "<think>");
    int32_t end = tokenizer_added_id(engine->tokenizer, "</think>");
    int32_t turn = tokenizer_added_id(engine->tokenizer, "<｜Assistant｜>");
    bool opens_itself = engine->chat && chat_template_reasons(engine->chat) && turn >= 0;
    if (opens_itself && prompt->ids[prompt->n - 1] == turn) return end;
    for (size_t i = prompt->n; i-- > 0 && begin >= 0;) {
        if (prompt->ids[i] == begin) return end;
        if (prompt->ids[i] == end) return -1;
    }
    return -1;
}
