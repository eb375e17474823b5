#include "engine/disk.h"

#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "base/build_id.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/log.h"
#include "engine/offload.h"

static const double GIB = 1 << 30, SAVE_S = 5;

/* The matrix units of another generation of cards may add in another order; "0": the CPU, whose bits are the same everywhere. Cards
 * of several say which layers are theirs: "89, 90 from layer 14". */
static void name_generations(const struct engine *engine, char *text, size_t size) {
    struct cuda_card_info card = {0};
    size_t n = 0;
    snprintf(text, size, "0");
    for (int i = 0, before = -1; i < engine->n_parts; i++, before = card.capability) {
        cuda_backend_probe(engine->parts[i].device, &card, NULL);
        if (card.capability == before) continue;
        n += (size_t)snprintf(text + n, size - n, i ? ", %d from layer %d" : "%d", card.capability,
                              engine->parts[i].first_layer);
    }
}

/* V4.1: which tokens n-grams take for each other. That is the tokenizer's, of which checkpoint_hash knows nothing. */
static unsigned long long hash_folded(const struct engine *engine) {
    const int32_t *folded = engine->weights.folded;
    return folded ? XXH3_64bits(folded, (size_t)engine->model.vocab * sizeof *folded) : 0;
}

/* Everything but tokens that has a say in a page's bits. Kernels of one build agree in every bit, those of another may not. Where long
 * steps are the card's, it is how a prompt was cut that says whose a row was, not only from how many rows on: that number is an estimate,
 * by a clock that changes, and would not find its pages again. */
static int make_key(const struct engine *engine, const char *hash, struct page_address *key, struct mo_error *error) {
    const struct engine_options *o = &engine->options;
    const char *native = getenv("MOEBIUS_CUDA_FP8_NATIVE");
    enum cpu_level level = CPU_REF;
    char *text = NULL, build[BUILD_ID_BYTES], cards[32 * CUDA_PARTS_MAX];
    cpu_level_get(&level, NULL);
    name_generations(engine, cards, sizeof cards);
    int size = asprintf(
        &text,
        "moebius %s %s; model %s; spellings %016llx; quantization %s; %s %s; experts %d, link %d; level %s; "
        "native fp8 %s; cache %d; compute %d; attention %d; batch invariant %d; layers %d; row %zu; page %d",
        MOEBIUS_VERSION, build_id(build), hash, hash_folded(engine), o->quantization ? o->quantization : "auto",
        engine->backend->ops->name, cards, engine->cpu_layers, engine_offload_link_rows(engine) > 0,
        cpu_level_bits(level), native ? native : "0", o->kv, o->compute, o->attention, o->batch_invariant,
        engine->model.layers, kv_row_bytes(&engine->model, (enum kv_format)(o->kv - 1)), KV_PAGE_TOKENS);
    if (size < 0) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the key of the cache on disk");
    SHA256((const unsigned char *)text, (size_t)size, key->bytes);
    free(text);
    return 0;
}

int engine_disk_open(struct engine *engine, struct mo_error *error) {
    const struct engine_options *o = &engine->options;
    struct disk_options options = {.folder = o->cache_folder, .limit_bytes = o->cache_disk_gib * GIB};
    struct mo_error reason = {0};
    struct disk_stats stats;
    char hash[65];
    if (!o->cache_folder || !engine->backend->ops->page_out) return 0;
    int code = checkpoint_hash(&engine->checkpoint, 0, hash, error);
    if (!code) code = make_key(engine, hash, &options.key, error);
    if (code) return code;
    options.page_bytes = kv_pool_bytes(&engine->model, (enum kv_format)(o->kv - 1), 1, 1);
    double start_s = clock_now_s();
    if (disk_open(&engine->disk, &options, &reason)) {
        log_warn("--prefix-cache-dir: %s; going on without it", reason.message);
        return 0;
    }
    disk_stats_get(engine->disk, &stats);
    log_info("prefix cache in %s: %llu pages, %.2f of %.2f GiB, listed in %.2f s", o->cache_folder,
             (unsigned long long)stats.files, (double)stats.bytes / GIB, o->cache_disk_gib, clock_now_s() - start_s);
    return 0;
}

static void wake(void *context) {
    sched_wake(context);
}

int engine_disk_start(struct engine *engine, struct mo_error *error) {
    return engine->disk ? disk_start(engine->disk, wake, engine->sched, error) : 0;
}

void engine_disk_stop(struct engine *engine) {
    if (!engine->disk) return;
    if (engine->sched) sched_save(engine->sched, SAVE_S);
    disk_stop(engine->disk);
}
