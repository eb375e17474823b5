#include "cmd/eval/answers.h"

#include <stdlib.h>
#include "base/progress.h"

struct eval_run {
    struct engine *engine;
    struct eval_answer *answers; /* [n] */
    int n, n_open;
    struct mo_error error; /* the first; code 0: none */
};

static void on_event(const struct sched_event *event) {
    struct eval_answer *answer = event->context;
    buffer_add(&answer->text, event->text, event->text_size);
    if (answer->text.failed) mo_error_set(&answer->run->error, MO_E_NO_MEMORY, "no memory for an answer");
    answer->finish = event->finish;
    if (event->finish == FINISH_NONE) return;
    answer->run->n_open--;
    answer->is_ended = event->finish == FINISH_STOP && event->stop_token >= 0;
    if (event->finish != FINISH_ERROR || answer->run->error.code) return;
    if (event->error) answer->run->error = *event->error;
    if (!answer->run->error.code) mo_error_set(&answer->run->error, MO_E_INTERNAL, "an answer failed");
}

static int submit(struct eval_run *run, struct eval_answer *answer, struct mo_error *error) {
    struct sched_request request = {
        .prompt = answer->prompt.ids,
        .n_prompt = (int)answer->prompt.n,
        .max_tokens = answer->max_tokens,
        .stop = &answer->stop,
        .n_stop = answer->stop != NULL,
        .keep_special = true, /* a special token in an answer is a mistake, and must show */
        .n_logprobs = -1,
        .callback = on_event,
        .context = answer,
    };
    sampling_init(&request.sampling);
    request.sampling.temperature = 0;
    answer->run = run;
    int code = sched_submit(run->engine->sched, &request, &answer->id, error);
    if (!code) run->n_open++;
    return code;
}

/* Whoever has said enough, and after an error everyone. */
static void cancel_some(struct eval_run *run) {
    for (int i = 0; i < run->n; i++) {
        struct eval_answer *answer = &run->answers[i];
        if (!answer->run || answer->finish != FINISH_NONE || answer->is_cancelled) continue;
        answer->is_cancelled = run->error.code || (answer->is_enough && answer->is_enough(answer));
        if (answer->is_cancelled) sched_cancel(run->engine->sched, answer->id);
    }
}

int eval_answers_run(struct engine *engine, struct eval_answer *answers, int n, const char *label,
                     struct mo_error *error) {
    struct eval_run run = {.engine = engine, .answers = answers, .n = n};
    struct progress progress;
    progress_begin(&progress, label, "answers", 1, n);
    for (int i = 0; i < n && !run.error.code; i++) {
        struct mo_error refused;
        if (submit(&run, &answers[i], &refused)) run.error = refused;
    }
    while (run.n_open > 0) { /* also after an error: the requests point into `answers` */
        cancel_some(&run);
        if (!sched_step(engine->sched)) sched_wait(engine->sched);
        progress_update(&progress, n - run.n_open);
    }
    progress_end(&progress);
    if (run.error.code) *error = run.error;
    return run.error.code;
}

void eval_answers_free(struct eval_answer *answers, int n) {
    for (int i = 0; answers && i < n; i++) {
        token_list_free(&answers[i].prompt);
        buffer_free(&answers[i].text);
    }
    free(answers);
}
