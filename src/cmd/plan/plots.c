/* cmd/plan/plots.c - the two pictures of docs/what-fits.md. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "cmd/plan/plan.h"
#include "plan/plot.h"

/* Colours that people with colour-blindness can tell apart. */
static const char *const colors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00"};

/* Bytes of a token, at batch 1 and no context: a straight line. */
static double bytes_of_token(const char *model, const char *quant) {
    struct plan_input in = plan_table_input(model, quant, "rtx-4090", KV_FP8, 1024, 1);
    return plan_weights_fixed_bytes(&in.arch, &in.weights) + plan_weights_routed_bytes(&in.arch, &in.weights, 1);
}

static void plot_cards(const struct plot_axis *x, const struct plot_axis *y, const char *quant, const char *color) {
    for (int i = 0; plan_gpu_builtin(i); i++) {
        const struct plan_gpu *gpu = plan_gpu_builtin(i);
        struct plan_input in = plan_table_input("deepseek-coder-v2-lite", quant, gpu->name, KV_FP8, 1024, 1);
        struct plan_memory memory;
        struct plan_speed speed;
        plan_memory_at(&in, PLAN_IN_GPU, &memory);
        if (!memory.fits) continue;
        plan_decode(&in, &memory, 1, 0, &speed);
        plot_point(stdout, x, y, color, gpu->gb_s, plan_speed_expected(&speed));
    }
}

/* Neighbours are close: names go to the left of the line and to the right in turn. */
static void name_cards(const struct plot_axis *x) {
    for (int i = 0; plan_gpu_builtin(i); i++) {
        const struct plan_gpu *gpu = plan_gpu_builtin(i);
        plot_upright(stdout, x, gpu->gb_s, gpu->name, strcmp(gpu->name, "rtx-4090") && strcmp(gpu->name, "a100-80g"));
    }
}

static void plot_bandwidth(void) {
    static const double x_ticks[] = {10, 30, 100, 300, 1000, 3000}, y_ticks[] = {1, 3, 10, 30, 100, 300, 1000, 3000};
    static const struct {
        const char *model, *quant, *label;
    } lines[] = {
        {"deepseek-coder-v2-lite", "int4", "V2-Lite, int4"},
        {"deepseek-coder-v2-lite", "fp8", "V2-Lite, fp8"},
        {"deepseek-coder-v2-lite", "bf16", "V2-Lite, bf16"},
        {"qwen2.5-coder-14b", "int4", "Qwen 14B, int4"},
        {"deepseek-v3", "int4", "V3 671B, int4"},
    };
    const struct plot_axis x = {"memory bandwidth, GB/s", 10, 5000, x_ticks, 6};
    const struct plot_axis y = {"tokens/s, one sequence", 1, 5000, y_ticks, 8};
    plot_begin(stdout, "Tokens a second against memory bandwidth",
               "lines: limits, empty context; points: expected on cards (a prediction, not measured by us)", &x, &y);
    name_cards(&x);
    for (int i = 0; i < 5; i++) {
        double bytes = bytes_of_token(lines[i].model, lines[i].quant);
        struct plot_series s = {.label = lines[i].label, .color = colors[i], .dashed = i > 2, .n = 2};
        s.x[0] = fmax(x.min, bytes * 1e-9);
        s.x[1] = fmin(x.max, y.max * bytes * 1e-9);
        for (int k = 0; k < 2; k++) s.y[k] = s.x[k] / (bytes * 1e-9);
        plot_line(stdout, &x, &y, &s);
    }
    plot_cards(&x, &y, "int4", colors[0]);
    plot_cards(&x, &y, "fp8", colors[1]);
    plot_cards(&x, &y, "bf16", colors[2]);
    plot_end(stdout);
}

static void plot_671b(void) {
    static const double x_ticks[] = {50, 100, 200, 300, 500, 800}, y_ticks[] = {1, 2, 3, 5, 10, 20, 30, 50};
    static const struct {
        double hit;
        const char *label;
    } lines[] = {{1, "all in RAM"},
                 {0.95, "hit rate 0.95"},
                 {0.9, "hit rate 0.9"},
                 {0.8, "hit rate 0.8"},
                 {0.5, "hit rate 0.5"}};
    const struct plot_axis x = {"RAM bandwidth, GB/s", 40, 1000, x_ticks, 6};
    const struct plot_axis y = {"tokens/s, one sequence", 1, 60, y_ticks, 8};
    plot_begin(
        stdout, "671B, int4: RTX 4090, experts in RAM, misses from a disk of 14 GB/s",
        "expected, one part after the other; dashed: the disk read beside the rest (a prediction, not measured by us)",
        &x, &y);
    for (int i = 0; i < 5; i++) {
        struct plot_series serial = {.label = lines[i].label, .color = colors[i]},
                           beside = {.color = colors[i], .dashed = 1};
        struct plan_memory memory = {.place = PLAN_IN_GPU_RAM_SSD, .held = 1};
        struct plan_input in = plan_table_input("deepseek-v3", "int4", "rtx-4090", KV_FP8, 8192, 1);
        in.machine.ssd_gb_s = 14;
        in.machine.hit_rate = lines[i].hit;
        for (double gb_s = x.min; gb_s <= x.max * 1.001; gb_s *= pow(x.max / x.min, 1.0 / 24)) {
            struct plan_speed speed;
            in.machine.ram_gb_s = gb_s;
            plan_decode(&in, &memory, 1, 0, &speed);
            serial.x[serial.n] = beside.x[beside.n] = gb_s;
            serial.y[serial.n++] = plan_speed_expected(&speed);
            beside.y[beside.n++] = 1 / speed.overlapped_s;
        }
        if (lines[i].hit < 1) plot_line(stdout, &x, &y, &beside);
        plot_line(stdout, &x, &y, &serial);
    }
    plot_end(stdout);
}

void plan_print_plot(enum plan_plot plot) {
    if (plot == PLAN_PLOT_BANDWIDTH) plot_bandwidth();
    if (plot == PLAN_PLOT_671B) plot_671b();
}
