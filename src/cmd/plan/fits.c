/* cmd/plan/fits.c - docs/what-fits.md, all of it: `moebius plan --table what-fits`. Nothing in it depends on the machine that
 * prints it. */
#include <math.h>
#include <stdio.h>
#include "cmd/plan/plan.h"

static const double GB = 1e9;

/* "131072 tokens" or "-" */
static void print_context(const struct plan_input *in, const struct plan_memory *memory) {
    double tokens = fmin(memory->cache_tokens, in->arch.context);
    if (tokens < 1024) {
        printf(" - |");
    } else {
        printf(" %.0f |", tokens);
    }
}

/* One model and recipe: a row, a card a column. */
static void print_cards_row(const char *model, const char *quant) {
    struct plan_input in = plan_table_input(model, quant, "rtx-4090", KV_FP8, 1024, 1);
    printf("| %s | %s | %.1f |", model, quant, plan_weights_total(&in.weights) / GB);
    for (int i = 0; plan_gpu_builtin(i); i++) {
        struct plan_memory memory;
        struct plan_speed speed;
        in = plan_table_input(model, quant, plan_gpu_builtin(i)->name, KV_FP8, 1024, 1);
        plan_memory_at(&in, PLAN_IN_GPU, &memory);
        if (!memory.fits) {
            printf(" - |");
            continue;
        }
        plan_decode(&in, &memory, 1, 0, &speed);
        printf(" %.0f / %.0f |", plan_speed_limit(&speed), plan_speed_expected(&speed));
    }
    printf("\n");
}

static void print_context_row(const char *model, const char *quant) {
    printf("| %s | %s |", model, quant);
    for (int i = 0; plan_gpu_builtin(i); i++) {
        struct plan_memory memory;
        struct plan_input in = plan_table_input(model, quant, plan_gpu_builtin(i)->name, KV_FP8, 1024, 1);
        plan_memory_at(&in, PLAN_IN_GPU, &memory);
        print_context(&in, &memory);
    }
    printf("\n");
}

static void print_heading(const char *left, int left_columns) {
    printf("%s", left);
    for (int i = 0; plan_gpu_builtin(i); i++) printf(" %s |", plan_gpu_builtin(i)->name);
    printf("\n|");
    for (int i = 0; i < left_columns; i++) printf(" --- |");
    for (int i = 0; plan_gpu_builtin(i); i++) printf(" ---: |");
    printf("\n");
}

static const struct {
    const char *model, *quant;
} card_rows[] = {
    {"deepseek-coder-v2-lite", "bf16"}, {"deepseek-coder-v2-lite", "fp8"}, {"deepseek-coder-v2-lite", "awq-g64"},
    {"deepseek-coder-v2-lite", "int4"}, {"deepseek-v2", "int4"},           {"qwen2.5-coder-14b", "fp8"},
    {"qwen2.5-coder-14b", "int4"},      {"qwen2.5-coder-32b", "int4"},     {"codestral-22b", "int4"},
    {"mixtral-8x7b", "int4"},
};
enum { N_CARD_ROWS = sizeof card_rows / sizeof *card_rows };

static void print_cards(void) {
    printf("## One card\n\nDecode of one sequence, empty context, tokens/s: limit / expected. A dash: it does not "
           "fit.\n\n");
    print_heading("| model | recipe | weights, GB |", 3);
    for (int i = 0; i < N_CARD_ROWS; i++) print_cards_row(card_rows[i].model, card_rows[i].quant);
    printf("\n![tokens a second against memory bandwidth](what-fits-bandwidth.svg)\n\n"
           "Tokens of cache beside the weights, in fp8, at most the model's context:\n\n");
    print_heading("| model | recipe |", 2);
    for (int i = 0; i < N_CARD_ROWS; i++) print_context_row(card_rows[i].model, card_rows[i].quant);
}

static void print_batches(void) {
    static const int batches[] = {1, 4, 8, 16, 64};
    printf("\n## Several sequences\n\nDeepSeek-Coder-V2-Lite, 2,048 tokens each, cache in fp8, tokens/s of all "
           "together: limit / expected. A\n"
           "mixture of experts reads more of them for each sequence more, so that batches pay late.\n\n"
           "| batch | experts of a layer | RTX 4090, fp8 | RTX 4090, int4 | H100, fp8 | H100, int4 |\n"
           "| ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        static const char *const cards[] = {"rtx-4090", "h100"}, *const quants[] = {"fp8", "int4"};
        struct plan_memory memory = {.place = PLAN_IN_GPU};
        struct plan_arch arch;
        plan_arch_builtin(&arch, "deepseek-coder-v2-lite");
        printf("| %d | %.2f |", batches[b], plan_arch_distinct_experts(&arch, batches[b]));
        for (int i = 0; i < 4; i++) {
            struct plan_input in =
                plan_table_input("deepseek-coder-v2-lite", quants[i % 2], cards[i / 2], KV_FP8, 2048, batches[b]);
            struct plan_speed speed;
            plan_decode(&in, &memory, batches[b], 2048, &speed);
            printf(" %.0f / %.0f |", plan_speed_limit(&speed), plan_speed_expected(&speed));
        }
        printf("\n");
    }
}

/* Routed experts of some layers in RAM: how many, how fast, and how fast with those of all. */
static void print_split_cell(const char *quant, const char *card) {
    struct plan_input in = plan_table_input("deepseek-coder-v2-lite", quant, card, KV_BF16, 8192, 1);
    struct plan_memory memory;
    struct plan_speed split, all;
    in.machine.ram_bytes = 64 * GB;
    in.machine.ram_gb_s = 60;
    plan_memory(&in, &memory);
    plan_decode(&in, &memory, 1, 0, &split);
    if (memory.place == PLAN_IN_GPU) {
        printf(" all on the card: %.0f |", plan_speed_expected(&split));
        return;
    }
    int n = plan_cpu_layers(&in, &memory);
    memory.card_layers = 0;
    plan_decode(&in, &memory, 1, 0, &all);
    printf(" %d: %.0f (%.0f) |", n, plan_speed_expected(&split), plan_speed_expected(&all));
}

static void print_split(void) {
    static const char *const quants[] = {"int4", "awq-g64", "fp8", "bf16"};
    static const char *const cards[] = {"a=6,272,30", "a=8,272,30", "a=12,360,50", "rtx-4080", "rtx-4090"};
    printf("\n## A card that is a bit too small\n\nDeepSeek-Coder-V2-Lite, 8,192 tokens of cache in bf16, one "
           "sequence, empty context, RAM at 60 GB/s: of how many of its 26\n"
           "layers the routed experts stay in RAM, where the processor computes them (`--n-cpu-moe N`, which "
           "`--expert-device auto`\nfinds by itself), and tokens/s as expected; in brackets with the experts of all "
           "layers there (`--cpu-moe`).\n\n"
           "| recipe | 6 GB, 272 GB/s | 8 GB, 272 GB/s | 12 GB, 360 GB/s | rtx-4080 | rtx-4090 |\n"
           "| --- | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t q = 0; q < sizeof quants / sizeof *quants; q++) {
        printf("| %s |", quants[q]);
        for (size_t i = 0; i < sizeof cards / sizeof *cards; i++) print_split_cell(quants[q], cards[i]);
        printf("\n");
    }
}

/* ---- processors ---- */

/* One user's, limit and expected. */
static void print_cpu_speed(const struct plan_input *in, double gb_s, int depth) {
    const struct plan_cpu_case c = {.arch = &in->arch,
                                    .weights = &in->weights,
                                    .kv = KV_BF16,
                                    .read_gb_s = gb_s,
                                    .routed_bytes = -1,
                                    .cache_rows = -1};
    struct plan_speed speed;
    plan_predict_cpu(&c, 1, depth, &speed);
    printf(" %.1f / %.1f |", plan_speed_limit(&speed), plan_speed_expected(&speed));
}

static void print_processors(void) {
    static const double gb_s[] = {20, 60, 89, 300, 600};
    static const char *const quants[] = {"bf16", "fp8", "awq-g64", "int4"};
    printf("\n## No card\n\nDeepSeek-Coder-V2-Lite on a processor, one sequence, empty context: limit / expected by "
           "the speed of its RAM.\n\n"
           "| recipe | weights, GB | 20 GB/s | 60 GB/s | 89 GB/s | 300 GB/s | 600 GB/s |\n"
           "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (int q = 0; q < 4; q++) {
        struct plan_input in = plan_table_input("deepseek-coder-v2-lite", quants[q], "none", KV_BF16, 1024, 1);
        printf("| %s | %.1f |", quants[q], plan_weights_total(&in.weights) / GB);
        for (size_t i = 0; i < sizeof gb_s / sizeof *gb_s; i++) {
            print_cpu_speed(&in, gb_s[i], 0);
        }
        printf("\n");
    }
}

/* ---- 671B ---- */

static struct plan_speed decode_beside_ram(const char *quant, double ram_gb_s, double ssd_gb_s, double hit_rate) {
    struct plan_input in = plan_table_input("deepseek-v3", quant, "rtx-4090", KV_FP8, 8192, 1);
    struct plan_memory memory = {.place = ssd_gb_s > 0 ? PLAN_IN_GPU_RAM_SSD : PLAN_IN_GPU_RAM, .held = 1};
    struct plan_speed speed;
    in.machine.ram_gb_s = ram_gb_s;
    in.machine.ssd_gb_s = ssd_gb_s;
    in.machine.hit_rate = hit_rate;
    plan_decode(&in, &memory, 1, 0, &speed);
    return speed;
}

static void print_v3_ram(void) {
    static const double gb_s[] = {89, 300, 600, 844};
    static const char *const quants[] = {"int4", "fp8,routed=int4", "int4,routed=2.4"};
    printf("\n## 671B: experts in RAM\n\nDeepSeek-V3 or R1, an RTX 4090 for what is not routed, experts computed by "
           "the processor where they lie; one\n"
           "sequence, empty context, tokens/s: limit / expected. Assumed: RAM gives 80 %% of its rating; the\n"
           "card's part (what is not routed: 16.08 B weights and 0.11 B of routers) and the processor's follow one "
           "another.\n\n"
           "| recipe | experts, GB | 89 GB/s | 300 GB/s | 600 GB/s | 844 GB/s |\n| --- | ---: | ---: | ---: | ---: | "
           "---: |\n");
    for (int q = 0; q < 3; q++) {
        struct plan_input in = plan_table_input("deepseek-v3", quants[q], "rtx-4090", KV_FP8, 8192, 1);
        printf("| %s | %.0f |", quants[q], in.weights.bytes[PLAN_ROUTED] / GB);
        for (size_t i = 0; i < sizeof gb_s / sizeof *gb_s; i++) {
            struct plan_speed speed = decode_beside_ram(quants[q], gb_s[i], 0, -1);
            printf(" %.1f / %.1f |", plan_speed_limit(&speed), plan_speed_expected(&speed));
        }
        printf("\n");
    }
    printf("\n![671B against RAM bandwidth and hit rate](what-fits-671b.svg)\n");
}

static void print_v3_held(void) {
    static const double gb[] = {64, 96, 128, 192, 256, 384};
    static const char *const quants[] = {"int4", "int4,routed=2.4"};
    printf("\nShare of all experts that RAM holds (8 GB are left to the system):\n\n"
           "| recipe | 64 GB | 96 GB | 128 GB | 192 GB | 256 GB | 384 GB |\n| --- | ---: | ---: | ---: | ---: | ---: | "
           "---: |\n");
    for (int q = 0; q < 2; q++) {
        printf("| %s |", quants[q]);
        for (size_t i = 0; i < sizeof gb / sizeof *gb; i++) {
            struct plan_input in = plan_table_input("deepseek-v3", quants[q], "rtx-4090", KV_FP8, 8192, 1);
            struct plan_memory memory;
            in.machine.ram_bytes = gb[i] * GB;
            in.machine.ssd_gb_s = 7;
            in.machine.experts = PLAN_EXPERTS_DISK; /* of all layers */
            plan_memory_at(&in, PLAN_IN_GPU_RAM_SSD, &memory);
            printf(" %.0f %% |", memory.held * 100);
        }
        printf("\n");
    }
}

static void print_v3_disk(void) {
    static const double hits[] = {0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99};
    static const struct {
        const char *quant;
        double ssd_gb_s;
    } rows[] = {{"int4", 7}, {"int4", 14}, {"int4,routed=2.4", 14}};
    printf("\n## 671B: experts on disk\n\nRAM at 89 GB/s, by the hit rate in RAM; tokens/s: one after the other / the "
           "disk read beside the rest.\n"
           "Assumed: the disk gives 90 %% of its rating; what comes from it is then read from RAM like everything "
           "else.\n\n"
           "| recipe, disk | 0 | 0.5 | 0.7 | 0.8 | 0.9 | 0.95 | 0.99 |\n"
           "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        printf("| %s, %.0f GB/s |", rows[r].quant, rows[r].ssd_gb_s);
        for (size_t i = 0; i < sizeof hits / sizeof *hits; i++) {
            struct plan_speed speed = decode_beside_ram(rows[r].quant, 89, rows[r].ssd_gb_s, hits[i]);
            printf(" %.2f / %.2f |", plan_speed_expected(&speed), 1 / speed.overlapped_s);
        }
        printf("\n");
    }
}

/* How often RAM holds what a token wants is the text's business: what is known of it, and how to find out. */
static void print_hits(void) {
    printf(
        "\n### The hit rate of your text\n\n"
        "The tables above need a hit rate, and no table has yours. `moebius experts` runs a text through the model, or "
        "lets it write\n"
        "one, notes what each token chooses, and asks caches of eleven sizes what they would have found: the engine's "
        "own rule (its\n"
        "very code, and to the hit what `--expert-cache` then finds without reading ahead), the best fixed set, and "
        "one "
        "who knows\n"
        "the future. `plan` goes by what was found instead of \"all experts are alike\".\n\n"
        "```sh\n"
        "moebius experts MODEL --text book.txt -o book.experts.json                     # the text as it stands\n"
        "moebius experts MODEL --text prompt.txt --generate 1000 -o chat.experts.json   # what the model writes after "
        "it\n"
        "moebius plan MODEL --ram 96@89 --nvme 7 --expert-trace chat.experts.json       # tokens/s with that\n"
        "moebius experts MODEL --text book.txt --chunk 1 --expert-cache 8               # simulated beside measured\n"
        "```\n\n"
        "What `models/demo` (16 experts a layer, 2 a token, trained) does with a file of Python that it has not seen "
        "(`moebius\n"
        "experts models/demo --text tests/data/heldout/marshmallow-4.4.0/marshmallow/fields.py`, 22 November 2026, 2 "
        "cores of a\n"
        "shared Emerald Rapids machine; choices and counts, so the machine's speed has no part in it):\n\n"
        "| experts in memory | ours | best fixed set | knowing the future |\n| ---: | ---: | ---: | ---: |\n"
        "| 20.8 %% | 34.8 %% | 33.8 %% | 61.2 %% |\n| 50.0 %% | 67.8 %% | 67.1 %% | 85.3 %% |\n| 79.2 %% | 91.1 %% | "
        "90.5 %% | 96.9 %% |\n\n"
        "A token shares 32 %% of its experts with the one before it, where chance gives 12.5 %% and the experts' "
        "uneven shares alone\n"
        "15.6 %%: here locality is in the order of tokens rather than in favourites. That is one small model; yours "
        "has its own.\n");
}

/* As the engine does it: DESIGN.md, 6d. */
static void print_v3_ranks(void) {
    static const int machines[] = {2, 3, 4, 8};
    static const struct {
        const char *name;
        double gb_s, us;
    } nets[] = {{"1gbit,100", 0.125, 100}, {"10gbit,30", 1.25, 30}, {"100gbit,5", 12.5, 5}};
    printf(
        "\n## 671B: experts in several machines\n\nDeepSeek-V3 or R1 in int4, machines of 192 GB at 200 GB/s, no card: "
        "`mpirun -n N moebius serve`; one sequence, empty\n"
        "context, tokens/s: limit / expected (`moebius plan deepseek-v3 --quant int4 --gpu none --ram 192@200 --ranks "
        "4 --network\n"
        "10gbit,30 --context 8192`). The first machine has all that is not routed. **Tried as processes of one machine "
        "only.**\n\n"
        "| machines | first, GB | others, GB | 1 Gbit/s, 100 us | 10 Gbit/s, 30 us | 100 Gbit/s, 5 us |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        struct plan_input in = plan_table_input("deepseek-v3", "int4", "none", KV_BF16, 8192, 1);
        struct plan_memory memory;
        struct plan_speed speed;
        in.machine.ram_bytes = 192 * GB;
        in.machine.ram_gb_s = 200;
        in.machine.nodes = machines[i];
        in.machine.parallel = PLAN_PARALLEL_RANKS;
        plan_memory(&in, &memory);
        printf("| %d | %.0f | %.0f |", machines[i], memory.ram.need_bytes / GB, memory.other.need_bytes / GB);
        for (size_t n = 0; n < sizeof nets / sizeof *nets; n++) {
            in.machine.network_gb_s = nets[n].gb_s;
            in.machine.network_s = nets[n].us * 1e-6;
            plan_decode(&in, &memory, 1, 0, &speed);
            printf(" %.1f / %.1f |", plan_speed_limit(&speed), plan_speed_expected(&speed));
        }
        printf("\n");
    }
    printf("\nA layer takes as long as the machine takes that has most of its experts: of 8, two machines have 5.1 and "
           "2.9, not 4 and 4.\n"
           "Each layer's rows go there and back: two latencies, and 143 KB a token and layer with two machines. "
           "`/metrics` counts both.\n");
}

/* ---- DeepSeek-V4, V4.1 ---- */

/* By the recipe that is given, or as published. */
static struct plan_input input_of_v4(const char *model, const char *quant, int context) {
    struct plan_arch arch;
    plan_arch_builtin(&arch, model);
    return plan_table_input(model, quant ? quant : arch.published, "none", KV_BF16, context, 1);
}

static void print_v4_ram(void) {
    static const double gb_s[] = {89, 300, 600, 844};
    static const struct {
        const char *model, *quant;
    } rows[] = {{"deepseek-v4-flash", NULL}, {"deepseek-v4-flash", "int4"}, {"deepseek-v4-pro", NULL},
                {"deepseek-v4-pro", "int4"}, {"deepseek-v4.1-flash", NULL}, {"deepseek-v4.1-flash", "int4"}};
    printf(
        "\n## DeepSeek-V4 and V4.1: everything in RAM\n\nNo card (`moebius plan deepseek-v4-flash --gpu rtx-4090 --ram "
        "192@89` has one). One sequence that sees 32,768 tokens, cache in bf16,\n"
        "limit / expected by the speed of the RAM. As published: experts in FP4, the rest in FP8, head and "
        "embedding in BF16. V4.1's n-gram tables\n(203 GB) stay in their file: a token reads 48 rows of them.\n\n"
        "| model | recipe | weights, GB | cache, GB | 89 GB/s | 300 GB/s | 600 GB/s | 844 GB/s |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct plan_input in = input_of_v4(rows[r].model, rows[r].quant, 32768);
        printf("| %s | %s | %.0f | %.2f |", rows[r].model, rows[r].quant ? rows[r].quant : "as published",
               plan_weights_total(&in.weights) / GB, plan_arch_kv_bytes(&in.arch, KV_BF16) * 32768 / GB);
        for (size_t i = 0; i < sizeof gb_s / sizeof *gb_s; i++) {
            print_cpu_speed(&in, gb_s[i], 32768);
        }
        printf("\n");
    }
}

/* What RAM does not hold comes from a disk. */
static void print_v4_disk(void) {
    static const double gb[] = {32, 64, 96, 128, 192};
    static const char *const models[] = {"deepseek-v4-flash", "deepseek-v4-pro", "deepseek-v4.1-flash"};
    printf("\nThe same with less RAM than that, at 89 GB/s, and the other experts on a disk of 7 GB/s (8 GB are left "
           "to the "
           "system):\n"
           "share of the experts that RAM holds, which is the hit rate if all are alike, and tokens/s as expected.\n\n"
           "| as published | 32 GB | 64 GB | 96 GB | 128 GB | 192 GB |\n| --- | ---: | ---: | ---: | ---: | ---: |\n");
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        printf("| %s |", models[m]);
        for (size_t i = 0; i < sizeof gb / sizeof *gb; i++) {
            struct plan_input in = input_of_v4(models[m], NULL, 8192);
            struct plan_memory memory;
            struct plan_speed speed;
            in.machine.ram_bytes = gb[i] * GB;
            in.machine.ram_gb_s = 89;
            in.machine.ssd_gb_s = 7;
            plan_memory(&in, &memory);
            plan_decode(&in, &memory, 1, 8192, &speed);
            if (memory.fits) {
                printf(" %.0f %%: %.2f |", memory.held * 100, plan_speed_expected(&speed));
            } else {
                printf(" - |");
            }
        }
        printf("\n");
    }
}

/* ---- figures of others ---- */

static void print_possible(void) {
    static const struct {
        const char *model;
        double said;
    } rows[] = {{"qwen2.5-coder-14b", 135},
                {"qwen2.5-coder-32b", 65},
                {"codestral-22b", 80},
                {"mixtral-8x7b", 85},
                {"deepseek-coder-v2-lite", 145}};
    printf("\n## Is it possible?\n\nThe guide's figures for 4-bit weights on an RTX 4090 (1,008 GB/s), one sequence, "
           "against 4.6 bits for each active\n"
           "weight (`moebius plan --check`):\n\n"
           "| model | active, B | the guide | at most | |\n| --- | ---: | ---: | ---: | --- |\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct plan_arch arch;
        plan_arch_builtin(&arch, rows[i].model);
        double active = (double)plan_arch_active(&arch), limit = plan_check_limit(active, 4.6, 1008);
        double share = rows[i].said / limit;
        printf("| %s | %.2f | %.0f | %.1f | %s |\n", rows[i].model, active * 1e-9, rows[i].said, limit,
               share > 1.02   ? "not possible"
               : share > 0.98 ? "only without any loss at all"
                              : "possible");
    }
}

static void print_constants(void) {
    printf("\n## Constants\n\nWhat turns a limit into an expectation, and where it comes from "
           "(`src/plan/efficiency.c`):\n\n"
           "| constant | value | origin |\n| --- | ---: | --- |\n");
    for (int i = 0; i < PLAN_CONSTANTS; i++) {
        const struct plan_efficiency *e = plan_efficiency_get((enum plan_constant)i);
        printf("| %s | %g | %s |\n", e->name, e->value, e->origin);
    }
}

static void print_how(void) {
    printf(
        "\n## How it is computed\n\n"
        "- GB are 1e9 bytes. `moebius plan MODEL --explain` prints every term of every figure.\n"
        "- A step reads all matrices but the routed experts once, each expert that the batch meets once, and batch "
        "x depth rows\n"
        "  of the cache (V4: its window, and compressed rows or index keys and the rows that are chosen). Norms and\n"
        "  the embedding's rows are left out.\n"
        "- A batch of B independent tokens meets E (1 - (1 - k/E)^B) of E experts in a layer. Text is more alike: "
        "an upper end.\n"
        "- A limit is the slowest device, all of them at full speed at once. An expectation is one device after the "
        "other, each at\n"
        "  its share, and 3.3 us for each kernel on a card: 7 a layer, 6 where it is dense, one more with low-rank "
        "queries, "
        "and\n"
        "  one more from 9 rows on; V3.2: two more, and four where it chooses rows; V4: 17, two more with a "
        "compressor, one more\n"
        "  with index keys, three more where it chooses.\n"
        "- What RAM does not hold is read from disk to RAM and then from RAM. With routing that has no favourites, "
        "the hit rate\n"
        "  is the share that RAM holds.\n"
        "- Recipes: `int4` is 4-bit in groups of 128 with fp16 scales (4.125 bits), kv_b and head in fp8, embedding "
        "and router in\n"
        "  bf16; `fp8` has 128x128 blocks; `awq-g64` keeps head and embedding in 16 bits; `routed=2.4` are 2.4 bits "
        "for experts.\n");
}

void plan_print_what_fits(void) {
    printf("# What fits, and how fast\n\n"
           "Generated by `moebius plan --table what-fits`; a test holds this file to the command. **Every speed here "
           "is a\n"
           "prediction from shapes and data sheets, none is a measurement of ours**; it does not depend on the machine "
           "that printed it.\n"
           "`moebius plan MODEL` does the same for your machine, and `moebius bench` compares it with what the engine "
           "does.\n"
           "Models other than DeepSeek's are here for comparison; this engine does not run them.\n\n");
    print_cards();
    print_batches();
    print_split();
    print_processors();
    print_v3_ram();
    print_v3_held();
    print_v3_disk();
    print_hits();
    print_v3_ranks();
    print_v4_ram();
    print_v4_disk();
    printf("\n## The hosting guide's memory table\n\n");
    plan_print_table(PLAN_TABLE_VRAM);
    printf("\n## The hosting guide's concurrency table\n\n");
    plan_print_table(PLAN_TABLE_CONCURRENCY);
    printf("\n## The analysis's four estimates\n\n");
    plan_print_table(PLAN_TABLE_ESTIMATES);
    print_possible();
    print_how();
    print_constants();
}
