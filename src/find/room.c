#include "find/room.h"

#include <stdio.h>
#include "backend/backend.h"
#include "plan/detect.h"

enum { DEFAULT_CONTEXT = 32768 };

/* ---- the model's shape ---- */

/* Layers of one ratio, from `first` on: those that make rows and choose come first. Which layer it is makes no difference. */
static void fill_ratio(struct hybrid_model *hybrid, const struct plan_ratio *r, int first) {
    for (int i = 0; i < r->layers; i++) {
        const int maker = i < r->makers ? i : r->makers - 1, chooser = i < r->choosers ? i : r->choosers - 1;
        hybrid->ratio[first + i] = (uint8_t)r->ratio;
        hybrid->rows_from[first + i] = (uint16_t)(first + maker);
        hybrid->choice_from[first + i] = (uint16_t)(first + (r->choosers ? chooser : i));
    }
    if (r->narrowed) hybrid->candidate_layer = first;
}

static struct hybrid_model hybrid_of(const struct plan_arch *a) {
    const struct plan_hybrid *h = &a->hybrid;
    struct hybrid_model hybrid = {.kind = h->kind,
                                  .window = h->window,
                                  .candidate_layer = -1,
                                  .candidate_blocks = h->candidate_blocks,
                                  .candidate_rows = h->candidate_rows,
                                  .index_topk = h->index_topk,
                                  .index_heads = h->index_heads,
                                  .index_dim = h->index_dim,
                                  .o_groups = h->o_groups,
                                  .o_lora = h->o_lora,
                                  .streams = h->streams,
                                  .hash_layers = h->hash_layers};
    for (int i = 0; i < a->layers; i++) hybrid.rows_from[i] = hybrid.choice_from[i] = (uint16_t)i;
    for (int i = 0, first = 0; i < PLAN_RATIOS; first += h->ratios[i++].layers)
        fill_ratio(&hybrid, &h->ratios[i], first);
    hybrid.engram =
        (struct engram_model){.n_layers = h->tables, .max_tokens = 2, .heads = h->table_columns, .dim = h->table_dim};
    for (int i = 0; i < h->tables; i++) hybrid.engram.layer[i] = i;
    return hybrid;
}

double plan_cpu_scratch_bytes(const struct plan_input *in, int threads) {
    const struct plan_arch *a = &in->arch;
    struct model model = {
        .layers = a->layers,
        .dense_layers = a->dense_layers,
        .hidden = a->hidden,
        .heads = a->heads,
        .vocab = a->vocab,
        .context = a->context,
        .q_kind = a->q_lora ? Q_LOW_RANK : Q_DIRECT,
        .q_lora = a->q_lora,
        .kv_lora = a->kv_lora,
        .nope_dim = a->nope_dim,
        .rope_dim = a->rope_dim,
        .v_dim = a->v_dim,
        .index_topk = a->index_topk,
        .index_heads = a->index_heads,
        .index_dim = a->index_dim,
        .dense_width = a->dense_width,
        .expert_width = a->expert_width,
        .experts = a->experts,
        .top_k = a->top_k,
        .shared_experts = a->shared_experts,
        .hybrid = hybrid_of(a),
    };
    struct backend_options options = {.threads = threads,
                                      .max_rows = in->wish.batched_tokens,
                                      .max_logits = in->wish.seqs,
                                      .max_seqs = in->wish.seqs,
                                      .kv = (enum kv_format)in->wish.kv};
    return a->runs_here ? (double)cpu_backend_scratch_bytes(&model, &options) : 0;
}

/* ---- the machine ---- */

static int gather_gpu(struct plan_report *r, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_machine *machine = &r->input.machine;
    struct plan_cuda cuda;
    if (a->device == 1) {
        snprintf(r->gpu_from, sizeof r->gpu_from, "left out by --device cpu");
        return 0;
    }
    if (a->gpu) {
        snprintf(r->gpu_from, sizeof r->gpu_from, "given");
        return plan_gpu_parse(&machine->gpu, a->gpu, error);
    }
    plan_detect_cuda(&cuda);
    plan_cuda_gpu(&cuda, &machine->gpu);
    if (machine->gpu.count > 1 && !a->parallel) machine->parallel = PLAN_PARALLEL_PIPELINE; /* as they would be used */
    snprintf(r->gpu_from, sizeof r->gpu_from, "%.120s", cuda.n ? "by the driver" : cuda.why_not);
    if (cuda.n || a->device != 2) return 0;
    return mo_error_set(error, MO_E_NOT_FOUND, "--device cuda: %s (--gpu names a card to plan for)", cuda.why_not);
}

static int gather_ram(struct plan_report *r, struct plan_host *host, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_machine *machine = &r->input.machine;
    int code = plan_detect_host(host, error);
    if (code) return code;
    machine->cpu_gflops = a->cpu_gflops > 0 ? a->cpu_gflops : a->ram ? 0 : host->gflops;
    machine->cpu_gops16 = a->cpu_gflops > 0 || a->ram ? 0 : host->gops16;
    machine->cpu_gops8 = a->cpu_gflops > 0 ? a->cpu_gflops * 4 : a->ram ? 0 : host->gops8;
    snprintf(r->ram_from, sizeof r->ram_from, a->ram ? "given" : "free here");
    if (a->ram) {
        snprintf(r->ram_speed_from, sizeof r->ram_speed_from, "given");
        return plan_ram_parse(machine, a->ram, error);
    }
    machine->ram_bytes = host->available_bytes;
    machine->ram_measured = true;
    return 0;
}

/* As engine/offload.c reads these flags. */
static int gather_experts(struct plan_report *r, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_machine *machine = &r->input.machine;
    int layers = plan_arch_moe_layers(&r->input.arch);
    machine->experts = (enum plan_experts)a->experts;
    if ((a->cpu_moe || a->n_cpu_moe >= 0) && (a->experts || (a->cpu_moe && a->n_cpu_moe >= 0))) {
        return mo_error_set(error, MO_E_INVALID,
                            "--experts, --n-cpu-moe and --cpu-moe all say where experts lie: one of them");
    }
    if (a->cpu_moe || a->n_cpu_moe >= layers) machine->experts = PLAN_EXPERTS_CPU;
    if (a->n_cpu_moe == 0) machine->experts = PLAN_EXPERTS_GPU;
    if (a->n_cpu_moe > 0 && a->n_cpu_moe < layers) machine->cpu_layers = a->n_cpu_moe;
    return 0;
}

/* What this engine cannot do with several machines is refused rather than planned. */
static int gather_ranks(struct plan_report *r, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_machine *machine = &r->input.machine;
    if (!a->ranks) return 0;
    if (a->nodes > 1 || a->parallel)
        return mo_error_set(error, MO_E_INVALID,
                            "--ranks says how many machines and how they share: --nodes and "
                            "--parallel are for other ways");
    if (machine->gpu.count > 1 || machine->experts == PLAN_EXPERTS_GPU || machine->experts == PLAN_EXPERTS_DISK ||
        machine->cpu_layers)
        return mo_error_set(error, MO_E_INVALID,
                            "--ranks: routed experts lie in RAM and are computed by processors, "
                            "beside one card at most");
    if (!r->input.arch.experts) return mo_error_set(error, MO_E_INVALID, "--ranks: the model has no experts to share");
    machine->nodes = a->ranks;
    machine->parallel = PLAN_PARALLEL_RANKS;
    return 0;
}

static int gather_hits(struct plan_report *r, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    if (!a->expert_trace) return 0;
    if (a->hit_rate >= 0)
        return mo_error_set(error, MO_E_INVALID, "--expert-trace and --hit-rate say the same: one of them");
    return plan_curve_read(&r->input.machine.curve, a->expert_trace, &r->input.arch, error);
}

/* Cards of which some layers' experts are elsewhere share layers, as the engine's do. */
static int gather_cpu_layers(struct plan_machine *machine, struct mo_error *error) {
    if (machine->gpu.count > 1 && machine->parallel == PLAN_PARALLEL_AUTO) machine->parallel = PLAN_PARALLEL_PIPELINE;
    bool shares_layers = machine->gpu.count < 2 || machine->parallel == PLAN_PARALLEL_PIPELINE;
    if (shares_layers && machine->nodes == 1) return 0;
    return mo_error_set(
        error, MO_E_INVALID,
        "--n-cpu-moe %d: of some layers, beside cards of one machine that share layers (--parallel pipeline)",
        machine->cpu_layers);
}

static int gather_machine(struct plan_report *r, struct plan_host *host, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_machine *machine = &r->input.machine;
    *machine = (struct plan_machine){
        .nodes = a->nodes,
        .hit_rate = a->hit_rate,
        .ssd_gb_s = a->nvme_gb_s,
        .parallel = (enum plan_parallel)a->parallel,
    };
    if (a->nvme_gb_s > 0) snprintf(r->ssd_from, sizeof r->ssd_from, "given");
    int code = gather_experts(r, error);
    if (!code) code = gather_gpu(r, error);
    if (!code && machine->experts == PLAN_EXPERTS_GPU && !machine->gpu.count)
        code = mo_error_set(error, MO_E_INVALID, "--experts gpu: there is no card (%s)", r->gpu_from);
    if (!code && machine->cpu_layers) code = gather_cpu_layers(machine, error);
    if (!code) code = gather_ram(r, host, error);
    if (!code) code = plan_network_parse(machine, a->network ? a->network : "1.25,50", error);
    if (!code) code = gather_ranks(r, error);
    if (!code) code = gather_hits(r, error);
    return code;
}

/* ---- the wish ---- */

static int gather_wish(struct plan_report *r, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_wish *wish = &r->input.wish;
    int context = r->input.arch.context;
    if (a->context > context) {
        return mo_error_set(error, MO_E_INVALID, "--max-model-len %d is longer than the model's context of %d tokens",
                            a->context, context);
    }
    *wish = (struct plan_wish){
        .kv = a->kv ? (enum kv_format)(a->kv - 1) : KV_BF16,
        .context = a->context                  ? a->context
                   : context < DEFAULT_CONTEXT ? context
                                               : DEFAULT_CONTEXT,
        .seqs = a->seqs ? a->seqs : 1,
        .batched_tokens = a->batched_tokens            ? a->batched_tokens
                          : r->input.machine.gpu.count ? PLAN_LONG_STEP_TOKENS
                                                       : PLAN_STEP_TOKENS,
        .utilization = a->utilization,
    };
    if (wish->batched_tokens < wish->seqs) wish->batched_tokens = wish->seqs;
    return 0;
}

/* Long steps, which nobody asked for, are not what keeps a model from a card: as the engine does. */
static void shorten_steps(struct plan_report *r, int threads) {
    struct plan_input shorter = r->input;
    struct plan_memory memory;
    if (r->memory.fits || r->arguments->batched_tokens || shorter.wish.seqs > PLAN_STEP_TOKENS) return;
    shorter.wish.batched_tokens = PLAN_STEP_TOKENS;
    shorter.cpu_scratch_bytes = plan_cpu_scratch_bytes(&shorter, threads);
    plan_memory(&shorter, &memory);
    if (!memory.fits) return;
    r->input = shorter;
    r->memory = memory;
}

int plan_room(struct plan_report *r, struct plan_host *host, struct mo_error *error) {
    int code = gather_machine(r, host, error);
    if (!code) code = gather_wish(r, error);
    if (code) return code;
    int threads = r->arguments->threads ? r->arguments->threads : host->threads;
    r->input.cpu_scratch_bytes = plan_cpu_scratch_bytes(&r->input, threads);
    plan_settle(&r->input);
    plan_memory(&r->input, &r->memory);
    shorten_steps(r, threads);
    return 0;
}

int plan_gather_room(struct plan_report *r, const struct plan_arguments *arguments, const struct plan_arch *arch,
                     struct mo_error *error) {
    struct plan_host host;
    r->arguments = arguments;
    r->input.arch = *arch;
    int code = plan_quant_parse(&r->input.quant, arguments->quant ? arguments->quant : r->input.arch.published, error);
    if (code) return code;
    plan_weights_from_quant(&r->input.weights, &r->input.arch, &r->input.quant);
    return plan_room(r, &host, error);
}
