#include "cmd/plan/plan.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli/cli.h"
#include "cmd/cmd.h"
#include "plan/ranks.h"
#include "ranks/transport.h"

enum { DOES_NOT_FIT = 3 };
static_assert((int)PLAN_MAX_RANKS == (int)RANKS_MAX, "a plan is for as many processes as there can be");

struct command_line {
    struct plan_arguments plan;
    struct plan_check check;
    int table, plot;
};

enum { FLAGS_MAX = 50 };

static void fill_flags(struct command_line *c, struct cli_flag flags[FLAGS_MAX]) {
    struct plan_arguments *a = &c->plan;
    /* clang-format off */
    const struct cli_flag table[] = {
        {.names = "--model,-m", .type = CLI_STRING, .target = &a->model, .value = "MODEL", .help = "the model, if not given as MODEL"},
        {.names = "--quantization,--quant", .type = CLI_STRING, .target = &a->quant, .value = "RECIPE",
         .help = "f32, bf16, f16, int8, fp8, int4, fp4, awq, awq-g64 or awq-g32, and groups that differ:\nint4,head=bf16,routed=2.4 (bits); "
                 "default: the files' own"},
        {.names = "--kv-cache-dtype,--kv", .type = CLI_CHOICE, .target = &a->kv, .choices = "auto|f32|bf16|fp8", .help = "format of the cache (default auto: bf16)"},
        {.names = "--max-model-len,--context,-c", .type = CLI_INT, .target = &a->context, .min = 1, .max = 1 << 26, .value = "N",
         .help = "tokens of each sequence (default 32768, or the model's context)"},
        {.names = "--max-num-seqs,--seqs", .type = CLI_INT, .target = &a->seqs, .min = 1, .max = 4096, .value = "N", .help = "sequences that run at once (default 1)"},
        {.names = "--max-num-batched-tokens", .type = CLI_INT, .target = &a->batched_tokens, .min = 1, .max = 1 << 16, .value = "N",
         .help = "tokens computed in one step (default 512; 2048 with a card, or\nwith experts that are read from disk)"},
        {.names = "--gpu-memory-utilization,--memory-utilization", .type = CLI_DOUBLE, .target = &a->utilization, .min = 0.01, .max = 1, .value = "X",
         .help = "share of a memory that may be taken (default 0.9)"},
        {.names = "Machine (what is not given is detected and measured here)", .type = CLI_HEADING},
        {.names = "--gpu", .type = CLI_STRING, .target = &a->gpu, .value = "CARD",
         .help = "rtx-3090, rtx-4080, rtx-4090, rtx-5090, a100-80g, h100, h200, none, or\nNAME=GB,GB/s,TFLOPS; several: 2xrtx-4090"},
        {.names = "--ram", .type = CLI_STRING, .target = &a->ram, .value = "GB[@GB/s]", .help = "memory and its speed, as in 64, 64GiB or 64@89"},
        {.names = "--nvme", .type = CLI_DOUBLE, .target = &a->nvme_gb_s, .min = 0.01, .max = 1000, .value = "GB/s", .help = "speed of the disk that holds the experts that RAM does not"},
        {.names = "--folder", .type = CLI_STRING, .target = &a->folder, .value = "DIR", .help = "the disk to measure (default: the model's)"},
        {.names = "--hit-rate", .type = CLI_DOUBLE, .target = &a->hit_rate, .min = 0, .max = 1, .value = "X", .help = "of experts in RAM (default: the share of them that fits)"},
        {.names = "--expert-trace", .type = CLI_STRING, .target = &a->expert_trace, .value = "FILE", .help = "or what `moebius experts MODEL --text TEXT -o FILE` has found for that share"},
        {.names = "--cpu-gflops", .type = CLI_DOUBLE, .target = &a->cpu_gflops, .min = 0.1, .max = 1e7, .value = "N",
         .help = "multiply-adds of the processor, fp32, counted twice; four times that in\n8 bits (default: as this one's 8 bits, measured; not known when --ram is given)"},
        {.names = "--threads,-t", .type = CLI_INT, .target = &a->threads, .min = 1, .max = 1024, .value = "N", .help = "threads that measure the memory (default: all processors)"},
        {.names = "--device", .type = CLI_CHOICE, .target = &a->device, .choices = "auto|cpu|cuda", .help = "cpu: leave the card out"},
        {.names = "--experts,--expert-device", .type = CLI_CHOICE, .target = &a->experts, .choices = "auto|gpu|cpu|disk", .help = "where the routed experts lie (default auto: the fastest place)"},
        {.names = "--n-cpu-moe,-ncmoe", .type = CLI_INT, .target = &a->n_cpu_moe, .max = 1 << 16, .value = "N",
         .help = "beside a card: of so many layers in RAM (default: as few as must)"},
        {.names = "--cpu-moe,-cmoe", .type = CLI_FLAG, .target = &a->cpu_moe, .help = "the same as --experts cpu"},
        {.names = "--parallel", .type = CLI_CHOICE, .target = &a->parallel, .choices = "auto|tensor|expert|pipeline", .help = "how several cards share the work"},
        {.names = "--nodes", .type = CLI_INT, .target = &a->nodes, .min = 1, .max = 4096, .value = "N", .help = "machines like this one"},
        {.names = "--ranks,--machines", .type = CLI_INT, .target = &a->ranks, .min = 2, .max = PLAN_MAX_RANKS, .value = "N",
         .help = "such machines as the engine uses them: mpirun -n N shares routed experts"},
        {.names = "--network", .type = CLI_STRING, .target = &a->network, .value = "GB/s,us", .help = "between them: speed and latency, as in 10gbit,50 (default 1.25,50)"},
        {.names = "Output", .type = CLI_HEADING},
        {.names = "--explain", .type = CLI_FLAG, .target = &a->explain, .help = "every formula with its numbers, and where each constant comes from"},
        {.names = "--json", .type = CLI_FLAG, .target = &a->json, .help = "for programs"},
        {.names = "--table", .type = CLI_CHOICE, .target = &c->table, .choices = "none|vram|concurrency|estimates|what-fits",
         .help = "published tables beside ours (of built-in models and cards)"},
        {.names = "--plot", .type = CLI_CHOICE, .target = &c->plot, .choices = "none|bandwidth|671b", .help = "a picture of them, SVG"},
        {.names = "Is a published figure possible?", .type = CLI_HEADING},
        {.names = "--check", .type = CLI_FLAG, .target = &c->check.wanted, .help = "with these four, and without a MODEL"},
        {.names = "--params", .type = CLI_STRING, .target = &c->check.params, .value = "N[,ACTIVE]", .help = "parameters, as in 14.8B or 671B,37B"},
        {.names = "--bits", .type = CLI_DOUBLE, .target = &c->check.bits, .min = 0.5, .max = 64, .value = "X", .help = "bits a weight"},
        {.names = "--bandwidth", .type = CLI_DOUBLE, .target = &c->check.gb_s, .min = 0.01, .max = 1e6, .value = "GB/s", .help = "of the memory that holds the weights"},
        {.names = "--tps", .type = CLI_DOUBLE, .target = &c->check.tokens_per_s, .min = 1e-6, .max = 1e9, .value = "X", .help = "the figure: tokens a second of one sequence"},
        {.names = "Hugging Face hub (of a model that is not here the small files are fetched)", .type = CLI_HEADING},
    };
    /* clang-format on */
    const size_t n = sizeof table / sizeof *table;
    static_assert(sizeof table / sizeof *table + FIND_FLAGS_MAX + OVERRIDE_FLAGS_MAX < FLAGS_MAX, "room for all flags");
    memcpy(flags, table, sizeof table);
    const size_t m = n + find_model_flags(&a->hub, &a->model, &a->revision, flags + n);
    flags[m + override_flags_add(&a->overrides, flags + m)] = (struct cli_flag){0};
}

static int run_plan(const struct plan_arguments *arguments, bool *fits, struct mo_error *error) {
    struct plan_report *report = calloc(1, sizeof *report);
    if (!report) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    int code = plan_gather(report, arguments, error);
    if (!code && arguments->json) code = plan_print_json(report, error);
    if (!code && !arguments->json) plan_print_text(report);
    *fits = report->memory.fits;
    free(report);
    return code;
}

static int run(struct command_line *c, bool *fits, struct mo_error *error) {
    if (c->check.wanted) {
        c->check.json = c->plan.json;
        if (!c->plan.model) return plan_run_check(&c->check, fits, error);
        return mo_error_set(error, MO_E_INVALID, "--check takes --params, --bits, --bandwidth and --tps, and no MODEL");
    }
    if (c->check.params || c->check.bits > 0 || c->check.gb_s > 0 || c->check.tokens_per_s > 0)
        return mo_error_set(error, MO_E_INVALID, "--params, --bits, --bandwidth and --tps go with --check");
    if (c->table || c->plot) {
        if (c->plan.model) return mo_error_set(error, MO_E_INVALID, "--table and --plot take no MODEL");
        if (c->table) plan_print_table((enum plan_table)c->table);
        if (c->plot) plan_print_plot((enum plan_plot)c->plot);
        return 0;
    }
    if (!c->plan.model) return mo_error_set(error, MO_E_INVALID, "no MODEL given (--help shows how)");
    return run_plan(&c->plan, fits, error);
}

int cmd_plan(int argc, char **argv) {
    struct command_line c = {.plan = {.hit_rate = -1, .utilization = 0.9, .nodes = 1, .n_cpu_moe = -1}};
    struct cli_flag flags[FLAGS_MAX] = {{0}};
    const struct cli_command command = {
        .name = "plan",
        .arguments = "MODEL [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about =
            "Says whether a model fits, where its parts would lie, and how fast it would be, before anything is "
            "downloaded.\n"
            "MODEL is a folder, org/name at the Hugging Face hub, a config.json, a GGUF file, a safetensors file or "
            "just its "
            "leading\n"
            "header, or a built-in name: deepseek-coder-v2-lite, deepseek-v2-lite, deepseek-v2, deepseek-v3, "
            "deepseek-r1, deepseek-v3.2,\ndeepseek-v4-flash, deepseek-v4-pro, deepseek-v4.1-flash, and\n"
            "for comparison qwen2.5-coder-14b, qwen2.5-coder-32b, codestral-22b, mixtral-8x7b. Weights are never "
            "read.\n"
            "A limit is what the memory and the arithmetic allow; what is expected is less, by shares that --explain\n"
            "names with their origin. Exit status: 0 it fits (or is possible), 3 it does not, 2 wrong usage.",
        .examples = "  moebius plan deepseek-coder-v2-lite --gpu rtx-4090 --quant fp8\n"
                    "  moebius plan deepseek-v3 --gpu rtx-4090 --ram 384@300 --quant int4 --explain\n"
                    "  moebius plan deepseek-r1 --quant int4 --gpu none --ram 64@273 --nodes 8 --network 5,30\n"
                    "  moebius plan deepseek-v3 --quant int4 --gpu none --ram 256@200 --ranks 2 --network 10gbit,30\n"
                    "  moebius plan MODEL --experts disk --expert-trace book.experts.json\n"
                    "  moebius plan --check --params 14.8B --bits 4.6 --bandwidth 1008 --tps 135",
    };
    struct mo_error error = {0};
    bool fits = true;
    const char *positional = NULL;
    int n_positionals;
    fill_flags(&c, flags);
    int code = cli_parse(&command, argc, argv, &positional, &n_positionals, &error);
    if (code > 0) return 0;
    if (n_positionals) c.plan.model = positional;
    if (!code) code = run(&c, &fits, &error);
    if (code) return cli_fail("plan", &error);
    return fits ? 0 : DOES_NOT_FIT;
}
