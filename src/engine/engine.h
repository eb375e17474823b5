/* engine/engine.h - options in, a running engine out: it opens the checkpoint, plans the memory, and owns every long-lived
 * object. Commands and the server use the engine's scheduler; `logits` uses its backend directly. */
#ifndef MOEBIUS_ENGINE_ENGINE_H
#define MOEBIUS_ENGINE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include "backend/backend.h"
#include "base/numa.h"
#include "cli/cli.h"
#include "find/find.h"
#include "grammar/cache.h"
#include "cli/override_flags.h"
#include "sched/sched.h"
#include "text/chat.h"

/* Where routed experts are computed, as --expert-device has it. */
enum expert_device { EXPERTS_AUTO, EXPERTS_ON_GPU, EXPERTS_ON_CPU };

/* From the command line; 0 or NULL means "choose". */
struct engine_options {
    const char *model, *revision, *chat_template;
    struct find_flags hub;           /* where MODEL is to be had */
    struct override_flags overrides; /* of its config.json */
    int expert_device;               /* enum expert_device, beside a card (engine/offload.h) */
    int n_cpu_moe;                   /* below 0: not said; else the CPU computes them in so many layers */
    bool cpu_moe;                    /* the same as EXPERTS_ON_CPU */
    bool no_op_offload;              /* the CPU computes its layers' experts in long steps, too */
    int op_offload_rows;             /* steps of so many rows are long; 0: from where it pays */
    const char *device;              /* NULL or "auto", "cpu", "cuda", "cuda:N", "cuda:N,cuda:M" */
    const char *tensor_split;        /* how much each card holds, in proportion: "3,1"; NULL: by their free memory */
    int pipeline_parallel;           /* so many cards; 0: not said */
    const char *expert_shares;       /* of each process; NULL: what they have room for (engine/ranks.h) */
    const char *expert_cache; /* NULL or "auto", or GiB that routed experts may take; "0": as they lie in the files */
    int threads;
    int cpu_strict;                 /* 1: each thread on a processor of its own */
    int numa;                       /* enum numa_use */
    struct numa_choice numa_choice; /* what became of it (engine/numa.h) */
    int max_model_len, max_num_seqs, max_num_batched_tokens;
    bool may_lengthen_steps;   /* nobody has asked for so many batched tokens */
    double memory_utilization; /* share of the machine's memory for weights and cache */
    int kv;                    /* 0 auto, else enum kv_format + 1 */
    int compute;               /* enum compute */
    int attention;             /* enum attention */
    bool batch_invariant;
    int generation_config; /* 0 auto: the model's sampling defaults; 1 none (vLLM's word: "vllm") */
    const struct generation_defaults *defaults; /* over the model's; NULL: none */
    int max_logits;                             /* logit rows a step; 0: max_num_seqs */
    int max_drafts;                             /* tokens to guess a sequence and step; 0: none */
    int max_grammars;         /* that answers may have, GRAMMAR_CACHE_MAX at most: memory is left for them */
    const char *quantization; /* NULL or "auto": as the weights are; else what to make of them on the way in */
    const char *like;         /* not a MODEL but random weights in memory: a name of synth.h, or of ... */
    const char *like_config;  /* ... a config.json; NULL: none */
    int like_layers;          /* 0: all of them */
    uint64_t like_seed;
    bool prefix_caching;      /* answers share the cache of what their prompts begin with */
    const char *cache_folder; /* pages that outlive the engine go there; NULL: they do not */
    double cache_disk_gib;    /* that they may take */
    bool only_scheduled;      /* the cache's pages are the scheduler's alone, so V4 can do with fewer near parts */
    bool take_cache;          /* take all of the cache's memory, beside the first requests: a server's promise */
    bool no_repack;           /* GGUF's blocks stay as they lie in the file */
    bool no_self_test;        /* trust kernels and card unseen */
};
void engine_options_init(struct engine_options *options);

/* The flags that every command with a model shares, for a cli table. Ends with an entry without names. */
enum { ENGINE_FLAGS_MAX = 48 };
void engine_flags(struct engine_options *options, struct cli_flag flags[ENGINE_FLAGS_MAX]);

struct engine {
    struct engine_options options; /* every choice made */
    char path[4096];
    struct model model;
    struct generation_defaults defaults; /* the model's, unless they are left out, and those of the options over them */
    struct overrides *overrides;         /* of its config.json; NULL: none */
    struct checkpoint checkpoint;
    struct weights weights;
    struct tokenizer *tokenizer;      /* NULL if the folder has none: token ids only */
    const struct chat_template *chat; /* NULL: no chat */
    struct grammar_cache *grammars;   /* of structured answers; NULL without a tokenizer */
    struct store *store; /* routed experts that are read when they are needed; NULL: they are used where they lie */
    double expert_bytes; /* for them; 0: what the rest leaves */
    struct ranks_split split; /* of routed experts among processes, where there are several */
    double ranks_bytes;       /* of experts that other processes hold */
    bool has_ranks;           /* they wait for requests */
    bool will_turn;           /* weights (engine/turn.h) */
    struct turner *turner;    /* that does; NULL: it does not, or has not begun */
    struct backend *backend;
    struct disk *disk; /* pages below those in memory; NULL: none */
    struct sched *sched;
    int32_t eos[MODEL_MAX_EOS];
    int n_eos, n_pages, n_near;
    int gpu;     /* the card that computes, of several the first; -1: the CPU */
    int n_parts; /* cards that compute, each some of the layers (engine/cards.h) */
    bool may_add_cards;
    struct cuda_part parts[CUDA_PARTS_MAX];
    size_t gpu_free_bytes[CUDA_PARTS_MAX];
    double card_shares[CUDA_PARTS_MAX]; /* of --tensor-split */
    int cpu_layers; /* beside it, with routed experts that the CPU computes: the first so many that have some */
    double cpu_gflops, cpu_gops16, cpu_gops8; /* of our threads, by the system's word: fp32, bf16, 8 bits */
    double load_s, self_test_s;               /* the second is part of the first; 0: left out */

    pthread_t thread; /* runs the scheduler between engine_start and engine_close */
    bool started;
    atomic_bool stop;
};

/* The model's folder or file, fetched from the hub if it is not here. */
int engine_find(const struct engine_options *options, char *path, size_t path_size, struct mo_error *error);
/* Opens everything or nothing. In a process that is not the first of several: computes experts for that one until it closes its
 * engine, and returns 1. */
int engine_open(struct engine **engine, const struct engine_options *options, struct mo_error *error);
/* The model and its weights alone, with options settled. */
int engine_open_weights(struct engine *engine, struct mo_error *error);
/* Starts the engine thread; from here on only sched_submit, sched_cancel and sched_stats_get may be called. */
int engine_start(struct engine *engine, struct mo_error *error);
void engine_close(struct engine *engine); /* stops the thread, cancels what runs; accepts NULL and half-built ones */

/* What engine->defaults makes of all off. */
void engine_sampling(const struct engine *engine, struct sampling *sampling);

/* bos (if the tokenizer adds one) and the text's ids: a completion's prompt. Warns of look-alikes of special tokens. */
int engine_encode_prompt(const struct engine *engine, const char *text, size_t size, struct token_list *out,
                         struct mo_error *error);
/* A chat's prompt by the model's template. Without a known template the error names --chat-template. */
int engine_encode_chat(const struct engine *engine, const json_t *messages, bool add_generation_prompt,
                       const json_t *kwargs, struct token_list *out, struct mo_error *error);
/* The token </think> if what follows `prompt` begins with reasoning, which that token ends; else -1. */
int32_t engine_reasoning_end(const struct engine *engine, const struct token_list *prompt);

#endif
