/* plan/nearest.c - what to change when something does not fit. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "plan/memory.h"

enum { CONTEXT_STEP = 1024, MAX_CARDS = 64 };

struct search {
    struct plan_nearest *found; /* [PLAN_NEAREST] */
    int n;
};

/* Keeps a changed plan if it fits and nobody has said the same. */
static void offer(struct search *search, const struct plan_input *changed, const char *flags) {
    struct plan_memory memory;
    if (search->n == PLAN_NEAREST) return;
    plan_memory(changed, &memory);
    if (!memory.fits) return;
    struct plan_nearest *next = &search->found[search->n++];
    *next = (struct plan_nearest){.headroom_bytes = memory.headroom_bytes, .place = memory.place};
    snprintf(next->flags, sizeof next->flags, "%s", flags);
}

/* The longest context, in thousands, for which there is room; 0 if there is none. */
static int longest_context(const struct plan_input *in) {
    struct plan_memory memory;
    plan_memory(in, &memory);
    double tokens = floor(memory.cache_tokens / in->wish.seqs / CONTEXT_STEP) * CONTEXT_STEP;
    return tokens < in->wish.context ? (int)tokens : in->wish.context;
}

static void offer_context(struct search *search, const struct plan_input *in, const char *before) {
    struct plan_input changed = *in;
    char flags[96];
    changed.wish.context = longest_context(in);
    if (changed.wish.context < CONTEXT_STEP || changed.wish.context == in->wish.context) return;
    snprintf(flags, sizeof flags, "%s--max-model-len %d", before, changed.wish.context);
    offer(search, &changed, flags);
}

static void offer_cache(struct search *search, const struct plan_input *in) {
    struct plan_input changed = *in;
    if (in->wish.kv == KV_FP8) return;
    changed.wish.kv = KV_FP8;
    offer(search, &changed, "--kv-cache-dtype fp8");
    offer_context(search, &changed, "--kv-cache-dtype fp8 ");
}

/* Where another number was asked for, or all on the card. */
static void offer_layers(struct search *search, const struct plan_input *in) {
    struct plan_input changed = *in;
    struct plan_memory memory;
    char flags[96];
    changed.machine.experts = PLAN_EXPERTS_AUTO;
    changed.machine.cpu_layers = 0;
    plan_memory(&changed, &memory);
    if (memory.place != PLAN_IN_GPU_RAM) return;
    snprintf(flags, sizeof flags, "--n-cpu-moe %d", plan_cpu_layers(&changed, &memory));
    offer(search, &changed, flags);
}

static void offer_seqs(struct search *search, const struct plan_input *in) {
    struct plan_input changed = *in;
    struct plan_memory memory;
    char flags[96];
    plan_memory(in, &memory);
    changed.wish.seqs = (int)fmin(memory.cache_tokens / in->wish.context, in->wish.seqs);
    if (changed.wish.seqs < 1 || changed.wish.seqs == in->wish.seqs) return;
    snprintf(flags, sizeof flags, "--max-num-seqs %d", changed.wish.seqs);
    offer(search, &changed, flags);
}

static void offer_recipes(struct search *search, const struct plan_input *in) {
    struct plan_input changed = *in;
    char recipe[16], flags[96];
    snprintf(recipe, sizeof recipe, "%.*s", (int)fmin((double)strcspn(in->quant.name, ","), 15.0), in->quant.name);
    for (const char *smaller = plan_quant_smaller(recipe); smaller; smaller = plan_quant_smaller(smaller)) {
        plan_quant_parse(&changed.quant, smaller, NULL);
        plan_weights_from_quant(&changed.weights, &changed.arch, &changed.quant);
        snprintf(flags, sizeof flags, "--quant %s%s", smaller, in->weights.measured ? " (other files than these)" : "");
        offer(search, &changed, flags);
        changed.wish.kv = KV_FP8;
        snprintf(flags, sizeof flags, "--quant %s --kv-cache-dtype fp8 ", smaller);
        if (in->wish.kv != KV_FP8) offer_context(search, &changed, flags);
        changed.wish.kv = in->wish.kv;
    }
}

static void offer_cards(struct search *search, const struct plan_input *in) {
    struct plan_input changed = *in;
    char flags[96];
    if (!in->machine.gpu.count || plan_shares_experts(in)) return;
    for (int n = in->machine.gpu.count * 2; n <= MAX_CARDS; n *= 2) {
        changed.machine.gpu.count = n;
        changed.machine.experts = PLAN_EXPERTS_GPU;
        changed.machine.parallel = PLAN_PARALLEL_PIPELINE; /* the one that takes least */
        int before = search->n;
        snprintf(flags, sizeof flags, "--gpu %dx%s", n, in->machine.gpu.name);
        offer(search, &changed, flags);
        if (search->n > before) return;
    }
}

/* RAM in the sizes that are sold. */
static void offer_ram(struct search *search, const struct plan_input *in) {
    struct plan_input changed = *in;
    char flags[96];
    changed.machine.ram_measured = false;
    changed.machine.experts = PLAN_EXPERTS_AUTO;
    for (double gb = 16; gb <= 4096; gb *= 2) {
        changed.machine.ram_bytes = gb * 1e9;
        int before = search->n;
        snprintf(flags, sizeof flags, "--ram %.0f", gb);
        if (changed.machine.ram_bytes > in->machine.ram_bytes) offer(search, &changed, flags);
        if (search->n > before) return;
    }
}

int plan_find_nearest(const struct plan_input *input, struct plan_nearest nearest[PLAN_NEAREST]) {
    struct search search = {nearest, 0};
    if (input->machine.cpu_layers) offer_layers(&search, input);
    offer_cache(&search, input);
    offer_context(&search, input, "");
    offer_seqs(&search, input);
    offer_recipes(&search, input);
    if (input->machine.experts == PLAN_EXPERTS_GPU) offer_layers(&search, input); /* slower than fewer bits */
    offer_ram(&search, input);
    offer_cards(&search, input);
    return search.n;
}
