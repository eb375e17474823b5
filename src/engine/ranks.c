#include "engine/ranks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "backend/cpu/kern.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/pool.h"

static const double GIB = 1 << 30;
enum { PIECE_PAIRS = 1024 };

/* What rank 0 hears, but for the exchange of a layer. */
union message {
    struct wire_head head;
    struct wire_hello hello;
    struct wire_failed failed;
    uint8_t room[8192]; /* another version's may be longer, and is told so */
};

/* ---- who gets what ---- */

void engine_ranks_share(const double *memory, int count, double experts_bytes, double *shares) {
    bool fits = true;
    for (int r = 0; r < count; r++) fits &= memory[r] >= experts_bytes / count;
    for (int r = 0; r < count; r++) shares[r] = fits ? 1 : memory[r] > 0 ? memory[r] : 0;
}

/* Each expert goes to the rank that is furthest behind its share. */
void engine_ranks_deal(const double *shares, int count, int experts, uint8_t *owner) {
    int dealt[RANKS_MAX] = {0};
    double all = 0;
    for (int r = 0; r < count; r++) all += shares[r];
    for (int e = 0; e < experts; e++) {
        int best = 0;
        double most = -INFINITY;
        for (int r = 0; r < count; r++) {
            double behind = shares[r] / all * (e + 1) - dealt[r];
            if (shares[r] > 0 && behind > most + 1e-9) {
                best = r;
                most = behind;
            }
        }
        owner[e] = (uint8_t)best;
        dealt[best]++;
    }
}

static int parse_shares(const char *text, double *shares, struct mo_error *error) {
    const char *at = text;
    char *end;
    double all = 0;
    int n = 0;
    bool is_good;
    do {
        double share = strtod(at, &end);
        is_good = end != at && share >= 0 && share <= 1e6 && (*end == ',' || !*end) && n < ranks_count();
        if (is_good) all += shares[n++] = share;
        at = end + 1;
    } while (is_good && *end);
    if (is_good && n == ranks_count() && all > 0) return 0;
    return mo_error_set(error, MO_E_INVALID,
                        "--expert-shares: expected a number for each of %d processes, as in 1,1; found \"%s\"",
                        ranks_count(), text);
}

static int experts_on_gpu(const char *device, struct mo_error *error) {
    return mo_error_set(
        error, MO_E_UNSUPPORTED,
        "--device %s: with several processes routed experts are computed by CPUs: add --expert-device cpu", device);
}

int engine_ranks_check(const struct engine_options *o, struct mo_error *error) {
    double shares[RANKS_MAX];
    char *end = NULL;
    bool has_cache = o->expert_cache && strcmp(o->expert_cache, "auto") && strtod(o->expert_cache, &end) != 0;
    bool is_on_gpu = o->device && !strncmp(o->device, "cuda", 4) && o->expert_device != EXPERTS_ON_CPU;
    if (ranks_count() == 1 && !o->expert_shares) return 0;
    if (ranks_count() == 1) {
        return mo_error_set(error, MO_E_INVALID, "--expert-shares is for several processes: mpirun -n 2 moebius ...");
    }
    const char *what = o->like                                              ? "--like"
                       : o->quantization && strcmp(o->quantization, "auto") ? "--quantization"
                       : has_cache                                          ? "--expert-cache"
                                                                            : NULL;
    if (what) {
        return mo_error_set(
            error, MO_E_UNSUPPORTED,
            "%s: with several processes experts are used where they lie in a file that each of them has "
            "(`moebius quantize` or `moebius synth` makes one)",
            what);
    }
    if (is_on_gpu) return experts_on_gpu(o->device, error);
    return o->expert_shares ? parse_shares(o->expert_shares, shares, error) : 0;
}

static double experts_bytes(const struct engine *engine, int owner) {
    const struct model *m = &engine->model;
    double bytes = 0;
    for (int l = m->dense_layers; l < m->layers; l++) {
        for (int e = 0; e < m->experts; e++) {
            const struct mlp *expert = &engine->weights.layers[l].experts[e];
            bool counts = owner < 0 || engine->split.owner[e] == owner;
            if (counts) bytes += (double)(mat_bytes(&expert->gate) + mat_bytes(&expert->up) + mat_bytes(&expert->down));
        }
    }
    return bytes;
}

/* Two levels have bits of their own for BF16 and FP8 (kern.h); experts of all other formats have the same ones everywhere. */
static bool depends_on_level(const struct mat *w) {
    return w->format == MAT_BF16 || w->format == MAT_FP8;
}

static const char *expert_bits(const struct engine *engine) {
    const struct model *m = &engine->model;
    enum cpu_level level;
    bool depends = false;
    for (int l = m->dense_layers; l < m->layers; l++) {
        for (int e = 0; e < m->experts; e++) {
            const struct mlp *expert = &engine->weights.layers[l].experts[e];
            depends |=
                depends_on_level(&expert->gate) || depends_on_level(&expert->up) || depends_on_level(&expert->down);
        }
    }
    if (!depends || cpu_level_get(&level, NULL)) return cpu_level_bits(CPU_REF);
    return cpu_level_bits(kern_level(level, engine->options.compute == COMPUTE_F32));
}

int engine_ranks_hello(const struct engine *engine, struct wire_hello *hello, struct mo_error *error) {
    *hello = (struct wire_hello){.head = {WIRE_MAGIC, WIRE_HELLO},
                                 .wire_version = WIRE_VERSION,
                                 .version = MOEBIUS_VERSION,
                                 .threads = engine->options.threads,
                                 .processors = pool_default_threads(),
                                 .machine_processors = (int32_t)sysconf(_SC_NPROCESSORS_ONLN),
                                 .memory_bytes = memory_available_bytes() * engine->options.memory_utilization};
    gethostname(hello->host, sizeof hello->host - 1);
    snprintf(hello->bits, sizeof hello->bits, "%s", expert_bits(engine));
    return checkpoint_hash(&engine->checkpoint, 0, hello->hash, error);
}

/* ---- rank 0 ---- */

static int not_the_same(int rank, const char *what, const char *theirs, const char *ours, struct mo_error *error) {
    return mo_error_set(error, MO_E_INVALID, "%s has another %s: %s, here %s", ranks_name(rank), what, theirs, ours);
}

static int check_hello(int rank, const struct wire_hello *theirs, const struct wire_hello *ours,
                       struct mo_error *error) {
    if (theirs->wire_version != ours->wire_version || strcmp(theirs->version, ours->version)) {
        char text[2][48];
        snprintf(text[0], sizeof text[0], "%.31s (messages %d)", theirs->version, theirs->wire_version);
        snprintf(text[1], sizeof text[1], "%s (messages %d)", ours->version, ours->wire_version);
        return not_the_same(rank, "version of Moebius", text[0], text[1], error);
    }
    if (strcmp(theirs->hash, ours->hash)) return not_the_same(rank, "model", theirs->hash, ours->hash, error);
    if (!strncmp(theirs->bits, ours->bits, sizeof ours->bits)) return 0;
    char text[sizeof theirs->bits];
    snprintf(text, sizeof text, "%.15s", theirs->bits);
    return not_the_same(rank, "way to compute (MOEBIUS_CPU=avx512, on all of them, is one)", text, ours->bits, error);
}

/* The next message of any of them, in `m`; what went wrong there becomes the error here. */
static int hear(int *rank, union message *m, struct mo_error *error) {
    size_t bytes;
    *rank = -1;
    memset(m, 0, sizeof *m);
    int code = ranks_receive(rank, m, sizeof *m, &bytes, 0, error);
    if (code || m->head.kind != WIRE_FAILED) return code;
    m->failed.host[WIRE_HOST - 1] = m->failed.text[sizeof m->failed.text - 1] = '\0';
    ranks_set_host(*rank, m->failed.host);
    return mo_error_set(error, m->failed.code, "%s: %s", ranks_name(*rank), m->failed.text);
}

static int hear_hellos(struct wire_hello *hellos, struct mo_error *error) {
    for (int left = ranks_count() - 1; left > 0; left--) {
        union message m;
        int rank, code = hear(&rank, &m, error);
        if (code) return code;
        if (m.head.kind != WIRE_HELLO) {
            return mo_error_set(error, MO_E_CORRUPT, "%s has sent a message of kind %u before it was ready",
                                ranks_name(rank), m.head.kind);
        }
        hellos[rank] = m.hello;
        hellos[rank].version[sizeof m.hello.version - 1] = hellos[rank].hash[64] = '\0';
        hellos[rank].host[WIRE_HOST - 1] = '\0';
        ranks_set_host(rank, hellos[rank].host);
        code = check_hello(rank, &hellos[rank], &hellos[0], error);
        if (code) return code;
    }
    return 0;
}

static int ranks_of_host(const struct wire_hello *hellos, const char *host) {
    int n = 0;
    for (int r = 0; r < ranks_count(); r++) n += !strcmp(hellos[r].host, host);
    return n;
}

/* Open MPI keeps each of two processes on one core unless it is told not to. */
static void look_at_binding(const struct wire_hello *hellos) {
    for (int r = 0; r < ranks_count(); r++) {
        const struct wire_hello *h = &hellos[r];
        int fair = h->machine_processors / ranks_of_host(hellos, h->host);
        if (h->processors >= fair || h->threads < h->processors) continue;
        log_warn("%s may use %d of %d processors: mpirun binds processes unless it is told --bind-to none",
                 ranks_name(r), h->processors, h->machine_processors);
    }
}

static void count_on_hosts(struct engine *engine, const struct wire_hello *hellos) {
    for (int r = 0; r < ranks_count(); r++) engine->split.on_host[r] = (uint8_t)ranks_of_host(hellos, hellos[r].host);
}

/* What each has room for; rank 0 needs the rest of the model too, unless that is on a GPU. */
static void memory_of_each(const struct engine *engine, const struct wire_hello *hellos, double *memory) {
    double rest = engine->gpu >= 0
                      ? 0
                      : (double)weights_file_bytes(&engine->checkpoint, &engine->model) - experts_bytes(engine, -1);
    for (int r = 0; r < ranks_count(); r++) {
        memory[r] = hellos[r].memory_bytes / engine->split.on_host[r] - (r == 0 ? rest : 0);
    }
}

static int split_experts(struct engine *engine, const struct wire_hello *hellos, struct mo_error *error) {
    double memory[RANKS_MAX], shares[RANKS_MAX], room = 0, all = experts_bytes(engine, -1);
    int n = ranks_count();
    count_on_hosts(engine, hellos);
    memory_of_each(engine, hellos, memory);
    for (int r = 0; r < n; r++) room += memory[r] > 0 ? memory[r] : 0;
    if (room < all) {
        log_warn("the routed experts take %.2f GiB, and %d processes have room for %.2f: they will be read from the "
                 "disk again "
                 "and again",
                 all / GIB, n, room / GIB);
    }
    if (engine->options.expert_shares) {
        int code = parse_shares(engine->options.expert_shares, shares, error);
        if (code) return code;
    } else {
        engine_ranks_share(memory, n, room < all ? 0 : all, shares);
    }
    engine->split.count = n;
    engine_ranks_deal(shares, n, engine->model.experts, engine->split.owner);
    engine->ranks_bytes = all - experts_bytes(engine, 0);
    return 0;
}

static void say_split(const struct engine *engine) {
    char text[1024] = "";
    for (int r = 0; r < engine->split.count; r++) {
        int n = 0;
        for (int e = 0; e < engine->model.experts; e++) n += engine->split.owner[e] == r;
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s%s %d (%.2f GiB)", r ? ", " : "", ranks_name(r), n,
                 experts_bytes(engine, r) / GIB);
    }
    log_info("%d routed experts of every layer: %s", engine->model.experts, text);
}

static int piece_pairs(const struct engine *engine) {
    const char *text = getenv("MOEBIUS_RANK_PAIRS"); /* for tests: small pieces */
    int pairs = text ? atoi(text) : PIECE_PAIRS;
    int64_t most = (int64_t)engine->options.max_num_batched_tokens * engine->model.top_k;
    return pairs < 1 ? 1 : pairs < most ? pairs : (int)most;
}

int engine_ranks_meet(struct engine *engine, struct mo_error *error) {
    struct wire_hello hellos[RANKS_MAX];
    if (ranks_count() == 1) return 0;
    if (!engine->model.experts || engine->model.layers <= engine->model.dense_layers) {
        return mo_error_set(error, MO_E_UNSUPPORTED,
                            "%s: the model has no routed experts that several processes could share", engine->path);
    }
    if (engine->gpu >= 0 && engine->options.expert_device != EXPERTS_ON_CPU) return experts_on_gpu("auto", error);
    int code = engine_ranks_hello(engine, &hellos[0], error);
    if (!code) ranks_set_host(0, hellos[0].host);
    if (!code) code = hear_hellos(hellos, error);
    if (!code) code = split_experts(engine, hellos, error);
    if (code) return code;
    engine->split.piece_pairs = piece_pairs(engine);
    look_at_binding(hellos);
    say_split(engine);
    return 0;
}

/* Until all are ready; each of them has to be heard of now and then. */
static int hear_ready(struct mo_error *error) {
    double heard_s[RANKS_MAX], patience_s = ranks_timeout_s();
    bool is_ready[RANKS_MAX] = {false};
    for (int r = 0; r < ranks_count(); r++) heard_s[r] = clock_now_s();
    for (int left = ranks_count() - 1; left > 0;) {
        union message m;
        int rank, code = hear(&rank, &m, error);
        if (code) return code;
        heard_s[rank] = clock_now_s();
        if (m.head.kind == WIRE_READY && !is_ready[rank]) {
            is_ready[rank] = true;
            left--;
        }
        for (int r = 1; r < ranks_count(); r++) {
            if (is_ready[r] || heard_s[rank] - heard_s[r] < patience_s) continue;
            return mo_error_set(error, MO_E_IO, "%s has said nothing for %g s (MOEBIUS_RANK_TIMEOUT)", ranks_name(r),
                                patience_s);
        }
    }
    return 0;
}

int engine_ranks_begin(struct engine *engine, const struct backend_options *backend, struct mo_error *error) {
    const struct ranks_split *split = &engine->split;
    if (ranks_count() == 1) return 0;
    struct wire_plan plan = {.head = {WIRE_MAGIC, WIRE_PLAN},
                             .max_rows = backend->max_rows,
                             .piece_pairs = split->piece_pairs,
                             .compute = backend->compute};
    memcpy(plan.owner, split->owner, sizeof plan.owner);
    memcpy(plan.on_host, split->on_host, sizeof plan.on_host);
    for (int r = 1; r < split->count; r++) {
        int code = ranks_send(r, &plan, sizeof plan, error);
        if (code) return code;
    }
    int code = hear_ready(error);
    if (code) return code;
    engine->has_ranks = true;
    return 0;
}

void engine_ranks_close(struct engine *engine) {
    struct mo_error error;
    for (int r = 1; engine->has_ranks && r < engine->split.count; r++) {
        if (ranks_send_kind(r, WIRE_CLOSE, &error)) ranks_give_up(&error);
    }
    engine->has_ranks = false;
}
