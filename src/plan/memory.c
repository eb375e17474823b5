#include "plan/memory.h"

#include <math.h>
#include <string.h>
#include "plan/efficiency.h"
#include "plan/ranks.h"

double plan_cache_budget(double available, double utilization, double weights, double scratch) {
    double memory = available * utilization, left = memory - weights - scratch, least = memory / 16;
    return left > least ? left : least;
}

const char *plan_place_name(enum plan_place place) {
    static const char *const names[PLAN_PLACES] = {"vram", "ram", "nvme", "cpu", "nvme"};
    return names[place];
}

const char *plan_place_text(enum plan_place place) {
    static const char *const texts[PLAN_PLACES] = {
        "everything in the memory of the cards", "routed experts in RAM, the rest on the card",
        "routed experts in RAM and on NVMe, the rest on the card", "everything in RAM, computed by the CPU",
        "in RAM and on NVMe, computed by the CPU"};
    return texts[place];
}

double plan_usable_ram(const struct plan_machine *machine, const struct plan_wish *wish) {
    if (machine->ram_measured) return machine->ram_bytes * wish->utilization;
    double system = fmin(plan_share(PLAN_SYSTEM_RAM), machine->ram_bytes / 8);
    return machine->ram_bytes - system;
}

/* What one of `ways` cards (or machines) holds of the work they share. A latent has one head, so those that split the heads
 * all keep the whole cache. */
static double on_each(const struct plan_input *in, int ways, double fixed, double routed, double kv) {
    switch (in->machine.parallel) {
    case PLAN_PARALLEL_EXPERT:
        return fixed + routed / ways + kv / ways;
    case PLAN_PARALLEL_TENSOR:
        return (fixed + routed) / ways + (plan_arch_is_latent(&in->arch) ? kv : kv / ways);
    case PLAN_PARALLEL_AUTO:
    case PLAN_PARALLEL_PIPELINE:
    case PLAN_PARALLEL_RANKS:
        break;
    }
    return (fixed + routed + kv) / ways;
}

static bool uses_gpu(enum plan_place place) {
    return place <= PLAN_IN_GPU_RAM_SSD;
}

static bool uses_ssd(enum plan_place place) {
    return place == PLAN_IN_GPU_RAM_SSD || place == PLAN_IN_RAM_SSD;
}

static double room_left(const struct plan_room *room) {
    return room->have_bytes - room->need_bytes;
}

double plan_card_share(const struct plan_input *in, const struct plan_memory *m) {
    if (m->place == PLAN_IN_GPU) return 1;
    return m->card_layers ? (double)m->card_layers / plan_arch_moe_layers(&in->arch) : 0;
}

/* Routed experts on the card, which may take more there than in the files; and elsewhere. */
static double routed_on_card(const struct plan_input *in, const struct plan_memory *m) {
    return plan_card_share(in, m) * (in->weights.bytes[PLAN_ROUTED] + in->weights.card_more[PLAN_ROUTED]);
}
static double routed_beside(const struct plan_input *in, const struct plan_memory *m) {
    return (1 - plan_card_share(in, m)) * in->weights.bytes[PLAN_ROUTED];
}

static double fixed_bytes(const struct plan_input *in, const struct plan_memory *m) {
    double more = uses_gpu(m->place) ? plan_weights_fixed_card_more(&in->weights) : 0;
    return plan_weights_total(&in->weights) - in->weights.bytes[PLAN_ROUTED] + more;
}

/* Machines that share routed experts alone: the first has the rest, in its RAM or on its card. */
static void fill_ranks(const struct plan_input *in, double kv, struct plan_memory *m) {
    double routed = in->weights.bytes[PLAN_ROUTED], fixed = fixed_bytes(in, m);
    double own = fixed + kv + m->scratch_bytes + m->graphs_bytes;
    int sizes[PLAN_MAX_RANKS], most = 0;
    plan_ranks_deal(in, uses_gpu(m->place), sizes);
    for (int r = 1; r < in->machine.nodes; r++) most = sizes[r] > most ? sizes[r] : most;
    m->held = 1;
    m->ram = m->other = (struct plan_room){.have_bytes = plan_usable_ram(&in->machine, &in->wish)};
    m->ram.need_bytes = routed * sizes[0] / in->arch.experts + (uses_gpu(m->place) ? 0 : own);
    m->other.need_bytes = routed * most / in->arch.experts + plan_ranks_message_bytes(&in->arch);
    m->gpu = (struct plan_room){0};
    if (!uses_gpu(m->place)) return;
    m->gpu = (struct plan_room){own, in->machine.gpu.memory_bytes * in->wish.utilization};
}

/* The rooms, with `kv` bytes of cache in the whole. Cards of one machine share its work; machines are a pipeline of layers,
 * unless each has one card at most: then they share as cards do. */
static void fill_rooms(const struct plan_input *in, double kv, struct plan_memory *m) {
    int nodes = in->machine.nodes, cards = uses_gpu(m->place) ? in->machine.gpu.count : 1;
    int ways = cards > 1 ? cards : nodes, stages = cards > 1 ? nodes : 1;
    double fixed = fixed_bytes(in, m), on_card = routed_on_card(in, m), beside = routed_beside(in, m);
    double own = m->scratch_bytes + m->graphs_bytes, in_ram = beside / nodes;
    if (plan_shares_experts(in)) {
        fill_ranks(in, kv, m);
        return;
    }
    m->gpu = m->ram = (struct plan_room){0};
    m->ram.have_bytes = plan_usable_ram(&in->machine, &in->wish);
    if (uses_gpu(m->place)) {
        m->gpu.have_bytes = in->machine.gpu.memory_bytes * in->wish.utilization;
        m->gpu.need_bytes = on_each(in, ways, fixed / stages, on_card / stages, kv / stages) + own;
        m->ram.need_bytes = in_ram;
    } else {
        m->ram.need_bytes = on_each(in, ways, fixed, beside, kv) + own;
    }
    m->held = 1;
    if (uses_ssd(m->place) && room_left(&m->ram) < 0 && in_ram > 0) { /* what RAM cannot hold stays on disk */
        double left = in_ram + room_left(&m->ram);
        m->held = left > 0 ? left / in_ram : 0;
        m->ram.need_bytes = left > 0 ? m->ram.have_bytes : m->ram.need_bytes - in_ram;
    }
}

static double headroom(const struct plan_memory *m) {
    double gpu = uses_gpu(m->place) ? room_left(&m->gpu) : INFINITY;
    double ram = m->place == PLAN_IN_GPU ? INFINITY : room_left(&m->ram);
    double other = m->other.have_bytes > 0 ? room_left(&m->other) : INFINITY;
    return fmin(fmin(gpu, ram), other);
}

/* Of a cache of so many tokens a sequence, what those that run take beside its tokens' share. */
static double running_bytes(const struct plan_input *in, int64_t context) {
    const struct plan_wish *wish = &in->wish;
    int64_t pages = (context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS * wish->seqs;
    return plan_arch_running_bytes(&in->arch, wish->kv, pages, wish->seqs, wish->batched_tokens);
}

static double scratch_at(const struct plan_input *in, enum plan_place place) {
    if (!uses_gpu(place) && in->cpu_scratch_bytes > 0) return in->cpu_scratch_bytes;
    const bool takes_link = plan_takes_link(in, place, in->wish.batched_tokens);
    return plan_scratch_bytes(&in->arch, &in->wish, uses_gpu(place)) +
           (takes_link ? plan_link_bytes(&in->arch, &in->weights) : 0);
}

/* Tokens of cache that fit: the memory which holds the cache, by what a token takes of it. */
static double tokens_beside(const struct plan_input *in, const struct plan_memory *m) {
    struct plan_memory none = *m, one = *m;
    const double running = running_bytes(in, INT32_MAX); /* of as many as there can be */
    fill_rooms(in, running, &none);
    fill_rooms(in, running + m->kv_bytes_per_token, &one);
    const struct plan_room *a = uses_gpu(m->place) ? &none.gpu : &none.ram;
    const struct plan_room *b = uses_gpu(m->place) ? &one.gpu : &one.ram;
    double token = b->need_bytes - a->need_bytes, left = room_left(a);
    return token > 0 && left > 0 ? floor(left / token) : 0;
}

/* A card's scratch grows a little with what a step may see: what fits beside that of more tokens than there are fits. */
static double cache_tokens(const struct plan_input *in, const struct plan_memory *m) {
    const double most = tokens_beside(in, m);
    struct plan_input longer = *in;
    struct plan_memory at = *m;
    longer.wish.context = (int)fmin(ceil(most / in->wish.seqs), INT32_MAX);
    at.scratch_bytes = fmax(m->scratch_bytes, scratch_at(&longer, m->place));
    return tokens_beside(in, &at);
}

/* Beside other experts: what was asked for, else as many as there is room for beside one card. Machines share otherwise. */
static int card_layers(const struct plan_input *in, const struct plan_memory *m) {
    const struct plan_machine *machine = &in->machine;
    int all = plan_arch_moe_layers(&in->arch), asked = machine->cpu_layers;
    struct plan_memory at = *m;
    if (!uses_gpu(m->place) || m->place == PLAN_IN_GPU || machine->nodes > 1) return 0;
    if (asked) return asked < all ? all - asked : 0;
    if (machine->gpu.count > 1 || machine->experts != PLAN_EXPERTS_AUTO) return 0;
    for (at.card_layers = all - 1; at.card_layers > 0; at.card_layers--) {
        fill_rooms(in, m->kv_bytes, &at);
        if (room_left(&at.gpu) >= 0) break;
    }
    return at.card_layers > 0 ? at.card_layers : 0;
}

void plan_memory_at(const struct plan_input *in, enum plan_place place, struct plan_memory *m) {
    double scratch = scratch_at(in, place);
    *m = (struct plan_memory){
        .place = place,
        .kv_bytes_per_token = plan_arch_kv_bytes(&in->arch, in->wish.kv),
        .scratch_bytes = scratch,
        .graphs_bytes = uses_gpu(place) ? plan_share(PLAN_GPU_CONTEXT) : 0,
    };
    m->kv_bytes = m->kv_bytes_per_token * in->wish.context * in->wish.seqs + running_bytes(in, in->wish.context);
    m->card_layers = card_layers(in, m);
    m->weights_bytes = fixed_bytes(in, m) + routed_on_card(in, m) + routed_beside(in, m);
    m->total_bytes = m->weights_bytes + m->kv_bytes + m->scratch_bytes + m->graphs_bytes;
    fill_rooms(in, m->kv_bytes, m);
    m->headroom_bytes = headroom(m);
    m->fits = m->headroom_bytes >= 0;
    m->cache_tokens = cache_tokens(in, m);
}

static bool is_possible(const struct plan_input *in, enum plan_place place) {
    const struct plan_machine *machine = &in->machine;
    enum plan_experts experts = machine->experts;
    if (uses_gpu(place) && !machine->gpu.count) return false;
    if (plan_shares_experts(in) && (uses_ssd(place) || place == PLAN_IN_GPU)) return false;
    if (uses_ssd(place) && (machine->ssd_gb_s <= 0 || !in->arch.experts)) return false;
    if (uses_ssd(place)) return experts == PLAN_EXPERTS_AUTO || experts == PLAN_EXPERTS_DISK;
    if (place == PLAN_IN_GPU)
        return (experts == PLAN_EXPERTS_AUTO && !machine->cpu_layers) || experts == PLAN_EXPERTS_GPU;
    if (place == PLAN_IN_GPU_RAM) {
        return in->arch.experts && (experts == PLAN_EXPERTS_AUTO || experts == PLAN_EXPERTS_CPU);
    }
    if (machine->gpu.count && machine->cpu_layers) return false;
    return !machine->gpu.count || experts == PLAN_EXPERTS_AUTO || experts == PLAN_EXPERTS_CPU;
}

void plan_settle(struct plan_input *in) {
    struct plan_machine *machine = &in->machine;
    struct plan_memory memory;
    if (machine->nodes < 1) machine->nodes = 1;
    if (machine->parallel != PLAN_PARALLEL_AUTO) return;
    machine->parallel = PLAN_PARALLEL_PIPELINE;
    if (machine->gpu.count < 2) return;
    machine->parallel = PLAN_PARALLEL_TENSOR;
    plan_memory_at(in, PLAN_IN_GPU, &memory);
    if (!memory.fits) machine->parallel = PLAN_PARALLEL_PIPELINE;
}

void plan_memory(const struct plan_input *in, struct plan_memory *memory) {
    static const enum plan_place order[] = {PLAN_IN_GPU, PLAN_IN_GPU_RAM, PLAN_IN_RAM, PLAN_IN_GPU_RAM_SSD,
                                            PLAN_IN_RAM_SSD};
    bool tried = false;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        struct plan_memory at;
        if (!is_possible(in, order[i])) continue;
        plan_memory_at(in, order[i], &at);
        if (!tried || at.fits) *memory = at;
        tried = true;
        if (at.fits) return;
    }
    if (!tried) plan_memory_at(in, PLAN_IN_RAM, memory);
}
