/* tests/fuzz/fuzz_plan.c - what `plan` reads: any JSON as a config.json or as a safetensors header is refused with a message, or gives
 * counts and bytes that are numbers; as a trace of experts likewise. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "plan/curve.h"
#include "plan/headers.h"
#include "plan/speed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_refused(int code, const struct mo_error *error) {
    if (code != 0 && (error->code != code || error->message[0] == 0)) abort();
}

/* Whatever was accepted can be planned for, with a card (of `vram` bytes) and without. */
static void plan_with(const struct plan_arch *arch, const struct plan_weights *weights, double vram) {
    struct plan_input in = {.arch = *arch, .weights = *weights};
    struct plan_memory memory;
    struct plan_speed speed;
    in.machine =
        (struct plan_machine){.ram_bytes = 64e9, .ram_gb_s = 60, .nodes = 1, .parallel = PLAN_PARALLEL_PIPELINE};
    if (vram > 0)
        in.machine.gpu =
            (struct plan_gpu){.name = "card", .count = 1, .memory_bytes = vram, .gb_s = 1000, .tflops = 100};
    in.wish = (struct plan_wish){.kv = KV_FP8, .context = 1024, .seqs = 2, .batched_tokens = 64, .utilization = 0.9};
    plan_memory(&in, &memory);
    plan_decode(&in, &memory, 2, 1024, &speed);
    if (!isfinite(memory.total_bytes) || memory.total_bytes < 0 || !isfinite(speed.expected_s)) abort();
    if (!isfinite(memory.scratch_bytes) || memory.scratch_bytes < 0) abort();
}

static void plan_it(const struct plan_arch *arch, const struct plan_weights *weights) {
    plan_with(arch, weights, 0);
    plan_with(arch, weights, 24e9);
    if (plan_arch_total(arch) < 0 || plan_arch_active(arch) < 0) abort();
}

static void read_as_config(const uint8_t *data, size_t size) {
    struct plan_arch arch;
    struct plan_quant quant;
    struct plan_weights weights;
    struct mo_error error = {0};
    int code = plan_arch_parse(&arch, (const char *)data, size, "fuzz.json", &error);
    check_refused(code, &error);
    if (code || plan_quant_parse(&quant, "int4", NULL)) return;
    plan_weights_from_quant(&weights, &arch, &quant);
    plan_it(&arch, &weights);
}

static void read_as_header(const uint8_t *data, size_t size) {
    struct plan_arch arch;
    struct plan_seen seen = {0};
    struct plan_weights weights;
    struct mo_error error = {0};
    json_t *header;
    if (json_parse((const char *)data, size, "fuzz.json", &header, NULL)) return;
    const char *match = json_is_object(header) ? plan_header_match(header) : NULL;
    plan_arch_builtin(&arch, match ? match : "deepseek-v2-lite");
    int code = json_is_object(header) ? plan_header_add(&seen, header, &arch, "fuzz", &error) : MO_E_CORRUPT;
    if (json_is_object(header)) check_refused(code, &error);
    json_decref(header);
    if (code) return;
    plan_seen_finish(&seen, &arch, &weights);
    plan_it(&arch, &weights);
}

static void read_as_trace(const uint8_t *data, size_t size) {
    struct plan_arch arch;
    struct plan_curve curve;
    struct mo_error error = {0};
    json_t *root;
    plan_arch_builtin(&arch, "deepseek-v2-lite");
    if (json_parse((const char *)data, size, "fuzz.json", &root, NULL)) return;
    int code = plan_curve_from(&curve, root, "fuzz.json", &arch, &error);
    check_refused(code, &error);
    json_decref(root);
    for (double share = 0; share <= 1 && !code; share += 1.0 / 64) {
        double rate = plan_curve_at(&curve, share);
        if (!(rate >= 0 && rate <= 1)) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    read_as_config(data, size);
    read_as_header(data, size);
    read_as_trace(data, size);
    return 0;
}
