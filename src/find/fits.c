#include "find/fits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "find/room.h"
#include "hub/select.h"
#include "ranks/ranks.h"

enum { MAX_CONFIG_BYTES = 4 << 20, LEAST_CONTEXT = 2048 };

/* Of a pull's wanted files; each once. */
static double wanted_bytes(const struct hub_pull *pull, bool only_weights) {
    double bytes = 0;
    for (int i = 0; i < pull->listing.n; i++) {
        const struct hub_file *file = &pull->listing.files[i];
        if (!file->is_wanted || file->is_copy || (only_weights && !hub_is_weights(file->path))) continue;
        bytes += (double)file->size;
    }
    return bytes;
}

/* 1: the repository has none, or it is not wanted. */
static int read_arch(struct plan_arch *arch, const struct hub_pull *pull, struct mo_error *error) {
    char path[HUB_PATH_BYTES], where[HUB_PATH_BYTES], *text;
    size_t size;
    int i = 0;
    while (i < pull->listing.n && strcmp(pull->listing.files[i].path, "config.json")) i++;
    if (i == pull->listing.n || !pull->listing.files[i].is_wanted) return 1;
    snprintf(path, sizeof path, "%s/blobs/%s", pull->cache.repository, pull->listing.files[i].hash);
    snprintf(where, sizeof where, "%s: config.json", pull->model);
    int code = file_read(path, MAX_CONFIG_BYTES, &text, &size, error);
    if (code) return code;
    code = plan_arch_parse(arch, text, size, where, error);
    free(text);
    if (!code && !arch->runs_here)
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s: not one of DeepSeek's models that this engine runs", where);
    return code;
}

/* As the engine would place it, with the shortest context that is worth it; experts on a disk, if there are some and the weights are
 * used as they are. */
static int plan(struct plan_report *report, const struct find_request *request, const struct plan_arch *arch,
                struct mo_error *error) {
    const char *quant = request->quantization;
    const bool is_made = quant && strcmp(quant, "auto") != 0;
    const struct plan_arguments arguments = {
        .hit_rate = -1,
        .utilization = 0.9,
        .nodes = 1,
        .n_cpu_moe = -1,
        .nvme_gb_s = is_made ? 0 : 1,
        .quant = is_made ? quant : NULL,
        .context = arch->context < LEAST_CONTEXT ? arch->context : LEAST_CONTEXT,
        .device = request->device && !strncmp(request->device, "cuda", 4) ? 0 : 1,
    };
    return plan_gather_room(report, &arguments, arch, error);
}

static int refuse(const struct hub_pull *pull, const struct plan_memory *memory, struct mo_error *error) {
    const bool is_card = memory->gpu.need_bytes > memory->gpu.have_bytes;
    const struct plan_room *room = is_card ? &memory->gpu : &memory->ram;
    return mo_error_set(error, MO_E_NO_MEMORY,
                        "%s does not fit: it needs %.2f GB of %s, and %.2f GB may be taken here (`moebius plan %s` "
                        "says what would fit; `moebius pull %s` fetches it all the same)",
                        pull->model, room->need_bytes / 1e9, is_card ? "each card" : "memory", room->have_bytes / 1e9,
                        pull->model, pull->model);
}

static int judge_arch(const struct find_request *request, const struct hub_pull *pull, const struct plan_arch *arch,
                      struct mo_error *error) {
    struct plan_report *report = calloc(1, sizeof *report);
    if (!report) return mo_error_set(error, MO_E_NO_MEMORY, "no memory");
    int code = plan(report, request, arch, error);
    const struct plan_memory *memory = &report->memory;
    if (!code && !memory->fits) code = refuse(pull, memory, error);
    if (!code)
        log_info("%s fits: %s; with %d tokens of context %.2f GB", pull->model, plan_place_text(memory->place),
                 report->input.wish.context, memory->total_bytes / 1e9);
    free(report);
    return code;
}

int find_fits(const struct find_request *request, const struct hub_pull *pull, struct mo_error *error) {
    struct plan_arch arch = {0};
    double weights = wanted_bytes(pull, true), memory = memory_available_bytes();
    log_info("%s is not here yet: fetching %.2f GB of it into %s", pull->model, wanted_bytes(pull, false) / 1e9,
             pull->cache.folder);
    if (request->need < FIND_FILES) return 0;
    int code = read_arch(&arch, pull, error);
    if (code < 0 || request->need != FIND_TO_RUN) return code < 0 ? code : 0;
    if (code == 0 && !ranks_are_meant()) return judge_arch(request, pull, &arch, error);
    if (weights > memory)
        log_warn("%s: weights of %.2f GB, and this machine has %.2f GB of memory free", pull->model, weights / 1e9,
                 memory / 1e9);
    return 0;
}
