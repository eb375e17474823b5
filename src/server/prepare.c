#include "server/prepare.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "server/api/fields.h"

struct prepare {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct prepare_job *first, **last;
    bool started, stop;
};

static void run_text(struct prepare_job *job) {
    json_t *body = fields_parse(job->body, job->size, &job->error);
    json_t *json = body ? job->text(&job->model, body, &job->error) : NULL;
    json_decref(body);
    job->reply = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!job->reply && !job->error.status) api_error_no_memory(&job->error);
    job->code = job->reply ? 0 : -1;
}

void prepare_run(struct prepare_job *job) {
    if (job->text) {
        run_text(job);
        return;
    }
    job->code = api_request_parse(&job->request, job->kind, &job->model, job->body, job->size, &job->error);
    if (job->code) api_request_free(&job->request); /* of a long body that takes its time too */
}

void prepare_job_free(struct prepare_job *job) {
    api_request_free(&job->request);
    free(job->reply);
    job->reply = NULL;
}

static struct prepare_job *next_job(struct prepare *prepare) {
    pthread_mutex_lock(&prepare->lock);
    while (!prepare->first && !prepare->stop) pthread_cond_wait(&prepare->changed, &prepare->lock);
    struct prepare_job *job = prepare->first;
    if (job) prepare->first = job->next;
    if (!prepare->first) prepare->last = &prepare->first;
    pthread_mutex_unlock(&prepare->lock);
    return job;
}

static void *prepare_main(void *argument) {
    struct prepare_job *job;
    while ((job = next_job(argument))) {
        prepare_run(job);
        job->done(job->context); /* the job may be gone from here on */
    }
    return NULL;
}

int prepare_open(struct prepare **out, struct mo_error *error) {
    struct prepare *prepare = calloc(1, sizeof *prepare);
    if (!prepare) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for the server");
    pthread_mutex_init(&prepare->lock, NULL);
    pthread_cond_init(&prepare->changed, NULL);
    prepare->last = &prepare->first;
    int reason = pthread_create(&prepare->thread, NULL, prepare_main, prepare);
    if (reason) {
        prepare_close(prepare);
        return mo_error_set(error, MO_E_NO_MEMORY, "cannot start a thread: %s", strerror(reason));
    }
    prepare->started = true;
    *out = prepare;
    return 0;
}

void prepare_close(struct prepare *prepare) {
    if (!prepare) return;
    pthread_mutex_lock(&prepare->lock);
    assert(!prepare->first);
    prepare->stop = true;
    pthread_cond_signal(&prepare->changed);
    pthread_mutex_unlock(&prepare->lock);
    if (prepare->started) pthread_join(prepare->thread, NULL);
    pthread_cond_destroy(&prepare->changed);
    pthread_mutex_destroy(&prepare->lock);
    free(prepare);
}

void prepare_submit(struct prepare *prepare, struct prepare_job *job) {
    job->next = NULL;
    pthread_mutex_lock(&prepare->lock);
    *prepare->last = job;
    prepare->last = &job->next;
    pthread_cond_signal(&prepare->changed);
    pthread_mutex_unlock(&prepare->lock);
}
