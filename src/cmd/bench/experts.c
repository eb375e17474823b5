#include "cmd/bench/experts.h"

#include <stdio.h>
#include <stdlib.h>
#include "base/clock.h"

enum { DISK_READS = 8, DISK_READ_BYTES = 8 << 20 };
static const double DISK_S = 1;

void bench_experts_begin(struct bench_experts *e, const struct engine *engine) {
    *e = (struct bench_experts){.is_on = engine->store, .has_ranks = engine->has_ranks, .s = -clock_now_s()};
    ranks_stats_get(&e->ranks);
    if (e->is_on) store_stats_get(engine->store, &e->sum);
}

void bench_experts_end(struct bench_experts *e, const struct engine *engine, double tokens) {
    struct store_stats now, *sum = &e->sum;
    e->s += clock_now_s();
    e->tokens = tokens;
    struct ranks_stats ranks;
    ranks_stats_get(&ranks);
    e->ranks = (struct ranks_stats){.exchanges = ranks.exchanges - e->ranks.exchanges,
                                    .sent_bytes = ranks.sent_bytes - e->ranks.sent_bytes,
                                    .received_bytes = ranks.received_bytes - e->ranks.received_bytes,
                                    .wait_s = ranks.wait_s - e->ranks.wait_s};
    if (!e->is_on) return;
    store_stats_get(engine->store, &now);
    *sum = (struct store_stats){.hits = now.hits - sum->hits,
                                .misses = now.misses - sum->misses,
                                .read_bytes = now.read_bytes - sum->read_bytes,
                                .predicted = now.predicted - sum->predicted,
                                .used = now.used - sum->used,
                                .wasted = now.wasted - sum->wasted,
                                .wait_s = now.wait_s - sum->wait_s,
                                .read_s = now.read_s - sum->read_s,
                                .is_direct = now.is_direct};
}

/* ---- the disk alone ---- */

struct disk {
    struct stream *stream;
    struct stream_read reads[DISK_READS];
    struct stream_part parts[DISK_READS];
    uint8_t *memory; /* [DISK_READS][DISK_READ_BYTES] */
    int64_t at, size;
};

/* On from where the last one ended; at the file's end from its start. */
static void begin_read(struct disk *disk, int i) {
    if (disk->at + DISK_READ_BYTES > disk->size) disk->at = 0;
    int64_t left = disk->size - disk->at;
    disk->parts[i] =
        (struct stream_part){.offset = disk->at, .bytes = left < DISK_READ_BYTES ? (size_t)left : DISK_READ_BYTES};
    disk->reads[i] =
        (struct stream_read){.parts = &disk->parts[i], .n_parts = 1, .to = disk->memory + (size_t)i * DISK_READ_BYTES};
    disk->at += (int64_t)disk->parts[i].bytes;
    stream_begin(disk->stream, &disk->reads[i], STREAM_NOW);
}

static int read_for_a_while(struct disk *disk, double *gb_s, struct mo_error *error) {
    double start = clock_now_s(), bytes = 0;
    int code = 0;
    for (int i = 0; i < DISK_READS; i++) begin_read(disk, i);
    for (int i = 0; !code && clock_now_s() - start < DISK_S; i = (i + 1) % DISK_READS) {
        code = stream_wait(disk->stream, &disk->reads[i], error);
        bytes += (double)disk->parts[i].bytes;
        *gb_s = bytes * 1e-9 / (clock_now_s() - start);
        if (!code) begin_read(disk, i);
    }
    return code;
}

static const struct shard *largest_shard(const struct checkpoint *checkpoint) {
    const struct shard *largest = checkpoint->shards;
    for (int i = 1; i < checkpoint->n_shards; i++) {
        if (checkpoint->shards[i].map.size > largest->map.size) largest = &checkpoint->shards[i];
    }
    return largest;
}

int bench_experts_read_disk(const struct engine *engine, double *gb_s, struct mo_error *error) {
    const struct shard *shard = largest_shard(&engine->checkpoint);
    struct stream_options options = {.paths = &shard->path, .n_paths = 1};
    struct disk disk = {.size = (int64_t)shard->map.size};
    disk.at = disk.size / 2 / STREAM_ALIGN * STREAM_ALIGN;
    disk.memory = aligned_alloc(STREAM_ALIGN, (size_t)DISK_READS * DISK_READ_BYTES);
    int code = disk.memory ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for measuring the disk");
    if (!code) code = stream_open(&disk.stream, &options, error);
    if (!code) code = read_for_a_while(&disk, gb_s, error);
    stream_close(disk.stream);
    free(disk.memory);
    return code;
}

/* ---- in words ---- */

double bench_experts_hit_rate(const struct bench_experts *e) {
    uint64_t all = e->sum.hits + e->sum.misses;
    return all ? (double)e->sum.hits / (double)all : 0;
}

double bench_experts_gb_s(const struct bench_experts *e) {
    return e->sum.read_s > 0 ? (double)e->sum.read_bytes * 1e-9 / e->sum.read_s : 0;
}

static void say_ranks(const struct bench_experts *e) {
    const struct ranks_stats *s = &e->ranks;
    if (!e->has_ranks || !s->exchanges) return;
    double n = (double)s->exchanges;
    printf("       ranks: %.1f KB to and %.1f KB from the others an exchange; waited %.1f us for each, %.0f %% of the "
           "time\n",
           (double)s->sent_bytes * 1e-3 / n, (double)s->received_bytes * 1e-3 / n, s->wait_s * 1e6 / n,
           100 * s->wait_s / e->s);
    fflush(stdout);
}

void bench_experts_say(const struct bench_experts *e, double disk_gb_s) {
    const struct store_stats *s = &e->sum;
    say_ranks(e);
    if (!e->is_on) return;
    printf("       experts: %.1f %% were there; %.1f MB a token read at %.2f GB/s (%.0f %% of the disk's %.2f); "
           "waited %.0f %% of the time",
           100 * bench_experts_hit_rate(e), (double)s->read_bytes * 1e-6 / e->tokens, bench_experts_gb_s(e),
           100 * bench_experts_gb_s(e) / disk_gb_s, disk_gb_s, 100 * s->wait_s / e->s);
    if (s->predicted) {
        printf("; %.0f %% of %.1f read ahead a token were wanted", 100 * (double)s->used / (double)s->predicted,
               (double)s->predicted / e->tokens);
    }
    putchar('\n');
    fflush(stdout);
}

json_t *bench_ranks_json(const struct bench_experts *e) {
    const struct ranks_stats *s = &e->ranks;
    if (!e->has_ranks) return json_null();
    return json_pack("{sI sI sI sf sf}", "exchanges", (json_int_t)s->exchanges, "sent_bytes", (json_int_t)s->sent_bytes,
                     "received_bytes", (json_int_t)s->received_bytes, "wait_s", s->wait_s, "wait_share",
                     s->wait_s / e->s);
}

json_t *bench_experts_json(const struct bench_experts *e, double disk_gb_s) {
    const struct store_stats *s = &e->sum;
    if (!e->is_on) return json_null();
    return json_pack("{sI sI sf sI sf sf sf sf sf sI sI sI sb}", "hits", (json_int_t)s->hits, "misses",
                     (json_int_t)s->misses, "hit_rate", bench_experts_hit_rate(e), "read_bytes",
                     (json_int_t)s->read_bytes, "read_bytes_per_token", (double)s->read_bytes / e->tokens, "read_gb_s",
                     bench_experts_gb_s(e), "disk_gb_s", disk_gb_s, "wait_s", s->wait_s, "wait_share", s->wait_s / e->s,
                     "predicted", (json_int_t)s->predicted, "predicted_used", (json_int_t)s->used, "predicted_wasted",
                     (json_int_t)s->wasted, "direct_io", s->is_direct);
}
