/* cmd/plan/gather.c - from the command line to a plan: the model's shapes, this machine where nothing was said, and the
 * figures. */
#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "base/numa.h"
#include "cmd/bench/machine.h"
#include "cmd/plan/plan.h"
#include "plan/detect.h"
#include "plan/source.h"

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

/* ---- the machine ---- */

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

/* As the engine does. */
static void lengthen_steps(struct plan_report *r, int threads) {
    struct plan_input longer = r->input;
    struct plan_memory memory;
    bool reads = r->memory.place == PLAN_IN_RAM_SSD;
    if (r->arguments->batched_tokens || !reads || longer.wish.batched_tokens >= PLAN_LONG_STEP_TOKENS) return;
    longer.wish.batched_tokens = PLAN_LONG_STEP_TOKENS;
    longer.cpu_scratch_bytes = plan_cpu_scratch_bytes(&longer, threads);
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

int plan_gather(struct plan_report *r, const struct plan_arguments *arguments, struct mo_error *error) {
    struct plan_host host;
    r->arguments = arguments;
    int code = gather_model(r, error);
    if (!code) code = plan_room(r, &host, error);
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
