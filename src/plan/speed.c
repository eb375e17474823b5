#include "plan/speed.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include "plan/ranks.h"

static struct plan_part *add(struct plan_speed *s, const char *what, enum plan_device device, enum plan_work work,
                             int stage, double amount, double rate, double share) {
    assert(s->n_parts < PLAN_MAX_PARTS);
    struct plan_part *part = &s->parts[s->n_parts];
    if (!(amount > 0) || !(rate > 0)) return part; /* nothing to do, or nobody knows how fast: written over */
    *part = (struct plan_part){what, device, work, stage, amount, rate, share, amount / rate, amount / rate / share};
    s->n_parts++;
    return part;
}

/* A number of waits of `seconds` each, which come on top of everything. What the hardware does not impose is no limit. */
static void add_wait(struct plan_speed *s, const char *what, double count, double seconds, bool is_limit) {
    if (seconds <= 0 || count <= 0) return;
    struct plan_part *part = add(s, what, PLAN_ON_WAY, PLAN_WAIT, 0, count, 1 / seconds, 1);
    if (!is_limit) part->limit_s = 0;
}

static double device_limit(const struct plan_speed *s, enum plan_device device) {
    double of[3] = {0};
    for (int i = 0; i < s->n_parts; i++) {
        if (s->parts[i].device == device) of[s->parts[i].work] += s->parts[i].limit_s;
    }
    return fmax(of[PLAN_BYTES], of[PLAN_OPS]) + of[PLAN_WAIT];
}

static double stage_expected(const struct plan_speed *s, enum plan_device device, int stage) {
    double of[3] = {0};
    for (int i = 0; i < s->n_parts; i++) {
        const struct plan_part *part = &s->parts[i];
        if (part->device == device && part->stage == stage) of[part->work] += part->expected_s;
    }
    return fmax(of[PLAN_BYTES], of[PLAN_OPS]) + of[PLAN_WAIT];
}

static void sum_up(struct plan_speed *s) {
    double expected[PLAN_DEVICES] = {0}, limit = 0, way = 0;
    s->bytes = 0;
    for (int d = 0; d < PLAN_DEVICES; d++) {
        for (int stage = 0; stage < PLAN_MAX_PARTS; stage++) {
            expected[d] += stage_expected(s, (enum plan_device)d, stage);
        }
        double time = device_limit(s, (enum plan_device)d);
        if (d == PLAN_ON_WAY) {
            way = time;
        } else {
            limit = fmax(limit, time);
        }
    }
    for (int i = 0; i < s->n_parts; i++) {
        const struct plan_part *part = &s->parts[i];
        if (part->work == PLAN_BYTES && (part->device == PLAN_ON_GPU || part->device == PLAN_ON_CPU))
            s->bytes += part->amount;
    }
    double compute = expected[PLAN_ON_GPU] + expected[PLAN_ON_CPU] + expected[PLAN_ON_LINK] + expected[PLAN_ON_WAY];
    s->limit_s = limit + way;
    s->expected_s = compute + expected[PLAN_ON_SSD];
    s->overlapped_s = fmax(compute, expected[PLAN_ON_SSD]);
}

/* ---- what there is to do ---- */

/* One step or one chunk, in the whole. */
struct job {
    const struct plan_input *in;
    const struct plan_memory *memory;
    int rows;                    /* of a step */
    double depth;                /* tokens before it; of a prompt's chunks the middle */
    double steps;                /* a prompt has several */
    double fixed, routed, cache; /* bytes */
    double tables;               /* bytes of pages of n-gram tables */
    double ops[PLAN_GROUPS], pair_ops;
};

/* A product and a sum for each weight and token; only `logits` tokens meet the head. */
static void count_ops(struct job *job, double tokens, double logits) {
    const struct plan_arch *arch = &job->in->arch;
    for (int g = 0; g < PLAN_GROUPS; g++) {
        bool head = g == PLAN_HEAD || (g == PLAN_EMBEDDING && arch->tied_embedding);
        bool is_looked_up = g == PLAN_EMBEDDING || g == PLAN_NORM || g == PLAN_TABLES;
        double rows = head ? logits : is_looked_up ? 0 : tokens;
        if (g == PLAN_ROUTED && arch->experts) rows = tokens * arch->top_k / arch->experts;
        job->ops[g] = 2 * rows * job->in->weights.params[g];
    }
}

/* Of all matrices but the routed experts. */
static double fixed_ops(const struct job *job) {
    double sum = 0;
    for (int g = 0; g < PLAN_GROUPS; g++) sum += g == PLAN_ROUTED ? 0 : job->ops[g];
    return sum;
}

static struct job decode_job(const struct plan_input *in, const struct plan_memory *memory, int batch, int depth) {
    const struct plan_arch *arch = &in->arch;
    struct job job = {
        .in = in,
        .memory = memory,
        .rows = batch,
        .depth = depth,
        .steps = 1,
        .fixed = plan_weights_fixed_bytes(arch, &in->weights),
        .routed = plan_weights_routed_bytes(arch, &in->weights, batch),
        .cache = batch * plan_arch_read_bytes(arch, in->wish.kv, depth),
        .tables = (double)batch * plan_arch_table_reads(arch) * PLAN_TABLE_READ_BYTES,
        .pair_ops = batch * plan_arch_query_ops(arch, depth),
    };
    count_ops(&job, batch, batch);
    return job;
}

/* A whole prompt: each chunk reads the weights, and the cache of what came before it. */
static struct job prefill_job(const struct plan_input *in, const struct plan_memory *memory, int tokens) {
    const struct plan_arch *arch = &in->arch;
    int chunk = in->wish.batched_tokens < tokens ? in->wish.batched_tokens : tokens;
    double chunks = ceil((double)tokens / chunk);
    struct job job = {
        .in = in,
        .memory = memory,
        .rows = chunk,
        .depth = tokens / 2.0,
        .steps = chunks,
        .fixed = chunks * plan_weights_fixed_bytes(arch, &in->weights),
        .routed = chunks * plan_weights_routed_bytes(arch, &in->weights, chunk),
        .cache = chunks * plan_arch_chunk_bytes(arch, in->wish.kv, tokens / 2.0),
        .tables = (double)tokens * plan_arch_table_reads(arch) * PLAN_TABLE_READ_BYTES,
        .pair_ops = plan_arch_prompt_ops(arch, tokens),
    };
    count_ops(&job, tokens, 1);
    return job;
}

/* ---- cards ---- */

static int shared_ways(const struct plan_input *in, bool gpu) {
    int cards = gpu ? in->machine.gpu.count : 1;
    return cards > 1 ? cards : in->machine.nodes;
}

/* What sharing costs: messages of each step between `ways` neighbours. `rows` residuals of 16 bits cross each time. */
static void add_links(const struct job *job, struct plan_speed *s, bool gpu) {
    const struct plan_machine *machine = &job->in->machine;
    const struct plan_arch *arch = &job->in->arch;
    int ways = shared_ways(job->in, gpu), cards = gpu ? machine->gpu.count : 1;
    double gb_s = cards > 1 ? machine->gpu.link_gb_s : machine->network_gb_s;
    double hop_s = cards > 1 ? plan_share(PLAN_LINK_S) : machine->network_s, row = 2.0 * arch->hidden * job->rows;
    if (cards > 1 && machine->nodes > 1 && machine->network_gb_s > 0) {
        add_wait(s, "from machine to machine", job->steps * machine->nodes,
                 machine->network_s + row / (machine->network_gb_s * 1e9), true);
    }
    if (ways < 2 || gb_s <= 0 || plan_shares_experts(job->in)) return;
    double part = (double)(ways - 1) / ways, transfer_s = row / (gb_s * 1e9);
    if (machine->parallel == PLAN_PARALLEL_TENSOR) {
        add_wait(s, "two all-reduces a layer", job->steps * 2 * arch->layers, 2 * hop_s + 2 * part * transfer_s, true);
    } else if (machine->parallel == PLAN_PARALLEL_EXPERT) {
        double copies = fmin(arch->top_k, ways) * part;
        add_wait(s, "two all-to-alls a layer", job->steps * 2 * plan_arch_moe_layers(arch), hop_s + copies * transfer_s,
                 true);
    } else {
        add_wait(s, "from stage to stage", job->steps * ways, hop_s + transfer_s, true);
    }
}

/* How many times faster a part is when it is shared: rows of weights, experts, or sequences. */
struct gain {
    double fixed, routed, cache;
};

static struct gain shared_gain(const struct plan_input *in, int ways, int rows) {
    if (in->machine.parallel == PLAN_PARALLEL_TENSOR) {
        return (struct gain){ways, ways, plan_arch_is_latent(&in->arch) ? 1 : ways};
    }
    if (in->machine.parallel == PLAN_PARALLEL_EXPERT) {
        double spread =
            fmin(rows, ways); /* sequences are dealt out; each card reads the rest of the weights for its own */
        return (struct gain){1, ways, spread};
    }
    return (struct gain){1, 1, 1};
}

/* Of one step, as backend/cuda/stages.c launches them; that prompts take a few more is not to be seen beside what they compute. */
static double count_launches(const struct plan_input *in, int rows, double depth) {
    enum { FEW_ROWS = 8 }; /* more: absorbing the queries is a kernel of its own, and so is routing */
    enum { HYBRID = 16, COMPRESSOR = 2, KEYS = 1, CHOICE = 3 }; /* V4, V4.1 */
    enum { TABLE = 2, NARROWING = 1 };                          /* V4.1 */
    enum { INDEXER = 2, SPARSE_CHOICE = 4 };                    /* V3.2 */
    const struct plan_arch *arch = &in->arch;
    const struct plan_format *shared = &in->weights.format[PLAN_SHARED], *routed = &in->weights.format[PLAN_ROUTED];
    const struct plan_hybrid *h = &arch->hybrid;
    const bool few = rows <= FEW_ROWS, joins = few && !strcmp(shared->name, routed->name);
    double routing = joins ? 0 : plan_arch_moe_layers(arch);
    if (plan_arch_is_hybrid(arch)) {
        double count = arch->layers * HYBRID + routing + h->tables * TABLE;
        for (int i = 0; i < PLAN_RATIOS; i++) {
            const struct plan_ratio *r = &h->ratios[i];
            count += r->makers * (COMPRESSOR + (r->choosers ? KEYS : 0) - (r->ratio == 1)); /* one token: no sums */
            if (r->choosers && depth / r->ratio > h->index_topk)
                count += r->choosers * CHOICE + (r->narrowed ? NARROWING : 0);
        }
        return count;
    }
    double a_layer = plan_share(PLAN_GPU_LAUNCHES) + (arch->q_lora > 0) + !few;
    if (arch->index_topk) a_layer += INDEXER + (depth > arch->index_topk ? SPARSE_CHOICE : 0);
    return arch->layers * a_layer + routing;
}

/* The host's, wherever the rest is computed. */
static void add_tables(const struct job *job, struct plan_speed *s, int stage) {
    add(s, "rows of n-gram tables, disk", PLAN_ON_SSD, PLAN_BYTES, stage, job->tables, job->in->machine.ssd_gb_s * 1e9,
        plan_share(PLAN_SSD));
}

static void add_gpu(const struct job *job, struct plan_speed *s, bool experts) {
    const struct plan_gpu *gpu = &job->in->machine.gpu;
    struct gain gain = shared_gain(job->in, shared_ways(job->in, true), job->rows);
    double rate = gpu->gb_s * 1e9, ops = gpu->tflops * 1e12, share = plan_share(PLAN_GPU_MEMORY);
    add(s, "weights outside of the experts, card memory", PLAN_ON_GPU, PLAN_BYTES, 0, job->fixed, rate * gain.fixed,
        share);
    if (experts)
        add(s, "routed experts, card memory", PLAN_ON_GPU, PLAN_BYTES, 0, job->routed, rate * gain.routed, share);
    add(s, "latent cache, card memory", PLAN_ON_GPU, PLAN_BYTES, 0, job->cache, rate * gain.cache, share);
    share = plan_share(PLAN_GPU_OPS);
    add(s, "matrices outside of the experts", PLAN_ON_GPU, PLAN_OPS, 0, fixed_ops(job), ops * gain.fixed, share);
    if (experts) add(s, "experts", PLAN_ON_GPU, PLAN_OPS, 0, job->ops[PLAN_ROUTED], ops * gain.routed, share);
    add(s, "attention", PLAN_ON_GPU, PLAN_OPS, 0, job->pair_ops, ops * gain.fixed, share);
    double launches = job->steps * count_launches(job->in, job->rows, job->depth);
    add_wait(s, "between kernels", launches, plan_share(PLAN_GPU_LAUNCH_S), false);
    add_tables(job, s, 0);
    add_links(job, s, true);
}

/* ---- processor ---- */

double plan_hit_rate(const struct plan_input *in, const struct plan_memory *memory) {
    bool disk = memory->place == PLAN_IN_GPU_RAM_SSD || memory->place == PLAN_IN_RAM_SSD;
    if (!disk) return 1;
    if (in->machine.hit_rate >= 0) return in->machine.hit_rate;
    return in->machine.curve.n ? plan_curve_at(&in->machine.curve, memory->held) : memory->held;
}

/* What is not in RAM is read from disk to RAM, and then from there. */
static void add_ssd(const struct job *job, struct plan_speed *s) {
    double missed = job->routed * (1 - plan_hit_rate(job->in, job->memory));
    add(s, "experts that are not in RAM, disk", PLAN_ON_SSD, PLAN_BYTES, 0, missed, job->in->machine.ssd_gb_s * 1e9,
        plan_share(PLAN_SSD));
}

/* Integer weights meet activations in 8 bits, others are widened to floats. */
static enum plan_constant ops_share_of(const struct plan_format *format) {
    if (format->kernel >= PLAN_K_BLOCKS) return PLAN_CPU_OPS_BLOCKS;
    return format->kernel == PLAN_K_4BIT || !strcmp(format->name, "int8") ? PLAN_CPU_OPS8 : PLAN_CPU_OPS;
}

/* Of 16-bit and FP8 weights, and of attention. */
static double rate_of_floats(const struct plan_machine *machine, bool is_f32) {
    return (is_f32 || machine->cpu_gops16 <= 0 ? machine->cpu_gflops : machine->cpu_gops16) * 1e9;
}

static double ops_rate_of(const struct plan_machine *machine, const struct plan_format *format) {
    const bool is_float = ops_share_of(format) == PLAN_CPU_OPS;
    return is_float ? rate_of_floats(machine, format->kernel == PLAN_K_F32) : machine->cpu_gops8 * 1e9;
}

/* The host copies what it sends: a byte is read, written, and read again. */
static double link_gb_s(const struct plan_machine *machine) {
    const double link = machine->gpu.host_gb_s * plan_share(PLAN_HOST_LINK);
    return machine->ram_gb_s > 0 ? fmin(link, machine->ram_gb_s / 3) : link;
}

int plan_link_rows(const struct plan_arch *arch, const struct plan_weights *weights,
                   const struct plan_machine *machine) {
    const struct plan_format *format = &weights->format[PLAN_ROUTED];
    const double rate = ops_rate_of(machine, format) * plan_share(ops_share_of(format));
    const double ops_a_row = 2 * weights->params[PLAN_ROUTED] * arch->top_k / arch->experts;
    const double rows = weights->bytes[PLAN_ROUTED] / (link_gb_s(machine) * 1e9) * rate / ops_a_row;
    const int n = rows < PLAN_LINK_ROWS_LEAST ? PLAN_LINK_ROWS_LEAST : (int)fmin(rows, 1 << 20) + 1;
    const int step = 1 << (31 - __builtin_clz((unsigned)n)) >> 2; /* an estimate, by a clock that changes a little */
    return (n + step - 1) / step * step;
}

bool plan_takes_link(const struct plan_input *in, enum plan_place place, int rows) {
    return (place == PLAN_IN_GPU_RAM || place == PLAN_IN_GPU_RAM_SSD) && in->machine.gpu.host_gb_s > 0 &&
           !plan_shares_experts(in) && rows >= plan_link_rows(&in->arch, &in->weights, &in->machine);
}

/* Operations of the processor on weights of one group. */
static void add_cpu_ops(const struct job *job, struct plan_speed *s, const char *what, enum plan_group group, int stage,
                        double gain) {
    const struct plan_format *format = &job->in->weights.format[group];
    const double rate = ops_rate_of(&job->in->machine, format);
    add(s, what, PLAN_ON_CPU, PLAN_OPS, stage, job->ops[group], rate * gain, plan_share(ops_share_of(format)));
}

/* The same with a share of the routed experts. */
static struct job part_of(const struct job *job, double share) {
    struct job part = *job;
    part.routed *= share;
    part.ops[PLAN_ROUTED] *= share;
    return part;
}

/* Routed experts of several machines: a layer waits for the one that has most to do, and for its rows to go there and back.
 * Evenly shared is the limit; chance is not even. */
static void add_ranks(const struct job *job, struct plan_speed *s, int stage, double share) {
    const struct plan_input *in = job->in;
    const struct plan_arch *arch = &in->arch;
    int sizes[PLAN_MAX_RANKS], count = in->machine.nodes, most = 0;
    double rate = in->machine.ram_gb_s * 1e9, met = plan_arch_distinct_experts(arch, job->rows);
    struct plan_exchange exchange;
    plan_ranks_deal(in, job->memory->place == PLAN_IN_GPU_RAM, sizes);
    for (int r = 0; r < count; r++) most = sizes[r] > most ? sizes[r] : most;
    double even = (double)most / arch->experts, busiest = fmax(plan_ranks_busiest(sizes, count, met) / met, even);
    add(s, "routed experts of one machine, RAM", PLAN_ON_CPU, PLAN_BYTES, stage, job->routed * even, rate, share);
    if (busiest > even) {
        add(s, "more of them on the busiest machine, RAM", PLAN_ON_CPU, PLAN_BYTES, stage,
            job->routed * (busiest - even), rate, share)
            ->limit_s = 0;
    }
    add_cpu_ops(job, s, "experts", PLAN_ROUTED, stage, 1 / even);
    plan_ranks_exchange(arch, sizes, count, job->rows, &exchange);
    double bytes = (exchange.sent_bytes + exchange.received_bytes) / exchange.pieces;
    add_wait(s, "rows to the other machines and back", job->steps * plan_arch_moe_layers(arch) * exchange.pieces,
             2 * in->machine.network_s + bytes / (in->machine.network_gb_s * 1e9), true);
}

static void add_ram_experts(const struct job *job, struct plan_speed *s) {
    const struct plan_machine *machine = &job->in->machine;
    int ways = machine->parallel == PLAN_PARALLEL_PIPELINE ? 1 : machine->nodes;
    if (plan_shares_experts(job->in)) {
        add_ranks(job, s, 0, plan_share(PLAN_RAM_EXPERTS));
        return;
    }
    add(s, "routed experts, RAM", PLAN_ON_CPU, PLAN_BYTES, 0, job->routed, machine->ram_gb_s * 1e9 * ways,
        plan_share(PLAN_RAM_EXPERTS));
    add_cpu_ops(job, s, "experts", PLAN_ROUTED, 0, ways);
    add_ssd(job, s);
}

/* The mean share of the memory's speed, by what the weights are stored in: times add up. */
static double cpu_share(const struct plan_weights *weights, bool routed) {
    double bytes = 0, time = 0;
    for (int i = 0; i < PLAN_GROUPS; i++) {
        if (i == PLAN_EMBEDDING || i == PLAN_NORM || i == PLAN_TABLES || (i == PLAN_ROUTED) != routed) continue;
        bytes += weights->bytes[i];
        time += weights->bytes[i] / plan_share(plan_cpu_share_of(weights->format[i].kernel));
    }
    return time > 0 ? bytes / time : plan_share(PLAN_CPU_16BIT);
}

static void add_cpu(const struct job *job, struct plan_speed *s) {
    const struct plan_machine *machine = &job->in->machine;
    const struct plan_weights *weights = &job->in->weights;
    struct gain gain = shared_gain(job->in, shared_ways(job->in, false), job->rows);
    double rate = machine->ram_gb_s * 1e9;
    add(s, "weights outside of the experts, RAM", PLAN_ON_CPU, PLAN_BYTES, 0, job->fixed, rate * gain.fixed,
        cpu_share(weights, false));
    static const char *const names[PLAN_GROUPS] = {
        "attention's matrices", "kv_b", "dense", "shared experts", NULL, "router", "head",
        "head (the embedding)", NULL,   NULL};
    for (int g = 0; g < PLAN_GROUPS; g++) {
        if (names[g]) add_cpu_ops(job, s, names[g], (enum plan_group)g, 0, gain.fixed);
    }
    if (plan_shares_experts(job->in)) {
        add_ranks(job, s, 1, cpu_share(weights, true));
    } else {
        add(s, "routed experts, RAM", PLAN_ON_CPU, PLAN_BYTES, 1, job->routed, rate * gain.routed,
            cpu_share(weights, true));
        add_cpu_ops(job, s, "experts", PLAN_ROUTED, 1, gain.routed);
    }
    add(s, "latent cache, RAM", PLAN_ON_CPU, PLAN_BYTES, 2, job->cache, rate * gain.cache, plan_share(PLAN_CPU_CACHE));
    add(s, "attention", PLAN_ON_CPU, PLAN_OPS, 2, job->pair_ops,
        rate_of_floats(machine, job->in->wish.kv == KV_F32) * gain.fixed, plan_share(PLAN_CPU_OPS));
    add_ssd(job, s);
    add_tables(job, s, 1);
    add_links(job, s, false);
}

static void time_job(const struct job *job, struct plan_speed *s) {
    double share = plan_card_share(job->in, job->memory);
    struct job on_card = part_of(job, share), beside = part_of(job, 1 - share);
    switch (job->memory->place) {
    case PLAN_IN_GPU:
        add_gpu(job, s, true);
        break;
    case PLAN_IN_GPU_RAM:
    case PLAN_IN_GPU_RAM_SSD:
        add_gpu(&on_card, s, share > 0);
        add_ram_experts(&beside, s);
        break;
    default:
        add_cpu(job, s);
        break;
    }
    sum_up(s);
}

void plan_decode(const struct plan_input *input, const struct plan_memory *memory, int batch, int depth,
                 struct plan_speed *speed) {
    struct job job = decode_job(input, memory, batch, depth);
    *speed = (struct plan_speed){.batch = batch, .depth = depth, .tokens = batch};
    time_job(&job, speed);
}

bool plan_prefill_known(const struct plan_input *input, const struct plan_memory *memory) {
    return memory->place == PLAN_IN_GPU || input->machine.cpu_gflops > 0 ||
           plan_takes_link(input, memory->place, input->wish.batched_tokens);
}

/* Experts in RAM, long chunks: the card computes them too, when they have come over its link (backend/cuda/link.c). */
static void time_linked(const struct job *job, struct plan_speed *s) {
    const struct plan_machine *machine = &job->in->machine;
    double share = plan_card_share(job->in, job->memory), all = job->in->weights.bytes[PLAN_ROUTED] * (1 - share);
    struct job on_card = part_of(job, share), beside = part_of(job, 1 - share);
    add_gpu(&on_card, s, share > 0);
    beside.routed = job->steps * all; /* nobody waits to know which experts are met */
    add_ssd(&beside, s);
    add(s, "routed experts, over the card's link", PLAN_ON_LINK, PLAN_BYTES, 0, beside.routed,
        machine->gpu.host_gb_s * 1e9, link_gb_s(machine) / machine->gpu.host_gb_s);
    add(s, "experts that came", PLAN_ON_GPU, PLAN_OPS, 0, beside.ops[PLAN_ROUTED], machine->gpu.tflops * 1e12,
        plan_share(PLAN_GPU_OPS));
    sum_up(s);
}

void plan_prefill(const struct plan_input *input, const struct plan_memory *memory, int tokens,
                  struct plan_speed *speed) {
    struct job job = prefill_job(input, memory, tokens);
    *speed = (struct plan_speed){.batch = 1, .tokens = tokens};
    (plan_takes_link(input, memory->place, job.rows) ? time_linked : time_job)(&job, speed);
}

double plan_check_limit(double active_params, double bits, double gb_s) {
    return gb_s * 1e9 / (active_params * bits / 8);
}

void plan_predict_cpu(const struct plan_cpu_case *the_case, int batch, int depth, struct plan_speed *speed) {
    struct plan_input in = {
        .arch = *the_case->arch,
        .weights = *the_case->weights,
        .machine = {.ram_gb_s = the_case->read_gb_s,
                    .cpu_gflops = the_case->gflops,
                    .cpu_gops16 = the_case->gops16,
                    .cpu_gops8 = the_case->gops8,
                    .ssd_gb_s = the_case->ssd_gb_s,
                    .hit_rate = the_case->hit_rate,
                    .nodes = 1,
                    .parallel = PLAN_PARALLEL_PIPELINE},
        .wish = {.kv = the_case->kv},
    };
    struct plan_memory memory = {.place = the_case->ssd_gb_s > 0 ? PLAN_IN_RAM_SSD : PLAN_IN_RAM, .held = 1};
    struct job job = decode_job(&in, &memory, batch, depth);
    if (the_case->routed_bytes >= 0) job.routed = the_case->routed_bytes;
    if (the_case->cache_rows >= 0 && depth > 0)
        job.cache = the_case->cache_rows * plan_arch_read_bytes(&in.arch, in.wish.kv, depth) / depth;
    *speed = (struct plan_speed){.batch = batch, .depth = depth, .tokens = batch};
    time_job(&job, speed);
}
