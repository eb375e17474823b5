#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "base/log.h"
#include "cmd/cmd.h"
#include "cmd/serve/flags.h"

enum { SOME_DESCRIPTORS = 256, POLL_MS = 20 };

/* The engine opens in a thread of its own, so that /health answers from the first moment. */
struct loading {
    struct engine_options options;
    const struct api_policy *policy;
    struct engine *engine;
    char hash[65];
    struct mo_error error;
    atomic_bool done;
};

static void *load_main(void *argument) {
    struct loading *l = argument;
    int code = engine_open(&l->engine, &l->options, &l->error);
    if (!code) code = policy_check(l->policy, l->engine, &l->error);
    if (!code) code = checkpoint_hash(&l->engine->checkpoint, 0, l->hash, &l->error);
    if (!code) code = engine_start(l->engine, &l->error);
    if (code) l->error.code = code;
    atomic_store(&l->done, true);
    return NULL;
}

/* The signals that end the server: also that its terminal has gone, unless it was started not to mind (nohup). */
static sigset_t ending_signals(void) {
    struct sigaction hangup;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaddset(&signals, SIGHUP);
    return signals;
}

/* Waits for one of them: which came within `wait_ms` (negative: for ever), or 0. */
static int signal_wait(int wait_ms) {
    const sigset_t signals = ending_signals();
    const struct timespec wait = {.tv_nsec = wait_ms * 1000000L};
    int number;
    do number = wait_ms < 0 ? sigwaitinfo(&signals, NULL) : sigtimedwait(&signals, NULL, &wait);
    while (number < 0 && errno == EINTR);
    return number > 0 ? number : 0;
}

/* Blocked in every thread that starts after this; the main thread waits for them. */
static void block_signals(void) {
    const sigset_t signals = ending_signals();
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

static void raise_descriptor_limit(int max_connections) {
    struct rlimit limit;
    rlim_t wanted = (rlim_t)max_connections + SOME_DESCRIPTORS;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    if (setrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur < wanted) {
        log_warn("--max-connections %d: this process may open %llu files only", max_connections,
                 (unsigned long long)limit.rlim_cur);
    }
}

static void print_url(const struct serve_arguments *a, const struct server *server, char *url, size_t size) {
    bool is_ipv6 = strchr(a->server.host, ':') != NULL;
    if (a->server.socket_path) {
        snprintf(url, size, "unix:%s", a->server.socket_path);
        return;
    }
    const char *scheme = tls_is_wanted(&a->server.tls) ? "https" : "http";
    snprintf(url, size, is_ipv6 ? "%s://[%s]:%d%s" : "%s://%s:%d%s", scheme, a->server.host, server_port(server),
             a->server.prefix);
}

/* The line that says all is well, and how much room there is. */
static void announce(const struct serve_arguments *a, const struct server *server, const struct engine *engine) {
    const struct engine_options *o = &engine->options;
    char url[600], cut[200] = "", tested[48] = "";
    double cache = (double)kv_pool_bytes(&engine->model, (enum kv_format)(o->kv - 1), engine->n_pages, engine->n_near);
    print_url(a, server, url, sizeof url);
    if (!a->engine.max_model_len && o->max_model_len < engine->model.context) {
        snprintf(cut, sizeof cut, ": memory does not allow the model's %d", engine->model.context);
    }
    if (engine->self_test_s > 0) snprintf(tested, sizeof tested, ", self-test %.3f s of it", engine->self_test_s);
    log_info("serving %s on %s (context %d tokens%s, %d sequences, cache %.2f GiB for %lld tokens, loaded in "
             "%.1f s%s)",
             a->server.names[0], url, o->max_model_len, cut, o->max_num_seqs, cache / (1 << 30),
             (long long)engine->n_pages * KV_PAGE_TOKENS, engine->load_s, tested);
    if (engine->tokenizer && !engine->chat) {
        log_warn("the chat template is none that is known here: chats get 400 (--chat-template NAME chooses one)");
    }
}

static void end_at_once(struct server *server, int status) {
    server_unlisten(server);
    _exit(status);
}

/* No new work; what runs may finish. A second signal ends everything at once, but SIGHUP: shells send it on to what had it. */
static void drain(struct server *server) {
    server_drain(server);
    int n = server_answers(server);
    if (n) log_info("shutting down when %d running answers are done; once more ends them", n);
    while (server_answers(server) > 0) {
        int number = signal_wait(POLL_MS);
        if (number && number != SIGHUP) end_at_once(server, 1);
    }
}

static int serve(const struct serve_arguments *a, struct loading *loading, struct mo_error *error) {
    struct server *server = NULL;
    pthread_t loader;
    char url[600];
    int code = server_open(&server, &a->server, error);
    if (code) return code;
    print_url(a, server, url, sizeof url);
    log_info("listening on %s, loading %s", url, a->engine.model);
    int reason = pthread_create(&loader, NULL, load_main, loading);
    if (reason) {
        server_close(server);
        return mo_error_set(error, MO_E_NO_MEMORY, "cannot start a thread: %s", strerror(reason));
    }
    while (!atomic_load(&loading->done)) {
        if (signal_wait(POLL_MS))
            end_at_once(server, 0); /* nothing to lose yet, and a load cannot be stopped half way */
    }
    pthread_join(loader, NULL);
    code = loading->error.code;
    if (code) {
        *error = loading->error;
    } else {
        server_ready(server, loading->engine, loading->hash);
        announce(a, server, loading->engine);
        signal_wait(-1);
        drain(server);
    }
    server_close(server);
    return code;
}

int cmd_serve(int argc, char **argv) {
    struct serve_arguments a;
    struct loading loading = {0};
    struct cli_flag flags[SERVE_FLAGS_MAX];
    serve_arguments_init(&a);
    serve_flags(&a, flags);
    const struct cli_command command = {
        .name = "serve",
        .arguments = "MODEL [flags]",
        .about =
            "Serves the model by the OpenAI API: /v1/chat/completions, /v1/completions (with "
            "\"suffix\": fill in the middle),\n"
            "/v1/models, /tokenize, /health, /metrics; and by llama.cpp's for editors: /infill, /completion, /props.\n"
            "Several requests share each step. SIGTERM, or a closed terminal, lets running answers finish.\n"
            "In a vLLM command line, \"moebius serve\" stands for \"vllm serve\" or \"python -m "
            "vllm.entrypoints.openai.api_server\".",
        .flags = flags,
        .max_positionals = 1,
        .examples = "  moebius serve MODEL\n"
                    "  moebius serve MODEL --host 0.0.0.0 --api-key-file keys --max-model-len 32768 --max-num-seqs "
                    "8\n"
                    "  curl localhost:8000/v1/completions -d '{\"prompt\": \"def add(\", \"suffix\": \"return c\"}'",
    };
    struct mo_error error = {0};
    const char *positional = NULL;
    int n = 0, code = cli_parse(&command, argc, argv, &positional, &n, &error);
    if (code > 0) return 0;
    a.engine.take_cache = true;
    if (!code) code = serve_arguments_settle(&a, positional, &error);
    if (!code) code = ranks_start(&error);
    if (!code && ranks_self() > 0) {
        code = engine_open(&loading.engine, &a.engine, &error);
    } else if (!code) {
        raise_descriptor_limit(a.server.max_connections);
        block_signals();
        loading.options = a.engine;
        loading.policy = &a.server.policy;
        code = serve(&a, &loading, &error);
        engine_close(loading.engine);
    }
    serve_arguments_free(&a);
    if (code >= 0) return 0;
    return cli_fail(command.name, &error);
}
