/* cmd_plan_gather.c - from the command line to a plan: the model's shapes, this machine where nothing was said, and the
 * figures. */
#include <stdio.h>
#include <string.h>
#include "backend/backend.h"
#include "base/file.h"
#include "base/numa.h"
#include "base/pool.h"
#include "bench_machine.h"
#include "cmd_plan.h"
#include "plan/detect.h"
#include "plan/source.h"

enum { DEFAULT_CONTEXT = 32768 };

const char *plan_report_not_here(const struct plan_report *report) {
    const struct plan_machine *m = &report->input.machine;
    if (!report->input.arch.runs_here) return "this model is here for comparison: the engine does not run it";
    if (plan_shares_experts(&report->input))
        return "several machines are tried as processes of one; no real network has been met yet";
    if (m->nodes > 1) return "several machines share routed experts alone in this engine (--ranks)";
    if (m->gpu.count > 1 && report->input.arch.hybrid.kind == HYBRID_CSA2)
        return "DeepSeek-V4.1 goes on one card in this engine";
    if (m->gpu.count > 1 && m->parallel != PLAN_PARALLEL_PIPELINE)
        return "several cards share layers alone in this engine (--parallel pipeline)";
    if (m->gpu.count > 1) return "the engine's GPU code has not been run on a GPU yet, nor on several";
    if (m->gpu.count) return "the engine's GPU code has not been run on a GPU yet";
    return NULL;
}

const char *plan_report_hits_from(const struct plan_report *report) {
    const struct plan_machine *m = &report->input.machine;
    if (report->memory.held >= 1) return NULL;
    return m->hit_rate >= 0 ? "given" : m->curve.n ? "trace" : "assumed";
}

const char *plan_report_class(const struct plan_report *report) {
    return report->input.machine.nodes > 1 ? "cluster" : plan_place_name(report->memory.place);
}

/* ---- the model ---- */

/* Behind "no such model": what there is without one. */
static int name_builtins(struct mo_error *error) {
    size_t n = strlen(error->message);
    for (int i = 0; plan_arch_builtin_name(i) && n < sizeof error->message; i++)
        n += (size_t)snprintf(error->message + n, sizeof error->message - n, "%s%s",
                              i ? ", " : "; built in: ", plan_arch_builtin_name(i));
    return error->code;
}

/* Of a model at the hub, config.json and what else is small is enough. */
static int open_source(struct plan_source *source, const struct plan_arguments *a, const struct overrides *overrides,
                       struct mo_error *error) {
    char path[4096];
    const struct find_request request = {
        .model = a->model, .revision = a->revision, .hub = &a->hub, .need = FIND_CONFIG};
    *source = (struct plan_source){0};
    bool is_builtin = plan_arch_builtin(&source->arch, a->model);
    if (is_builtin && overrides)
        return mo_error_set(error, MO_E_INVALID,
                            "--hf-overrides and --override-kv go with a config.json, and %s is built in", a->model);
    int code = is_builtin ? 0 : find_model(&request, path, sizeof path, error);
    if (code == MO_E_NOT_FOUND) return name_builtins(error);
    return code || is_builtin ? code : plan_source_open(source, path, overrides, error);
}

static int gather_model(struct plan_report *r, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_source source;
    struct overrides *overrides;
    int code = override_flags_read(&a->overrides, &overrides, error);
    if (!code) code = open_source(&source, a, overrides, error);
    overrides_free(overrides);
    if (code) return code;
    r->input.arch = source.arch;
    r->recipe_is_published = !a->quant;
    code = plan_quant_parse(&r->input.quant, a->quant ? a->quant : source.arch.published, error);
    if (code) return code;
    if (source.has_weights && !a->quant) {
        r->input.weights = source.weights;
    } else {
        plan_weights_from_quant(&r->input.weights, &r->input.arch, &r->input.quant);
    }
    return 0;
}

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

/* The backend counts its own scratch, from the numbers alone. */
static double cpu_scratch(const struct plan_input *in, int threads) {
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

/* As engine_offload.c reads these flags. */
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

/* A second of reading, only if the plan needs to know. */
static int measure_ram(struct plan_report *r, int threads, struct mo_error *error) {
    struct bench_spread spread;
    if (r->input.machine.ram_gb_s > 0 || r->memory.place == PLAN_IN_GPU) return 0;
    struct numa_choice numa;
    numa_settle(NUMA_AUTO, &numa); /* as an engine has it */
    int code = bench_measure_read(threads, &spread, error);
    if (code) return code;
    r->input.machine.ram_gb_s = spread.median;
    snprintf(r->ram_speed_from, sizeof r->ram_speed_from, "measured here, %d threads%s", threads,
             numa.use == NUMA_DISTRIBUTE ? ", pages over all memory nodes" : "");
    return 0;
}

/* What the shares in efficiency.c are shares of; by the clock that the system admits to it would be half as much or twice. */
static int measure_products(struct plan_report *r, const struct plan_host *host, int threads, struct mo_error *error) {
    struct plan_machine *machine = &r->input.machine;
    struct bench_spread tops;
    if (!machine->ram_measured || r->arguments->cpu_gflops > 0 || r->memory.place == PLAN_IN_GPU) return 0;
    int code = bench_measure_peak(PEAK_INT8, threads, &tops, error);
    if (code || !(tops.median > 0)) return code;
    machine->cpu_gops8 = tops.median * 1e3;
    machine->cpu_gflops = machine->cpu_gops8 / plan_cpu_bytes_factor(host->level);
    machine->cpu_gops16 = machine->cpu_gflops * plan_cpu_bf16_factor(host->level);
    return 0;
}

/* The folder whose disk the experts would be read from. */
static const char *disk_folder(const struct plan_arguments *a) {
    if (a->folder) return a->folder;
    return file_is_directory(a->model) ? a->model : ".";
}

/* When nothing fits without a disk, or the disk is asked for. */
static int measure_disk(struct plan_report *r, struct mo_error *error) {
    const struct plan_arguments *a = r->arguments;
    struct plan_disk disk;
    bool wanted = r->input.machine.experts == PLAN_EXPERTS_DISK || a->folder;
    bool maybe = !r->memory.fits && r->input.machine.experts == PLAN_EXPERTS_AUTO && !a->ram && r->input.arch.experts;
    if (r->input.machine.ssd_gb_s > 0 || plan_shares_experts(&r->input) || (!wanted && !maybe)) return 0;
    int code = plan_measure_disk(disk_folder(a), &disk, error);
    if (code) return wanted ? code : 0;
    r->input.machine.ssd_gb_s = disk.gb_s;
    snprintf(r->ssd_from, sizeof r->ssd_from, "measured here, %s",
             disk.direct ? "direct reads" : "through the page cache");
    plan_memory(&r->input, &r->memory);
    return 0;
}

/* Long steps, which nobody asked for, are not what keeps a model from a card: as the engine does. */
static void shorten_steps(struct plan_report *r, int threads) {
    struct plan_input shorter = r->input;
    struct plan_memory memory;
    if (r->memory.fits || r->arguments->batched_tokens || shorter.wish.seqs > PLAN_STEP_TOKENS) return;
    shorter.wish.batched_tokens = PLAN_STEP_TOKENS;
    shorter.cpu_scratch_bytes = cpu_scratch(&shorter, threads);
    plan_memory(&shorter, &memory);
    if (!memory.fits) return;
    r->input = shorter;
    r->memory = memory;
}

/* As the engine does. */
static void lengthen_steps(struct plan_report *r, int threads) {
    struct plan_input longer = r->input;
    struct plan_memory memory;
    bool reads = r->memory.place == PLAN_IN_RAM_SSD;
    if (r->arguments->batched_tokens || !reads || longer.wish.batched_tokens >= PLAN_LONG_STEP_TOKENS) return;
    longer.wish.batched_tokens = PLAN_LONG_STEP_TOKENS;
    longer.cpu_scratch_bytes = cpu_scratch(&longer, threads);
    if (longer.cpu_scratch_bytes > longer.machine.ram_bytes * PLAN_LONG_STEP_SHARE) return;
    plan_memory(&longer, &memory);
    if (!memory.fits && r->memory.fits) return;
    r->input = longer;
    r->memory = memory;
}

/* ---- the figures ---- */

static void gather_speeds(struct plan_report *r) {
    static const int batches[] = {1, 4, 8, 16, 64}, depths[] = {0, 8192, 32768}, prompts[] = {512, 2048, 8192, 32768};
    int context = r->input.arch.context;
    for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
        for (size_t b = 0; b < sizeof batches / sizeof *batches && depths[d] <= context; b++) {
            plan_decode(&r->input, &r->memory, batches[b], depths[d], &r->decode[r->n_decode++]);
        }
    }
    if (!plan_prefill_known(&r->input, &r->memory)) return;
    for (size_t p = 0; p < sizeof prompts / sizeof *prompts; p++) {
        if (prompts[p] <= context) plan_prefill(&r->input, &r->memory, prompts[p], &r->prefill[r->n_prefill++]);
    }
}

/* What lies where, with nothing measured yet. */
static int gather_room(struct plan_report *r, struct plan_host *host, struct mo_error *error) {
    int code = gather_machine(r, host, error);
    if (!code) code = gather_wish(r, error);
    if (code) return code;
    int threads = r->arguments->threads ? r->arguments->threads : host->threads;
    r->input.cpu_scratch_bytes = cpu_scratch(&r->input, threads);
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
    return gather_room(r, &host, error);
}

int plan_gather(struct plan_report *r, const struct plan_arguments *arguments, struct mo_error *error) {
    struct plan_host host;
    r->arguments = arguments;
    int code = gather_model(r, error);
    if (!code) code = gather_room(r, &host, error);
    if (code) return code;
    int threads = arguments->threads ? arguments->threads : host.threads;
    code = measure_disk(r, error);
    if (!code) code = measure_ram(r, threads, error);
    if (!code) code = measure_products(r, &host, threads, error);
    if (code) return code;
    lengthen_steps(r, threads);
    gather_speeds(r);
    if (!r->memory.fits) r->n_nearest = plan_find_nearest(&r->input, r->nearest);
    return 0;
}
