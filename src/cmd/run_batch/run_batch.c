#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "base/log.h"
#include "cmd/run_batch/run.h"
#include "cmd/cmd.h"
#include "cmd/serve/flags.h"
#include "server/dialect.h"

struct arguments {
    struct serve_arguments serve; /* of which nothing that listens */
    const char *input, *output;
    bool overwrites, json, fails;
};

static atomic_bool g_stop;
static volatile sig_atomic_t g_signal;

static void on_signal(int number) {
    g_signal = number;
    atomic_store(&g_stop, true);
}

/* From now on ctrl-C (or SIGTERM) ends the work between two answers; once more ends the program. What ignores them, as a
 * shell's background does, goes on doing so. */
static void catch_signals(void) {
    static const int NUMBERS[] = {SIGINT, SIGTERM};
    const struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    for (int i = 0; i < 2; i++) {
        struct sigaction before;
        if (sigaction(NUMBERS[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) {
            sigaction(NUMBERS[i], &action, NULL);
        }
    }
}

/* --- files --------------------------------------------------------------------------------------- */

/* Whether the requests would be replaced by `out`, or written behind. */
static int check_file(const struct batch_input *input, const struct stat *out, const char *path,
                      struct mo_error *error) {
    const struct stat *in = &input->source;
    if (!S_ISREG(in->st_mode) || in->st_dev != out->st_dev || in->st_ino != out->st_ino) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s: the answers cannot replace the requests", path);
}

static int open_output(const struct arguments *a, const struct batch_input *input, struct batch_output *output,
                       struct mo_error *error) {
    struct stat info;
    int code = stat(a->output, &info) ? 0 : check_file(input, &info, a->output, error);
    if (!code) code = batch_output_open(output, a->output, a->overwrites, error);
    return code || fstat(output->fd, &info) ? code : check_file(input, &info, output->partial, error);
}

static int open_files(const struct arguments *a, struct batch_input *input, struct batch_output *output,
                      struct mo_error *error) {
    int code = batch_input_open(input, a->input, error);
    if (!code) code = open_output(a, input, output, error);
    if (!code) code = batch_input_scan(input, error);
    if (!code && input->n_bad) {
        log_warn("%s: %d of %d lines are no requests: %s", input->path, input->n_bad, input->n, input->first_bad);
    }
    return code;
}

static int go_on(struct batch_output *output, struct batch_input *input, struct batch_report *report,
                 struct mo_error *error) {
    struct batch_kept kept;
    int code = batch_output_resume(output, input, &kept, error);
    report->n_requests = input->n;
    report->n_kept = kept.n;
    report->n_errors = kept.n_errors;
    if (!code && kept.n) log_info("%s: %d of %d requests are answered already", output->partial, kept.n, input->n);
    if (!code && kept.n_strange) {
        log_warn("%s: %d lines are left out: they answer other requests, or are another model's or of other defaults, "
                 "damaged, or say that the "
                 "engine failed",
                 output->partial, kept.n_strange);
    }
    return code;
}

/* --- the work ------------------------------------------------------------------------------------ */

/* What tells one model's answers from another's, and one server's defaults from another's. */
static int bind_input(const struct arguments *a, struct batch_input *input, const char *hash, struct mo_error *error) {
    struct buffer text = {0};
    buffer_add_text(&text, hash);
    serve_arguments_print(&a->serve, &text);
    int code = text.failed ? mo_error_set(error, MO_E_NO_MEMORY, "no memory for the settings' digest")
                           : batch_input_bind(input, text.data, text.size, error);
    buffer_free(&text);
    return code;
}

static int answer_all(const struct arguments *a, struct engine *engine, struct batch_input *input,
                      struct batch_output *output, struct batch_report *report, struct mo_error *error) {
    char hash[65], fingerprint[RESPOND_FINGERPRINT_SIZE];
    const struct server_options *s = &a->serve.server;
    int code = checkpoint_hash(&engine->checkpoint, 0, hash, error);
    if (!code) code = bind_input(a, input, hash, error);
    if (!code) code = go_on(output, input, report, error);
    if (!code) code = engine_start(engine, error);
    if (code) return code;
    respond_fingerprint(fingerprint, hash);
    const struct batch_job job = {.model = {engine, s->names, s->n_names, s->any_name, s->keeps_thoughts, &s->policy},
                                  .fingerprint = fingerprint,
                                  .input = input,
                                  .output = output,
                                  .report = report,
                                  .stop = &g_stop};
    catch_signals();
    batch_report_begin(report, engine->sched);
    code = batch_run(&job, error);
    batch_report_end(report);
    return code ? code : batch_output_finish(output, input, error);
}

/* What is lost, and what is not. */
static void tell_how_to_go_on(const struct batch_output *output, const struct batch_report *report) {
    int n = report->n_kept + report->n_done;
    if (output->is_stream || n == 0) return;
    log_info("%d of %d answers are in %s: the same command again goes on from there", n, report->n_requests,
             output->partial);
}

static int run_batch(const struct arguments *a, struct batch_report *report, struct mo_error *error) {
    struct engine *engine = NULL;
    struct batch_input input = {0};
    struct batch_output output = {0};
    int code = open_files(a, &input, &output, error);
    if (!code) code = engine_open(&engine, &a->serve.engine, error);
    if (!code) code = policy_check(&a->serve.server.policy, engine, error);
    if (!code) code = answer_all(a, engine, &input, &output, report, error);
    engine_close(engine);
    if (code < 0 && report->n_requests) tell_how_to_go_on(&output, report);
    batch_output_close(&output);
    batch_input_close(&input);
    return code;
}

/* --- the command line ---------------------------------------------------------------------------- */

static int settle(struct arguments *a, const char *positional, struct mo_error *error) {
    if ((positional || a->serve.engine.model) && (!a->input || !a->output)) {
        return mo_error_set(error, MO_E_INVALID, "give -i REQUESTS and -o ANSWERS: files of JSON lines, or -");
    }
    if (a->json && a->output && !strcmp(a->output, "-")) {
        return mo_error_set(error, MO_E_INVALID, "--json and -o - both want standard output");
    }
    return serve_arguments_settle(&a->serve, positional, error);
}

/* An engine's other processes only compute. */
static int start(const struct arguments *a, struct batch_report *report, struct mo_error *error) {
    struct engine *engine = NULL;
    int code = ranks_start(error);
    if (code) return code;
    if (ranks_self() == 0) return run_batch(a, report, error);
    code = engine_open(&engine, &a->serve.engine, error);
    engine_close(engine);
    return code;
}

int cmd_run_batch(int argc, char **argv) {
    static struct arguments a;
    struct batch_report report = {0};
    struct cli_flag shared[SERVE_FLAGS_MAX];
    serve_arguments_init(&a.serve);
    serve_flags_offline(&a.serve, shared);
    /* clang-format off */
    const struct cli_flag flags[] = {
        {.names = "--input-file,--input,-i", .type = CLI_STRING, .target = &a.input, .value = "FILE", .help = "requests, one a line; -: standard input, read to its end first"},
        {.names = "--output-file,--output,-o", .type = CLI_STRING, .target = &a.output, .value = "FILE", .help = "answers, one a line, in the order of the requests; -: standard\noutput, as they come"},
        {.names = "--overwrite", .type = CLI_FLAG, .target = &a.overwrites, .help = "replace FILE if it is there; FILE.partial is gone on with in any\ncase: remove it to begin anew"},
        {.names = "--json", .type = CLI_FLAG, .target = &a.json, .help = "the summary as JSON on standard output"},
        {.names = "--fail", .type = CLI_FLAG, .target = &a.fails, .help = "exit with 1 if an answer is an error (default: 0, as long as all\nlines have an answer)"},
        {0},
    };
    /* clang-format on */
    const struct cli_command command = {
        .name = "run-batch",
        .arguments = "MODEL -i REQUESTS -o ANSWERS [flags]",
        .about =
            "Answers a file of requests, without a port, as many at a time as --max-num-seqs says. Lines are those of "
            "OpenAI's Batch API\n"
            "and of `vllm run-batch`: {\"custom_id\": \"1\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", "
            "\"body\": {...}}.\n"
            "Every path that `moebius serve` generates at is good, and its body is the server's; \"stream\": true is "
            "refused.\n"
            "A wrong line gets an error as its answer; two requests with one custom_id are refused before anything is "
            "computed.\n"
            "Answers are kept in ANSWERS.partial until all are there. After ctrl-C, kill or a full disk the same "
            "command "
            "goes on.",
        .flags = flags,
        .more = shared,
        .max_positionals = 1,
        .examples = "  moebius run-batch MODEL -i requests.jsonl -o answers.jsonl\n"
                    "  moebius run-batch MODEL -i requests.jsonl -o answers.jsonl --max-num-seqs 32 --json\n"
                    "  make-requests | moebius run-batch MODEL -i - -o - | jq .response.body",
    };
    struct mo_error error = {0};
    const char *positional = NULL;
    int n = 0, code = cli_parse(&command, argc, argv, &positional, &n, &error);
    if (code > 0) return 0;
    if (!code) code = settle(&a, n ? positional : NULL, &error);
    if (!code) code = start(&a, &report, &error);
    if (!code && report.n_requests)
        code = batch_report_print(&report, strcmp(a.output, "-") ? a.output : "standard output", a.json, &error);
    serve_arguments_free(&a.serve);
    if (code == MO_E_CANCELLED && g_signal) return 128 + g_signal;
    if (code >= 0) return a.fails && report.n_errors ? 1 : 0;
    return cli_fail(command.name, &error);
}
