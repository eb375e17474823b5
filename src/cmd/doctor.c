#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/energy.h"
#include "base/file.h"
#include "base/json.h"
#include "base/numa.h"
#include "cmd/bench/machine.h"
#include "cli/cli.h"
#include "cmd/cmd.h"
#include "plan/detect.h"
#include "ranks/ranks.h"

static const double GB = 1e9;

/* Everything that was looked at; for people it is printed as it comes. */
struct checkup {
    const char *folder;
    bool quick;
    struct plan_host host;
    struct numa_choice numa; /* as an engine would have it: what is measured is what it would get */
    struct plan_cuda cuda;
    int energy_meters;
    struct plan_disk disk;
    struct mo_error disk_error; /* a disk that cannot be measured is a finding, not a failure */
    struct bench_spread read_gb_s;
    int threads;
    json_t *advice;
};

enum { NAME_WIDTH = 12 };

static void say(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(const char *name, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("%-*s ", NAME_WIDTH, name);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
}

/* A sentence of advice: kept for --json, printed under the line it belongs to. */
static void advise(struct checkup *c, bool json, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void advise(struct checkup *c, bool json, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    json_array_append_new(c->advice, json_string(text));
    if (!json) say("", "  -> %s", text);
}

/* ---- one line after another ---- */

static void check_processor(struct checkup *c, bool json) {
    const struct plan_host *h = &c->host;
    if (!json)
        say("processor", "%s: level %s, %d threads on %.0f cores, %.2f GHz, %.0f GFLOPS at most; %d memory node%s",
            h->processor[0] ? h->processor : "unknown", cpu_level_name(h->level), h->threads, h->cores, h->ghz,
            h->gflops, h->numa_nodes, h->numa_nodes == 1 ? "" : "s");
    if (h->level == CPU_REF)
        advise(c, json,
               "no AVX2: only the plain C kernels run here, many times slower; any x86-64 machine since about 2013 has "
               "it");
    if (h->threads > h->cores)
        advise(c, json, "two threads a core: try -t %.0f, one thread a core often reads memory as fast", h->cores);
}

/* Nothing where there is one. */
static void check_nodes(struct checkup *c, bool json) {
    struct numa numa;
    numa_look(&numa);
    for (int i = 0; i < numa.n && numa.n > 1 && !json; i++) {
        const struct numa_node *node = &numa.nodes[i];
        say(i ? "" : "memory nodes", "node %d: %.2f GB, %d processors for this process", node->id,
            node->memory_bytes / GB, node->n_cpus);
    }
    if (c->numa.use == NUMA_DISTRIBUTE) {
        const int n = __builtin_popcountll(c->numa.nodes);
        advise(c, json,
               "one process spreads pages and threads over %d nodes (--numa); or one process a node, with its share of "
               "the experts in its own memory: mpirun -n %d --map-by ppr:1:numa --bind-to numa moebius serve MODEL",
               n, n);
    }
    if (c->numa.why_not.code) advise(c, json, "memory nodes: %s", c->numa.why_not.message);
    if (numa.n > 1 && !c->numa.has_several) advise(c, json, "this process is bound to one of %d memory nodes", numa.n);
}

static void check_memory(struct checkup *c, bool json) {
    const struct plan_host *h = &c->host;
    bool grouped = h->group_bytes > 0 && h->group_bytes < h->memory_bytes;
    if (!json) {
        say("memory", "%.2f GB, %.2f GB free%s", h->memory_bytes / GB, h->available_bytes / GB,
            grouped ? " (by the limit of the control group)" : "");
    }
    if (grouped)
        advise(c, json,
               "a control group allows %.2f of %.2f GB: raise it (docker run --memory) if the model needs more",
               h->group_bytes / GB, h->memory_bytes / GB);
    if (h->available_bytes < h->memory_bytes / 2 && !grouped)
        advise(c, json, "more than half of the memory is in use by others");
    if (h->swap_bytes > 0)
        advise(c, json,
               "swap is on: weights are mapped files and never go there, but the cache could; swapoff -a on a server");
}

static int check_memory_speed(struct checkup *c, bool json, struct mo_error *error) {
    if (c->quick) return 0;
    int code = bench_measure_read(c->threads, &c->read_gb_s, error);
    if (code) return code;
    if (!json)
        say("memory read", "%.2f GB/s with %d threads (%.2f to %.2f)%s", c->read_gb_s.median, c->threads,
            c->read_gb_s.min, c->read_gb_s.max, c->numa.use == NUMA_DISTRIBUTE ? ", pages over all memory nodes" : "");
    if (c->read_gb_s.max > 1.3 * c->read_gb_s.min)
        advise(c, json,
               "the speed changes by %.0f %% within a second: something else is running, or the machine is shared",
               (c->read_gb_s.max / c->read_gb_s.min - 1) * 100);
    return 0;
}

static void check_cards(struct checkup *c, bool json) {
    plan_detect_cuda(&c->cuda);
    if (!c->cuda.n && !json) say("card", "none: %s", c->cuda.why_not);
    for (int i = 0; i < c->cuda.n; i++) {
        const struct plan_gpu *g = &c->cuda.cards[i];
        if (json) continue;
        say("card", "%s: %.2f GB, %.0f GB/s and %.0f TFLOPS (16 bit) rated, compute capability %d.%d", g->name,
            g->memory_bytes / GB, g->gb_s, g->tflops, c->cuda.capability[i] / 10, c->cuda.capability[i] % 10);
    }
    if (c->cuda.n && !json)
        say("", "driver for CUDA %d.%d", c->cuda.driver_version / 1000, c->cuda.driver_version % 1000 / 10);
    if (c->cuda.n > 1 && !json) say("", "together they hold a model by layers: --device cuda -pp %d", c->cuda.n);
    for (int i = 0; i < c->cuda.n; i++) {
        if (c->cuda.capability[i] < 80)
            advise(c, json, "%s is older than compute capability 8.0: this engine's kernels will not run on it",
                   c->cuda.cards[i].name);
    }
}

/* `bench` gives joules a token where there is a meter. */
static void check_energy(struct checkup *c, bool json) {
    struct energy energy;
    struct mo_error why = {0};
    energy_open(&energy, NULL, 0, &why);
    if (energy.n_zones && !json) say("energy", "%d meters of processors and their memory", energy.n_zones);
    if (!energy.n_zones && !json) say("energy", "no meter: %s", why.message);
    c->energy_meters = energy.n_zones;
    if (why.code == MO_E_IO)
        advise(c, json, "root alone reads the meters: chmod o+r energy_uj there, until the next start, for `bench`");
    energy_close(&energy);
}

static void check_disk(struct checkup *c, bool json) {
    if (c->quick) return;
    if (plan_measure_disk(c->folder, &c->disk, &c->disk_error)) {
        if (!json) say("disk", "not measured: %s", c->disk_error.message);
        return;
    }
    const struct plan_disk *d = &c->disk;
    if (!json)
        say("disk", "%.2f GB/s, %s: %.2f GB of %s", d->gb_s, d->direct ? "direct reads" : "through the page cache",
            d->bytes / GB, d->file);
    if (!d->direct)
        advise(c, json,
               "this file system allows no direct reads (tmpfs and some containers do not): the figure may be the "
               "memory's");
    if (d->direct && d->gb_s < 1)
        advise(c, json, "below 1 GB/s: a model of 100 GB takes minutes to come in; NVMe gives 3 to 14");
    if (d->is_own && d->bytes < 128e6) advise(c, json, "only little could be read: the figure is rough");
}

static const char *limit_text(double bytes, char text[24]) {
    if (isfinite(bytes)) {
        snprintf(text, 24, "%.2f GB", bytes / GB);
    } else {
        snprintf(text, 24, "unlimited");
    }
    return text;
}

static void check_limits(struct checkup *c, bool json) {
    const struct plan_host *h = &c->host;
    if (!json) {
        char locked[24], address[24];
        say("limits", "open files %.0f, locked memory %s, address space %s", h->files,
            limit_text(h->locked_bytes, locked), limit_text(h->address_bytes, address));
        say("huge pages", "%s; overcommit %d", h->huge_pages[0] ? h->huge_pages : "unknown", h->overcommit);
    }
    if (isfinite(h->address_bytes))
        advise(c, json, "the address space is limited: weights are mapped whole, so ulimit -v unlimited");
    if (h->files < 1024)
        advise(c, json, "few open files are allowed: each client of the server takes one; ulimit -n 65536");
    if (!strcmp(h->huge_pages, "never"))
        advise(c, json,
               "huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled saves a few percent");
    if (h->overcommit == 2)
        advise(c, json,
               "overcommit is off (2): the cache is reserved whole at start, so a long --max-model-len may be refused");
}

/* ---- for programs ---- */

/* JSON has no infinity: null is "no limit". */
static json_t *limit_json(double value) {
    return isfinite(value) ? json_integer((json_int_t)value) : json_null();
}

static json_t *cards_json(const struct plan_cuda *cuda) {
    json_t *list = json_array();
    for (int i = 0; i < cuda->n; i++) {
        const struct plan_gpu *g = &cuda->cards[i];
        json_array_append_new(list, json_pack("{so sI sf sf si}", "name", json_lossy(g->name), "memory_bytes",
                                              (json_int_t)g->memory_bytes, "gb_s", g->gb_s, "tflops", g->tflops,
                                              "capability", cuda->capability[i]));
    }
    return list;
}

static json_t *disk_json(const struct checkup *c) {
    if (c->disk.gb_s > 0) {
        return json_pack("{sf sb sI so sb}", "gb_s", c->disk.gb_s, "direct", c->disk.direct, "bytes",
                         (json_int_t)c->disk.bytes, "file", json_lossy(c->disk.file), "own_file", c->disk.is_own);
    }
    return c->quick ? json_null() : json_pack("{ss}", "why_not", c->disk_error.message);
}

static int print_json(const struct checkup *c, struct mo_error *error) {
    const struct plan_host *h = &c->host;
    json_t *root = json_pack("{s{ss ss si sf sf sf si} s{sI sI sI sI} s{so so so ss si} so so sO}", "processor", "name",
                             h->processor, "level", cpu_level_name(h->level), "threads", h->threads, "cores", h->cores,
                             "ghz", h->ghz, "gflops", h->gflops, "memory_nodes", h->numa_nodes, "memory", "bytes",
                             (json_int_t)h->memory_bytes, "available_bytes", (json_int_t)h->available_bytes,
                             "group_bytes", (json_int_t)h->group_bytes, "swap_bytes", (json_int_t)h->swap_bytes,
                             "limits", "files", limit_json(h->files), "locked_bytes", limit_json(h->locked_bytes),
                             "address_bytes", limit_json(h->address_bytes), "huge_pages", h->huge_pages, "overcommit",
                             h->overcommit, "cards", cards_json(&c->cuda), "disk", disk_json(c), "advice", c->advice);
    if (root && !c->quick)
        json_object_set_new(json_object_get(root, "memory"), "read_gb_s", json_real(c->read_gb_s.median));
    if (root) json_object_set_new(root, "energy_meters", json_integer(c->energy_meters));
    if (root && !c->cuda.n) json_object_set_new(root, "no_card", json_string(c->cuda.why_not));
    return json_print(root, error);
}

static int run(struct checkup *c, bool json, struct mo_error *error) {
    int code = plan_detect_host(&c->host, error);
    if (code) return code;
    if (!c->threads) c->threads = c->host.threads;
    numa_settle(NUMA_AUTO, &c->numa);
    check_processor(c, json);
    check_nodes(c, json);
    check_memory(c, json);
    code = check_memory_speed(c, json, error);
    if (code) return code;
    check_cards(c, json);
    check_energy(c, json);
    check_disk(c, json);
    check_limits(c, json);
    return json ? print_json(c, error) : 0;
}

int cmd_doctor(int argc, char **argv) {
    struct checkup checkup = {.folder = "."};
    bool json = false;
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--threads,-t", .type = CLI_INT, .target = &checkup.threads, .min = 1, .max = 1024, .value = "N", .help = "threads that read the memory (default: all processors)"},
        {.names = "--quick", .type = CLI_FLAG, .target = &checkup.quick, .help = "measure nothing"},
        {.names = "--json", .type = CLI_FLAG, .target = &json, .help = "for programs"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "doctor",
        .arguments = "[FOLDER] [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about = "Looks at this machine: processor, memory and its speed, cards, the disk of FOLDER (default: this "
                 "one), limits;\n"
                 "with advice where something stands in the way. Memory and disk are read for a second or two each. A "
                 "disk is\n"
                 "read through the folder's largest file, or one made for it and removed.",
        .examples = "  moebius doctor /models\n  moebius doctor --quick --json",
    };
    struct mo_error error = {0};
    int n_positionals, code = cli_parse(&command, argc, argv, &checkup.folder, &n_positionals, &error);
    if (code > 0) return 0;
    if (!code && !file_is_directory(checkup.folder))
        code = mo_error_set(&error, MO_E_INVALID, "%s: no such folder", checkup.folder);
    if (!code && ranks_are_meant()) { /* each would measure what the others leave, and they would talk at once */
        code = mo_error_set(&error, MO_E_UNSUPPORTED,
                            "looks at one machine, and alone: start it on each without mpirun (`plan --ranks` adds "
                            "machines up)");
    }
    checkup.advice = json_array();
    if (!code && !checkup.advice) code = mo_error_set(&error, MO_E_NO_MEMORY, "no memory");
    if (!code) code = run(&checkup, json, &error);
    json_decref(checkup.advice);
    return code ? cli_fail("doctor", &error) : 0;
}
