#include "cmd/bench/measure.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/clock.h"
#include "base/numbers.h"
#include "base/progress.h"
#include "cmd/bench/energy.h"
#include "sched/kv.h"
#include "sched/sample.h"

enum {
    WARM_UP_TOKENS = 256, /* of a prompt: enough to visit nearly every expert */
    WARM_UP_STEPS = 4,
    LOOKS = 8, /* steps whose bytes are counted, where that is done apart */
};

static int list_max(const struct bench_list *list) {
    int max = 0;
    for (int i = 0; i < list->n; i++) max = larger(max, list->values[i]);
    return max;
}

static int shared_pages(int depth) {
    return depth / KV_PAGE_TOKENS;
}

static int own_pages(const struct bench_plan *plan, int depth) {
    return kv_pages_for(depth % KV_PAGE_TOKENS + plan->generate);
}

/* ---- what fits ---- */

static int check_context(const struct bench *b, struct mo_error *error) {
    const struct bench_plan *plan = b->plan;
    int depth = list_max(&plan->depth), context = b->engine->options.max_model_len, prompt = list_max(&plan->prompt);
    if (prompt > context) {
        return mo_error_set(error, MO_E_LIMIT, "--prompt %d is longer than the context of %d tokens (--max-model-len)",
                            prompt, context);
    }
    if (depth + plan->generate > context) {
        return mo_error_set(error, MO_E_LIMIT,
                            "--depth %d and --generate %d need a context of %d tokens, it has %d "
                            "(a larger --max-model-len, or a smaller --depth)",
                            depth, plan->generate, depth + plan->generate, context);
    }
    return 0;
}

static int check_cache(const struct bench *b, int64_t need_pages, struct mo_error *error) {
    if (need_pages <= b->engine->n_pages) return 0;
    return mo_error_set(error, MO_E_LIMIT,
                        "the cache holds %lld tokens, --batch %d at --depth %d and a prompt of %d need "
                        "%lld (a larger --max-model-len, fewer --batch or --depth, or --kv-cache-dtype fp8)",
                        (long long)b->engine->n_pages * KV_PAGE_TOKENS, b->max_batch, list_max(&b->plan->depth),
                        list_max(&b->plan->prompt), (long long)(need_pages * KV_PAGE_TOKENS));
}

static int warm_up_tokens(const struct bench *b) {
    int n = smaller(larger(list_max(&b->plan->prompt), WARM_UP_TOKENS), b->engine->options.max_model_len);
    return kv_pages_for(n) <= b->engine->n_pages ? n : b->engine->n_pages * KV_PAGE_TOKENS;
}

static int check_fits(struct bench *b, struct mo_error *error) {
    const struct bench_plan *plan = b->plan;
    int own = 0, seqs = b->engine->options.max_num_seqs;
    for (int i = 0; i < plan->depth.n; i++) own = larger(own, own_pages(plan, plan->depth.values[i]));
    b->max_batch = list_max(&plan->batch);
    b->first_own_page = shared_pages(list_max(&plan->depth));
    if (b->max_batch > seqs) {
        return mo_error_set(error, MO_E_LIMIT, "--batch %d is more than --max-num-seqs %d", b->max_batch, seqs);
    }
    int code = check_context(b, error);
    if (code) return code;
    int64_t pages = (int64_t)b->first_own_page + (int64_t)own * b->max_batch;
    int prompt_pages = kv_pages_for(list_max(&plan->prompt));
    return check_cache(b, pages > prompt_pages ? pages : prompt_pages, error);
}

static int allocate(struct bench *b, struct mo_error *error) {
    const struct bench_plan *plan = b->plan;
    size_t table = (size_t)b->max_batch * (size_t)kv_pages_for(list_max(&plan->depth) + plan->generate);
    int alone = larger(kv_pages_for(warm_up_tokens(b)), b->first_own_page);
    size_t rows = (size_t)b->engine->options.max_num_batched_tokens;
    b->page = calloc((size_t)alone, sizeof *b->page);
    b->table = calloc(table, sizeof *b->table);
    b->token = calloc(rows, sizeof *b->token);
    b->logits_row = calloc(rows, sizeof *b->logits_row);
    b->pick = calloc((size_t)b->max_batch, sizeof *b->pick);
    b->samples = calloc((size_t)larger(plan->repeat, plan->generate), sizeof *b->samples);
    bool is_there = b->page && b->table && b->token && b->logits_row && b->pick && b->samples;
    for (int i = 0; i < 2; i++) {
        b->steps[i].token = calloc((size_t)b->max_batch, sizeof *b->steps[i].token);
        b->steps[i].seqs = calloc((size_t)b->max_batch, sizeof *b->steps[i].seqs);
        b->steps[i].before = calloc((size_t)b->max_batch * BENCH_BEFORE, sizeof *b->steps[i].before);
        is_there = is_there && b->steps[i].token && b->steps[i].seqs && b->steps[i].before;
    }
    if (!is_there) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a batch of %d", b->max_batch);
    for (int i = 0; i < alone; i++) b->page[i] = i;
    for (int i = 0; i < b->max_batch; i++) b->pick[i] = (struct pick){.wanted = true, .top_p = 1};
    return 0;
}

int bench_open(struct bench *bench, const struct bench_plan *plan, struct engine *engine, struct mo_error *error) {
    *bench = (struct bench){.plan = plan, .engine = engine};
    enum kv_format kv = (enum kv_format)(engine->options.kv - 1);
    int code = check_fits(bench, error);
    if (!code) code = allocate(bench, error);
    if (!code) code = bench_tokens_open(&bench->tokens, engine->tokenizer, engine->model.vocab, error);
    if (!code) code = bench_bytes_open(&bench->bytes, &engine->model, &engine->weights, kv, error);
    return code;
}

void bench_close(struct bench *bench) {
    energy_close(&bench->energy);
    bench_tokens_close(&bench->tokens);
    bench_bytes_close(&bench->bytes);
    free(bench->page);
    free(bench->table);
    free(bench->token);
    free(bench->logits_row);
    for (int i = 0; i < 2; i++) {
        free(bench->steps[i].token);
        free(bench->steps[i].seqs);
        free(bench->steps[i].before);
    }
    free(bench->pick);
    free(bench->samples);
}

/* A batch_seq's: the sequence's last tokens before `pos` go to `room`. Those that sequences share count as its own. */
static const int32_t *tokens_before(const struct bench *b, int seq, int pos, int32_t room[BENCH_BEFORE]) {
    int32_t *end = room + BENCH_BEFORE;
    for (int back = 1; back <= smaller(pos, BENCH_BEFORE); back++)
        end[-back] = bench_token(&b->tokens, seq, pos - back);
    return end;
}

/* ---- prompts ---- */

/* Computes tokens [first, end) of a sequence, chunk by chunk; with `answer` also the last one's logits and its most
 * likely token. */
static int compute(struct bench *b, int seq, const int32_t *pages, int first, int end, bool answer, const char *label,
                   struct mo_error *error) {
    struct backend *backend = b->engine->backend;
    int chunk = b->engine->options.max_num_batched_tokens, code = 0;
    struct progress progress;
    progress_begin(&progress, label, "tokens", 1, end - first);
    for (int at = first; at < end && !code; at += chunk) {
        int n = smaller(chunk, end - at);
        for (int i = 0; i < n; i++) b->token[i] = bench_token(&b->tokens, seq, at + i);
        b->logits_row[0] = n - 1;
        int32_t before[BENCH_BEFORE];
        struct batch_seq rows = {
            .n_rows = n, .first_pos = at, .pages = pages, .before = tokens_before(b, seq, at, before)};
        struct batch batch = {.n_rows = n, .token = b->token, .n_seqs = 1, .seqs = &rows, .logits_row = b->logits_row};
        batch.n_logits = answer && at + n == end;
        code = forward(backend, &b->engine->model, &batch, NULL, error);
        progress_update(&progress, at + n - first);
        energy_tick(&b->energy);
    }
    progress_end(&progress);
    if (!code && answer) sample_argmax(backend->ops->logits(backend), b->engine->model.vocab);
    return code;
}

/* After sequence 0 was computed up to `end` from position 0. V4: the page in which it ended was complete before, and is no more. */
static void note_filled(struct bench *b, int end) {
    int filled = smaller(end, b->first_own_page * KV_PAGE_TOKENS);
    bool is_hybrid = model_is_hybrid(&b->engine->model);
    b->filled = is_hybrid ? filled / KV_PAGE_TOKENS * KV_PAGE_TOKENS : larger(b->filled, filled);
}

int bench_warm_up(struct bench *bench, struct mo_error *error) {
    int n = warm_up_tokens(bench);
    int code = compute(bench, 0, bench->page, 0, n, true, "warming up", error);
    note_filled(bench, n);
    return code;
}

int bench_time_prompt(struct bench *bench, int tokens, struct bench_prompt *result, struct mo_error *error) {
    const struct bench_plan *plan = bench->plan;
    bench_experts_begin(&result->experts, bench->engine);
    const struct joules before = energy_read(&bench->energy);
    for (int i = 0; i < plan->repeat; i++) {
        double start = clock_now_s();
        int code = compute(bench, 0, bench->page, 0, tokens, true, "prompt", error);
        if (code) return code;
        bench->samples[i] = clock_now_s() - start;
    }
    result->joules = bench_energy_since(&bench->energy, before, (double)tokens * plan->repeat);
    bench_experts_end(&result->experts, bench->engine, (double)tokens * plan->repeat);
    note_filled(bench, tokens);
    result->seconds = bench_spread_of(bench->samples, plan->repeat);
    return 0;
}

/* ---- decode ---- */

/* Shared pages first, then the sequence's own. */
static void lay_out_pages(struct bench *b, int batch, int depth) {
    int shared = shared_pages(depth), own = own_pages(b->plan, depth);
    for (int s = 0; s < batch; s++) {
        int32_t *table = b->table + (size_t)s * (size_t)(shared + own);
        for (int i = 0; i < shared; i++) table[i] = i;
        for (int i = 0; i < own; i++) table[shared + i] = b->first_own_page + s * own + i;
        for (int i = 0; i < 2; i++)
            b->steps[i].seqs[s] = (struct batch_seq){.first_row = s, .n_rows = 1, .pages = table};
    }
}

/* What comes before the first step: the shared tokens that are not in the cache yet, and each sequence's rest of a
 * page. */
static int fill_cache(struct bench *b, int batch, int depth, struct mo_error *error) {
    int shared = shared_pages(depth) * KV_PAGE_TOKENS;
    int code = b->filled < shared ? compute(b, 0, b->page, b->filled, shared, false, "filling the cache", error) : 0;
    if (!code) b->filled = larger(b->filled, shared);
    for (int s = 0; s < batch && !code; s++) {
        code = compute(b, s, b->steps[0].seqs[s].pages, shared, depth, false, "filling the cache", error);
    }
    return code;
}

static const struct batch *rows_of_step(struct bench *b, int batch, int pos) {
    struct bench_step *step = &b->steps[pos % 2];
    for (int s = 0; s < batch; s++) {
        step->token[s] = bench_token(&b->tokens, s, pos);
        b->logits_row[s] = s;
        step->seqs[s].first_pos = pos;
        step->seqs[s].before = tokens_before(b, s, pos, step->before + (size_t)s * BENCH_BEFORE);
    }
    step->rows = (struct batch){.n_rows = batch,
                                .token = step->token,
                                .n_seqs = batch,
                                .seqs = step->seqs,
                                .n_logits = batch,
                                .logits_row = b->logits_row,
                                .pick = b->engine->backend->picks ? b->pick : NULL};
    return &step->rows;
}

static void begin_step(struct bench *b, int batch, int pos, const struct forward_tap *tap) {
    forward_begin(b->engine->backend, &b->engine->model, rows_of_step(b, batch, pos), tap);
}

static int end_step(struct bench *b, int batch, struct mo_error *error) {
    struct backend *backend = b->engine->backend;
    size_t vocab = (size_t)b->engine->model.vocab;
    int code = backend->ops->end(backend, error);
    if (code || backend->picks) return code;
    const float *logits = backend->ops->logits(backend);
    for (int s = 0; s < batch; s++) sample_argmax(logits + (size_t)s * vocab, (int)vocab);
    return 0;
}

/* Steps begin at `depth` anew. Where pages hold what their tokens were summed up to (V4), the pages' beginnings are computed once
 * more: such a model goes back to the beginning of a page alone. */
static int go_back(struct bench *b, int batch, int depth, struct mo_error *error) {
    return model_is_hybrid(&b->engine->model) ? fill_cache(b, batch, depth, error) : 0;
}

static int decode_step(struct bench *b, int batch, int pos, bool look, struct mo_error *error) {
    const struct forward_tap tap = {.context = &b->bytes, .routing = bench_bytes_add_experts};
    if (look) bench_bytes_begin(&b->bytes);
    begin_step(b, batch, pos, look ? &tap : NULL);
    return end_step(b, batch, error);
}

/* Shared rows are counted once: the sequences of a step find them in the caches, or not, but need them once. */
static double step_bytes(const struct bench *b, int batch, int depth, int pos) {
    int64_t shared = (int64_t)shared_pages(depth) * KV_PAGE_TOKENS, own = pos + 1 - shared;
    return (double)b->bytes.fixed + (double)b->bytes.experts +
           bench_cache_bytes(&b->bytes, (double)(shared + own * batch), batch, pos + 1);
}

/* The bytes of some of the steps, spread over all; of V4 the first, as it leaves no step out. */
static int look_into_steps(struct bench *b, struct bench_decode *r, struct mo_error *error) {
    int steps = b->plan->generate, looks = smaller(steps, LOOKS), code = 0;
    const bool in_order = model_is_hybrid(&b->engine->model);
    for (int i = 0; i < looks && !code; i++) {
        int at = r->depth + (in_order ? i : (int)((int64_t)steps * i / looks));
        code = decode_step(b, r->batch, at, true, error);
        r->bytes_per_step += step_bytes(b, r->batch, r->depth, at) / looks;
    }
    return code ? code : go_back(b, r->batch, r->depth, error);
}

/* Step i of those that are timed; where the backend runs ahead, the next one has begun before it ends. */
static int timed_step(struct bench *b, const struct bench_decode *r, int i, bool look, struct mo_error *error) {
    if (look || !b->engine->backend->runs_ahead) return decode_step(b, r->batch, r->depth + i, look, error);
    if (i == 0) begin_step(b, r->batch, r->depth, NULL);
    if (i + 1 < b->plan->generate) begin_step(b, r->batch, r->depth + i + 1, NULL);
    return end_step(b, r->batch, error);
}

static int time_steps(struct bench *b, struct bench_decode *r, struct mo_error *error) {
    int steps = b->plan->generate, code = 0;
    bool look = !b->looks_apart;
    char label[64];
    struct progress progress;
    snprintf(label, sizeof label, "decode, batch %d at depth %d", r->batch, r->depth);
    progress_begin(&progress, label, "tokens", 1, (double)r->batch * steps);
    const struct joules before = energy_read(&b->energy);
    for (int i = 0; i < steps && !code; i++) {
        double start = clock_now_s();
        code = timed_step(b, r, i, look, error);
        b->samples[i] = r->batch / (clock_now_s() - start);
        if (look) r->bytes_per_step += step_bytes(b, r->batch, r->depth, r->depth + i) / steps;
        progress_update(&progress, (double)r->batch * (i + 1));
        energy_tick(&b->energy);
    }
    progress_end(&progress);
    r->joules = bench_energy_since(&b->energy, before, (double)r->batch * steps);
    return code;
}

int bench_time_decode(struct bench *bench, int batch, int depth, struct bench_decode *result, struct mo_error *error) {
    int steps = bench->plan->generate;
    *result = (struct bench_decode){.batch = batch, .depth = depth};
    lay_out_pages(bench, batch, depth);
    int code = fill_cache(bench, batch, depth, error);
    for (int i = 0; i < smaller(WARM_UP_STEPS, steps) && !code; i++) {
        code = decode_step(bench, batch, depth + i, !bench->looks_apart, error);
    }
    if (!code) code = go_back(bench, batch, depth, error);
    if (!code && bench->looks_apart) code = look_into_steps(bench, result, error);
    bench_experts_begin(&result->experts, bench->engine);
    if (!code) code = time_steps(bench, result, error);
    bench_experts_end(&result->experts, bench->engine, (double)batch * steps);
    if (code) return code;
    result->tokens_per_s = bench_spread_of(bench->samples, steps);
    result->gb_per_s = result->bytes_per_step * result->tokens_per_s.median / batch * 1e-9;
    return 0;
}

int bench_profile_decode(struct bench *bench, int batch, int depth, bool timed, struct cuda_profile *profile,
                         struct mo_error *error) {
    lay_out_pages(bench, batch, depth);
    int code = fill_cache(bench, batch, depth, error);
    if (code) return code;
    return cuda_profile_step(bench->engine->backend, rows_of_step(bench, batch, depth), timed, profile, error);
}
