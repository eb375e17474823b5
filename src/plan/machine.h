/* plan/machine.h - what a plan is made for: cards, RAM, disk, network, and the sizes asked for.
 * Includes: base, plan/arch.h, plan/curve.h. */
#ifndef MOEBIUS_PLAN_MACHINE_H
#define MOEBIUS_PLAN_MACHINE_H

#include "plan/curve.h"

struct plan_gpu {
    char name[64];
    int count; /* 0: none */
    double memory_bytes, gb_s;
    double tflops;    /* 16-bit tensor operations, fp32 sums, dense */
    double link_gb_s; /* to the other cards, one direction */
    double host_gb_s; /* from the machine's memory: PCIe with 16 lanes */
};

enum plan_parallel {
    PLAN_PARALLEL_AUTO,
    PLAN_PARALLEL_TENSOR,
    PLAN_PARALLEL_EXPERT,
    PLAN_PARALLEL_PIPELINE,
    PLAN_PARALLEL_RANKS /* as this engine does it: machines share routed experts (ranks.h) */
};
const char *plan_parallel_name(enum plan_parallel parallel);
enum plan_experts { PLAN_EXPERTS_AUTO, PLAN_EXPERTS_GPU, PLAN_EXPERTS_CPU, PLAN_EXPERTS_DISK };

struct plan_machine {
    struct plan_gpu gpu; /* of one machine */
    double ram_bytes, ram_gb_s;
    bool ram_measured; /* in this minute, by reading; else rated */
    double cpu_gflops; /* multiply-adds of all threads, fp32, each counted twice; 0: not known */
    double cpu_gops16; /* the same of bf16, where the level has them: 16-bit and FP8 weights, and attention */
    double cpu_gops8;  /* the same in 8 bits */
    double ssd_gb_s;   /* 0: none */
    double hit_rate;   /* of experts in RAM; below 0: by the curve, or without one the share of them that fits */
    struct plan_curve curve;
    int nodes; /* machines like this one */
    double network_gb_s, network_s;
    enum plan_parallel parallel;
    enum plan_experts experts;
    int cpu_layers; /* beside a card: layers whose routed experts the CPU computes (--n-cpu-moe); 0: as few as must */
};

/* What is asked of it. */
struct plan_wish {
    enum kv_format kv;
    int context, seqs;  /* sequences that run at once, each of up to `context` tokens */
    int batched_tokens; /* rows of one step: sizes the scratch */
    double utilization; /* share of a memory that weights and cache may take */
};

/* The cards that plan_gpu_parse knows; NULL after the last. */
const struct plan_gpu *plan_gpu_builtin(int i);
/* "rtx-4090", "2xrtx-4090", "NAME=GB,GB/s,TFLOPS", "none". */
int plan_gpu_parse(struct plan_gpu *gpu, const char *text, struct mo_error *error);
/* "64", "64GiB", "64@89": bytes, and GB/s if they are said. */
int plan_ram_parse(struct plan_machine *machine, const char *text, struct mo_error *error);
/* "1.25,50", "10gbit,50", "1250MB/s": speed (GB/s) and microseconds (50). */
int plan_network_parse(struct plan_machine *machine, const char *text, struct mo_error *error);

#endif
