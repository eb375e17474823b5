/* plan/detect.h - what this machine has: cards by the driver, a disk by reading from it, processors and limits by the system's
 * word. (RAM speed is measured by cmd/bench/machine.c.)
 * Includes: base, plan. */
#ifndef MOEBIUS_PLAN_DETECT_H
#define MOEBIUS_PLAN_DETECT_H

#include "base/cpu.h"
#include "plan/machine.h"

/* ---- cards ---- */

enum { PLAN_MAX_CARDS = 16 };
struct plan_cuda {
    char why_not[256];  /* "" if the driver answered */
    int driver_version; /* 12040: CUDA 12.4 */
    int n;
    struct plan_gpu cards[PLAN_MAX_CARDS];
    int capability[PLAN_MAX_CARDS]; /* 89: 8.9 */
};
/* Asks libcuda.so.1, if there is one; never fails, says why there is no card. */
void plan_detect_cuda(struct plan_cuda *cuda);
/* The cards like the first one, as one entry with a count. */
void plan_cuda_gpu(const struct plan_cuda *cuda, struct plan_gpu *gpu);

/* ---- disk ---- */

struct plan_disk {
    double gb_s, bytes, seconds;
    bool direct;    /* past the page cache; else it may have been in it */
    bool is_own;    /* a file of ours, written for this and gone again; else one that was there */
    char file[256]; /* which one */
};
/* Reads the folder's largest file, or one made for it, with several large reads at once, for two seconds
 * at most in all. */
int plan_measure_disk(const char *folder, struct plan_disk *disk, struct mo_error *error);

/* ---- processors and limits ---- */

struct plan_host {
    char processor[128];
    enum cpu_level level;
    int threads;   /* that this process may use */
    double cores;  /* physical ones behind them */
    double ghz;    /* the highest that the system admits to, or 0 */
    double gflops; /* multiply-adds of all of them, fp32, at that clock: the peak; 0: not known */
    double gops16; /* the same of bf16, where the level has products of them; else of fp32 */
    double gops8;  /* the same of bytes */
    int numa_nodes;
    double memory_bytes, available_bytes; /* of the machine; free */
    double group_bytes;                   /* the least that control groups allow (0: no limit) */
    double swap_bytes;
    char huge_pages[16];                       /* "always", "madvise", "never" or "" */
    int overcommit;                            /* 0, 1, 2; -1: not known */
    double locked_bytes, address_bytes, files; /* limits of this process; INFINITY: none */
};
int plan_detect_host(struct plan_host *host, struct mo_error *error);
/* How many times more multiply-adds of bytes than of fp32 a clock has at a level. */
double plan_cpu_bytes_factor(enum cpu_level level);
/* The same of bf16, for the kernels of 16-bit and FP8 weights and attention. */
double plan_cpu_bf16_factor(enum cpu_level level);

#endif
