#include "plan/efficiency.h"

#define OUR_BENCH "moebius bench, 2 threads of a shared Sapphire Rapids machine (AVX-512), 2026-11"
#define OUR_CHECK                                                                                                      \
    "moebius bench, 2 threads of a shared Emerald Rapids machine (AVX-512), 2026-11-22: int8 0.78, fp8 0.66"
#define OUR_GGUF                                                                                                       \
    "moebius bench, 2 threads of a shared Emerald Rapids machine, 2026-11-22, a Q4_K_M file of V2-Lite's shape"

static const struct plan_efficiency table[PLAN_CONSTANTS] = {
    [PLAN_CPU_F32] = {"cpu_f32", 0.86, false, "taken to be as good as 16-bit weights: not measured by us"},
    [PLAN_CPU_16BIT] = {"cpu_16bit", 0.86, true, OUR_BENCH ", depth 0"},
    [PLAN_CPU_8BIT] = {"cpu_8bit", 0.72, true, OUR_CHECK},
    [PLAN_CPU_4BIT] = {"cpu_4bit", 0.80, true, OUR_BENCH ", AWQ and int4 (0.82), depth 0"},
    [PLAN_CPU_BLOCKS] =
        {"cpu_blocks", 0.75, true,
         "moebius bench, 2 threads of a shared Zen 4 machine, 2026-11-23, Q4_K_M: 0.69 to 0.83 (--no-repack: 0.6)"},
    [PLAN_CPU_GRIDS] = {"cpu_grids", 0.22, true,
                        "moebius check --bench, the same machine: IQ1_S 0.11, IQ2 0.14 to 0.37, IQ3 0.28 to 0.38"},
    [PLAN_CPU_CACHE] = {"cpu_cache", 0.86, false, "taken to be as good as 16-bit weights: not measured by us"},
    [PLAN_CPU_OPS] = {"cpu_operations", 0.45, true,
                      "moebius bench, 2 threads of a Zen 4 machine, 2026-11-23, V4 and V4.1 as published: eight users "
                      "0.37 to 0.49"},
    [PLAN_CPU_OPS8] = {"cpu_operations_8bit", 0.45, true, OUR_BENCH "-22, int4, V2-Lite's shape, 256 tokens"},
    [PLAN_CPU_OPS_BLOCKS] = {"cpu_operations_blocks", 0.29, true, OUR_GGUF ", 512 tokens: 0.29 to 0.30"},
    [PLAN_RAM_EXPERTS] = {"ram_experts", 0.80, false,
                          "a prediction, not measured by us; published engines reach 9 to 40 % of the rated speed"},
    [PLAN_SSD] = {"ssd", 0.90, true,
                  "moebius bench --expert-cache, two machines with virtual disks, 2026-11-22 and -23: 0.84 to 1.9"},
    [PLAN_SYSTEM_RAM] = {"system_ram_bytes", 8e9, false, "assumed"},
    [PLAN_GPU_MEMORY] = {"gpu_memory", 0.92, false,
                         "calm's README, 923 of 1008 GB/s on an RTX 4090: not measured by us"},
    [PLAN_GPU_OPS] = {"gpu_operations", 0.60, false, "mma.sync of 16-bit values: a prediction, not measured by us"},
    [PLAN_GPU_LAUNCHES] = {"gpu_launches_a_layer", 6, false,
                           "this engine's CUDA path; one more with low-rank queries, or experts unlike the shared "
                           "ones; from 9 rows on two"},
    [PLAN_GPU_LAUNCH_S] =
        {"gpu_launch_s", 3.3e-6, false,
         "1.3 us between nodes of a graph (Hazy Research, H100) and 2 us to fill and drain (assumed): "
         "not measured by us"},
    [PLAN_GPU_CONTEXT] = {"gpu_context_bytes", 0.4e9, false, "assumed: driver context, graphs, kernels"},
    [PLAN_HOST_LINK] =
        {"host_link", 0.80, false,
         "assumed, and a third of the RAM's speed at most, which copies what is sent: not measured by us"},
    [PLAN_LINK_S] = {"link_s", 10e-6, false, "assumed: cards in one machine, over PCIe or NVLink"},
};

const struct plan_efficiency *plan_efficiency_get(enum plan_constant constant) {
    return &table[constant];
}

double plan_share(enum plan_constant constant) {
    return table[constant].value;
}
