#include "cmd/run/generate.h"

#include <signal.h>
#include <stdio.h>
#include "base/buffer.h"
#include "base/clock.h"
#include "base/progress.h"

enum { INTERRUPT_CHECK_MS = 50 };

static volatile sig_atomic_t g_running, g_interrupted;

static void on_interrupt(int number) {
    if (g_running) {
        g_interrupted = 1;
        return;
    }
    signal(number, SIG_DFL);
    raise(number);
}

void generate_catch_interrupt(void) {
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
}

bool generate_was_interrupted(void) {
    return g_interrupted != 0;
}

/* Shared by the engine thread, which appends, and the main thread, which prints. */
struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct buffer text;
    size_t taken; /* printed already */
    struct generation result;
    double start_s;
    struct mo_error error;
};

static void on_event(const struct sched_event *event) {
    struct mailbox *box = event->context;
    pthread_mutex_lock(&box->lock);
    if (event->n_generated == 1 && box->result.n_generated == 0)
        box->result.first_token_s = clock_now_s() - box->start_s;
    box->result.n_prompt = event->n_prompt;
    box->result.n_generated = event->n_generated;
    buffer_add(&box->text, event->text, event->text_size);
    if (event->finish != FINISH_NONE) {
        box->result.finish = event->finish;
        box->result.total_s = clock_now_s() - box->start_s;
        if (event->error) box->error = *event->error;
    }
    pthread_cond_signal(&box->changed);
    pthread_mutex_unlock(&box->lock);
}

/* Waits for text or the end, but looks at the interrupt flag now and then: a signal does not wake a condition. */
static void wait_for_news(struct mailbox *box) {
    double until_s = clock_now_s() + INTERRUPT_CHECK_MS * 1e-3;
    while (box->taken == box->text.size && box->result.finish == FINISH_NONE) {
        if (!clock_wait(&box->changed, &box->lock, until_s)) return;
    }
}

static void print_news(struct mailbox *box) {
    size_t size = box->text.size - box->taken;
    if (!size) return;
    fwrite(box->text.data + box->taken, 1, size, stdout);
    fflush(stdout);
    box->taken = box->text.size;
}

/* How much of the prompt has been computed: one request runs, so the engine's counter is its own. */
static void show_prompt_progress(struct engine *engine, struct progress *progress, uint64_t before) {
    struct sched_stats stats;
    sched_stats_get(engine->sched, &stats);
    progress_update(progress, (double)(stats.prompt_tokens - before));
}

static void follow(struct engine *engine, struct mailbox *box, uint64_t id, bool print, struct progress *progress,
                   uint64_t prompt_before) {
    bool cancelled = false;
    pthread_mutex_lock(&box->lock);
    while (box->result.finish == FINISH_NONE) {
        wait_for_news(box);
        if (box->result.n_generated == 0) {
            show_prompt_progress(engine, progress, prompt_before);
        } else {
            progress_end(progress);
        }
        if (print) print_news(box);
        if (!print) box->taken = box->text.size;
        if ((g_interrupted || ferror(stdout)) && !cancelled) { /* or nobody reads it any more */
            cancelled = true;
            sched_cancel(engine->sched, id);
        }
    }
    progress_end(progress);
    if (print) print_news(box);
    pthread_mutex_unlock(&box->lock);
}

int generate(struct engine *engine, struct sched_request *request, bool print, struct generation *out,
             struct mo_error *error) {
    struct mailbox box = {.lock = PTHREAD_MUTEX_INITIALIZER};
    uint64_t id;
    clock_cond_init(&box.changed);
    request->callback = on_event;
    request->context = &box;
    box.start_s = clock_now_s();
    g_interrupted = 0;
    g_running = 1;
    struct sched_stats before;
    struct progress progress;
    sched_stats_get(engine->sched, &before);
    progress_begin(&progress, "reading the prompt", "tokens", 1, request->n_prompt);
    int code = sched_submit(engine->sched, request, &id, error);
    if (!code) follow(engine, &box, id, print, &progress, before.prompt_tokens);
    g_running = 0;
    if (!code && box.result.finish == FINISH_ERROR) {
        *error = box.error;
        code = error->code ? error->code : MO_E_INTERNAL;
    }
    if (!code && box.text.failed) code = mo_error_set(error, MO_E_NO_MEMORY, "no memory for the answer");
    pthread_cond_destroy(&box.changed);
    *out = box.result;
    out->text = box.text.data;
    out->text_size = box.text.size;
    return code;
}

void generation_print_timings(const struct generation *g) {
    fflush(stdout); /* the answer comes before its timings */
    double prefill_s = g->first_token_s > 0 ? g->first_token_s : g->total_s, decode_s = g->total_s - prefill_s;
    fprintf(stderr, "%d prompt tokens, %.1f t/s; first token after %.3f s; %d tokens", g->n_prompt,
            prefill_s > 0 ? g->n_prompt / prefill_s : 0, prefill_s, g->n_generated);
    if (g->n_generated > 1 && decode_s > 0) fprintf(stderr, ", %.1f t/s", (g->n_generated - 1) / decode_s);
    fputc('\n', stderr);
}
