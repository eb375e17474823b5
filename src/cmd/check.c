#include "cmd/check.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/json.h"
#include "base/pool.h"
#include "check/check.h"
#include "cli/cli.h"
#include "cmd/cmd.h"

struct arguments {
    bool bench, json, only;
    int threads;
    const char *format; /* with --bench: NULL is all */
};

/* ---- a kernel that touches what is not its own ends the program: say which ---- */

static struct check *running;

static void say(const char *text) {
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

static void stray_access(int number) {
    (void)number;
    say("moebius check: a kernel touched memory beside its arrays: ");
    say(check_now_level(running));
    say(" ");
    say(check_now_kernel(running));
    say("\n");
    _exit(1);
}

static void watch(struct check *check) {
    struct sigaction action = {.sa_handler = stray_access};
    running = check;
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

/* ---- output ---- */

static void print_line(void *context, const struct check_line *line) {
    (void)context;
    printf("%-8s %-26s %6d cases  max error %8.2g %s  %s%s\n", line->level, line->kernel, line->cases, line->max_error,
           line->limit, line->fault ? "FAILED: " : "ok", line->fault ? line->fault : "");
    fflush(stdout);
}

static void add_line(void *context, const struct check_line *line) {
    json_array_append_new(context, json_pack("{ss ss si so ss sb ss?}", "level", line->level, "kernel", line->kernel,
                                             "cases", line->cases, "max_error", json_finite(line->max_error), "limit",
                                             line->limit, "passed", !line->fault, "fault", line->fault));
}

static int print_json(const struct check *check, json_t *lines, json_t *left_out, struct mo_error *error) {
    json_t *root = json_pack("{ss sO sO si si}", "version", MOEBIUS_VERSION, "checks", lines, "left_out", left_out,
                             "passed", check_passed(check), "failed", check_failed(check));
    return json_print(root, error);
}

/* ---- the run ---- */

static int run_checks(const struct arguments *a, enum cpu_level best, bool *failed, struct mo_error *error) {
    struct check *check = NULL;
    json_t *lines = json_array(), *left_out = json_array();
    int code = check_open(&check, a->json ? add_line : print_line, lines, error);
    if (!code) watch(check);
    for (int level = a->only ? (int)best : CPU_REF; !code && level <= (int)best; level++) {
        if (cpu_offers((enum cpu_level)level)) check_level(check, (enum cpu_level)level);
    }
    for (int level = a->only ? (int)best : CPU_REF; !code && level < CPU_LEVELS; level++) {
        const char *name = cpu_level_name((enum cpu_level)level);
        if (level <= (int)best && cpu_offers((enum cpu_level)level)) continue;
        json_array_append_new(left_out, json_string(name));
        if (!a->json)
            printf("left out: %s, %s\n", name, "which this machine does not have or MOEBIUS_CPU does not ask for");
    }
    if (!code && a->json) code = print_json(check, lines, left_out, error);
    if (!code && !a->json) printf("%d passed, %d failed\n", check_passed(check), check_failed(check));
    *failed = !code && check_failed(check);
    check_close(check);
    json_decref(lines);
    json_decref(left_out);
    return code;
}

int cmd_check(int argc, char **argv) {
    struct arguments a = {.threads = pool_default_threads()};
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--bench", .type = CLI_FLAG, .target = &a.bench,
         .help = "time the kernels instead, of all formats or of one: f32, f16,\nbf16, fp8, fp8_32 (blocks of 32x32), fp4, int4_awq (all words\nturned are this), int4, int8, or one of GGUF's: q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k,\nq5_k, q6_k, iq4_nl, iq4_xs, iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s,\niq3_xxs, iq3_s, tq1_0, tq2_0, mxfp4"},
        {.names = "--threads,-t", .type = CLI_INT, .target = &a.threads, .min = 1, .max = 1024, .value = "N",
         .help = "with --bench: measured with one thread and with so many\n(default: the processors this process may use)"},
        {.names = "--only", .type = CLI_FLAG, .target = &a.only, .help = "the highest level alone, not those below it"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "for programs"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "check",
        .arguments = "[--bench [FORMAT]] [flags]",
        .flags = flags,
        .max_positionals = 1,
        .about =
            "Does this processor compute what it should? Every kernel, at every level of instructions that there is\n"
            "(MOEBIUS_CPU=ref|avx2|avx-vnni|avx512|avx512-bf16|amx sets the highest), is compared with plain C, bit "
            "for bit, and\n"
            "sums in double: odd sizes, ragged groups, subnormal and extreme scales, NaN, between pages that may not\n"
            "be touched. With --bench: how fast they read weights for one token, beside what the threads read from\n"
            "memory in the same seconds, and compute for 64, beside the machine's rate of 8-bit operations.\n\n"
            "avx512-bf16 rounds activations to bf16, adds in an order of its own (and is compared with plain C of "
            "that\n"
            "order), and is taken by itself on AMD's processors alone, where it does twice the work. amx-bf16 has an\n"
            "order of its own, too, is taken only when MOEBIUS_CPU asks for it, by every command, and has been run in\n"
            "emulation only, never on hardware.",
        .examples = "  moebius check\n"
                    "  moebius check --bench int4",
    };
    struct mo_error error = {0};
    enum cpu_level best;
    bool failed = false;
    int n_positionals, code = cli_parse(&command, argc, argv, &a.format, &n_positionals, &error);
    if (code > 0) return 0;
    if (!code && a.format && !a.bench) {
        code = mo_error_set(&error, MO_E_INVALID, "\"%.40s\": a format goes with --bench", a.format);
    }
    if (!code && a.only && a.bench) {
        code = mo_error_set(&error, MO_E_INVALID, "--only goes without --bench: MOEBIUS_CPU sets what is timed");
    }
    if (!code) code = cpu_level_get(&best, &error);
    if (!code) {
        code = a.bench ? check_bench(best, a.format, a.threads, a.json, &error) : run_checks(&a, best, &failed, &error);
    }
    return code ? cli_fail("check", &error) : failed;
}
