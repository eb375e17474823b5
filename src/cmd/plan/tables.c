/* cmd/plan/tables.c - tables that others have published, beside ours, in Markdown. Their figures are quoted from a hosting
 * guide ("RTX 4090 24GB for DeepSeek-Coder-V2-Lite") and from an analysis ("DeepSeek V3 671B tokens per second on an
 * RTX 4090"). */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include "cmd/plan/plan.h"

static const double GB = 1e9;
static const char lite[] = "deepseek-coder-v2-lite";

struct plan_input plan_table_input(const char *model, const char *quant, const char *gpu, enum kv_format kv,
                                   int context, int seqs) {
    struct plan_input in = {.machine = {.nodes = 1, .hit_rate = -1}};
    bool known = plan_arch_builtin(&in.arch, model);
    int code = plan_quant_parse(&in.quant, quant, NULL);
    if (!code) code = plan_gpu_parse(&in.machine.gpu, gpu, NULL);
    assert(known && !code);
    (void)known;
    (void)code;
    plan_weights_from_quant(&in.weights, &in.arch, &in.quant);
    in.wish =
        (struct plan_wish){.kv = kv, .context = context, .seqs = seqs, .batched_tokens = 2048, .utilization = 0.9};
    plan_settle(&in);
    return in;
}

/* ---- the guide: what fits in 24 GB ---- */

struct vram {
    const char *quant;
    struct plan_memory memory;
};

static void vram_row(const char *name, const char *guide, const double ours[3], const char *why) {
    printf("| %s | %s | %.2f / %.2f / %.2f | %s |\n", name, guide, ours[0] / GB, ours[1] / GB, ours[2] / GB, why);
}

static void print_vram(void) {
    static const char *const quants[] = {"bf16", "fp8", "awq-g64"};
    double weights[3], cache[3], graphs[3], scratch[3], total[3];
    struct plan_memory m[3];
    for (int i = 0; i < 3; i++) {
        struct plan_input in = plan_table_input(lite, quants[i], "rtx-4090", KV_BF16, 32768, 1);
        plan_memory_at(&in, PLAN_IN_GPU, &m[i]);
        weights[i] = m[i].weights_bytes;
        cache[i] = m[i].kv_bytes;
        graphs[i] = m[i].graphs_bytes;
        scratch[i] = m[i].scratch_bytes;
        total[i] = m[i].total_bytes;
    }
    printf("DeepSeek-Coder-V2-Lite on an RTX 4090, one sequence of 32,768 tokens, GB (1e9 bytes). Ours: bf16 / fp8 / "
           "AWQ in\n"
           "groups of 64, cache in bf16.\n\n"
           "| | the guide: FP16 / FP8 / AWQ | ours | why |\n| --- | --- | --- | --- |\n");
    vram_row("weights", "32 / 16 / 9", weights,
             "counted; the head and the embedding stay 16-bit in AWQ, the embedding in fp8");
    vram_row("cache", "3.5 / 3.5 / 3.5", cache,
             "the model has latent attention: 31,104 B a token in bf16 (17,712 B in fp8), not 221 KB");
    vram_row("graphs, workspace", "1.6 / 1.6 / 1.6", graphs,
             "of one framework; ours is an allowance, not measured by us");
    vram_row("activations", "1.4 / 1.4 / 1.4", scratch, "counted for 2,048 rows a step");
    vram_row("total", "38.5 / 22.5 / 15.5", total, "");
    printf("| of %.1f GB that may be taken | no / yes / yes | %s / %s / %s | 90 %% of the card's %.2f GB |\n",
           m[0].gpu.have_bytes / GB, m[0].fits ? "yes" : "no", m[1].fits ? "yes" : "no", m[2].fits ? "yes" : "no",
           m[0].gpu.have_bytes / 0.9 / GB);
    printf("| tokens of cache that fit | about 32,768 | %.0f / %.0f / %.0f | in fp8, 1.76 times as many |\n",
           m[0].cache_tokens, m[1].cache_tokens, m[2].cache_tokens);
}

/* ---- the guide: how many at once ---- */

static double most_seqs(const char *quant, enum kv_format kv, int context) {
    struct plan_input in = plan_table_input(lite, quant, "rtx-4090", kv, context, 64);
    struct plan_memory memory;
    plan_memory_at(&in, PLAN_IN_GPU, &memory);
    return floor(memory.cache_tokens / context);
}

static void print_concurrency(void) {
    static const struct {
        int seqs, context;
        const char *said;
    } rows[] = {{1, 32768, "fits"},
                {4, 4096, "fits"},
                {8, 4096, "fits"},
                {16, 2048, "cap at 12"},
                {4, 32768, "14 GB: does not fit"},
                {16, 8192, "not in it"}};
    struct plan_arch arch;
    plan_arch_builtin(&arch, lite);
    double bf16 = plan_arch_kv_bytes(&arch, KV_BF16), fp8 = plan_arch_kv_bytes(&arch, KV_FP8);
    printf("DeepSeek-Coder-V2-Lite in fp8 on an RTX 4090. The guide counts 110.5 KB a token (fp8); the latent takes\n"
           "%.0f B in bf16 and %.0f B in fp8.\n\n"
           "| sequences x tokens | the guide | its cache, GB | ours, bf16 / fp8, GB | sequences of that length that "
           "fit: fp8 "
           "weights, bf16 / fp8 cache | AWQ weights |\n| --- | --- | ---: | ---: | ---: | ---: |\n",
           bf16, fp8);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int context = rows[i].context;
        double tokens = (double)rows[i].seqs * context;
        printf("| %d x %d | %s | %.2f | %.2f / %.2f | %.0f / %.0f | %.0f / %.0f |\n", rows[i].seqs, context,
               rows[i].said, tokens * 110500 / GB, tokens * bf16 / GB, tokens * fp8 / GB,
               most_seqs("fp8", KV_BF16, context), most_seqs("fp8", KV_FP8, context),
               most_seqs("awq-g64", KV_BF16, context), most_seqs("awq-g64", KV_FP8, context));
    }
    printf(
        "\nThe guide's figures come from keys and values for 16 heads. An engine that keeps the latent fits 3.5 to 6\n"
        "times as many; no cap is needed, because what counts is bytes.\n");
}

/* ---- the analysis: four estimates for 671B ---- */

struct machine_row {
    const char *said, *what, *quant, *gpu;
    double ram_gb, ram_gb_s, ssd_gb_s, hit_rate;
    int nodes;
    enum plan_experts experts;
    const char *published;
};

static void print_machine(const struct machine_row *row) {
    struct plan_input in = plan_table_input("deepseek-v3", row->quant, row->gpu, KV_FP8, 8192, 1);
    struct plan_memory memory;
    struct plan_speed speed;
    in.machine.ram_bytes = row->ram_gb * 1e9;
    in.machine.ram_gb_s = row->ram_gb_s;
    in.machine.ssd_gb_s = row->ssd_gb_s;
    in.machine.hit_rate = row->hit_rate;
    in.machine.nodes = row->nodes;
    in.machine.network_gb_s = 5;
    in.machine.network_s = 30e-6;
    in.machine.experts = row->experts;
    plan_memory(&in, &memory);
    plan_decode(&in, &memory, 1, 0, &speed);
    const char *class = row->nodes > 1 ? "cluster" : plan_place_name(memory.place);
    printf("| %s | %s | %s | ", row->said, row->what, memory.fits ? class : "does not fit");
    if (memory.fits) {
        printf("%.1f | %.1f | ", plan_speed_limit(&speed), plan_speed_expected(&speed));
    } else {
        printf("- | - | ");
    }
    printf("%s |\n", row->published);
}

static int cards_needed(const char *quant, const char *gpu) {
    for (int n = 1; n < 4096; n++) {
        char name[64];
        struct plan_memory memory;
        snprintf(name, sizeof name, "%dx%s", n, gpu);
        struct plan_input in = plan_table_input("deepseek-v3", quant, name, KV_FP8, 8192, 1);
        plan_memory_at(&in, PLAN_IN_GPU, &memory);
        if (memory.fits) return n;
    }
    return 0;
}

static void print_estimates(void) {
    static const struct machine_row rows[] = {
        {"5-15", "RTX 4090 + 384 GB at 89 GB/s (desktop, 2 channels)", "int4", "rtx-4090", 384, 89, 0, -1, 1,
         PLAN_EXPERTS_AUTO, ""},
        {"5-15", "RTX 4090 + 384 GB at 300 GB/s (one server socket)", "int4", "rtx-4090", 384, 300, 0, -1, 1,
         PLAN_EXPERTS_AUTO, "8.7 (KTransformers, 307 GB/s)"},
        {"5-15", "RTX 4090 + 512 GB at 600 GB/s (two sockets)", "int4", "rtx-4090", 512, 600, 0, -1, 1,
         PLAN_EXPERTS_AUTO, "12.2-13.5 (KTransformers, 614 GB/s)"},
        {"1-5", "RTX 4090 + 96 GB at 89 GB/s + disk at 7 GB/s", "int4", "rtx-4090", 96, 89, 7, -1, 1, PLAN_EXPERTS_AUTO,
         ""},
        {"1-5", "the same, experts in 2.4 bits, disk at 14 GB/s", "int4,routed=2.4", "rtx-4090", 96, 89, 14, -1, 1,
         PLAN_EXPERTS_AUTO, "4 (ik_llama.cpp, RTX 3090 Ti)"},
        {"1-5", "the same, at a hit rate of 0.9", "int4,routed=2.4", "rtx-4090", 96, 89, 14, 0.9, 1, PLAN_EXPERTS_AUTO,
         ""},
        {"out of memory", "RTX 4090 alone, all in its memory", "int4", "rtx-4090", 16, 89, 0, -1, 1, PLAN_EXPERTS_GPU,
         ""},
        {"5.37", "8 desktops of 64 GB at 273 GB/s, 5 GB/s and 30 us between them", "int4", "none", 64, 273, 0, -1, 8,
         PLAN_EXPERTS_AUTO, "5.37 (exo, 8 x M4 Pro)"},
    };
    printf("DeepSeek-V3 671B, decode of one sequence, tokens/s. \"The analysis\" gives four estimates for \"an RTX "
           "4090\", without\n"
           "the rest of the machine; it is the rest that decides.\n\n"
           "| the analysis | a machine | class | limit | expected | others have measured |\n"
           "| --- | --- | --- | ---: | ---: | --- |\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) print_machine(&rows[i]);
    printf("\nAll in card memory (int4, pipeline) takes %d RTX 4090, %d H100 or %d H200. A cluster's limit is a "
           "pipeline's: one\n"
           "sequence is in one machine at a time.\n",
           cards_needed("int4", "rtx-4090"), cards_needed("int4", "h100"), cards_needed("int4", "h200"));
}

void plan_print_table(enum plan_table table) {
    switch (table) {
    case PLAN_TABLE_VRAM:
        print_vram();
        break;
    case PLAN_TABLE_CONCURRENCY:
        print_concurrency();
        break;
    case PLAN_TABLE_ESTIMATES:
        print_estimates();
        break;
    case PLAN_TABLE_WHAT_FITS:
        plan_print_what_fits();
        break;
    case PLAN_TABLE_NONE:
        break;
    }
}
