#include "cmd/run_batch/run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "server/put.h"
#include "server/work.h"

enum {
    FAILURES_MAX = 16, /* answers one after the other for which the engine failed: it will not recover */
    LOOK_MS = 100,     /* how often a signal is looked for */
};

/* A request on its way. */
struct flight {
    struct run *run;
    struct batch_request request;
    struct work *work;
    struct flight *next; /* free, or landed */
};

struct run {
    const struct batch_job *job;
    struct flight *flights; /* [n_flights] */
    struct flight *free;
    int n_flights, n_flying; /* as many sequences as flights run or wait at most */
    int n_choices;           /* that do */
    bool at_end;             /* of the input */
    bool gives_up;           /* what flies was cancelled */
    int n_failures;          /* FAILURES_MAX */
    int code;                /* the first thing that went wrong */
    bool cannot_write;       /* it was the output */
    struct mo_error *error;

    pthread_mutex_t lock; /* of `landed` */
    pthread_cond_t changed;
    struct flight *landed, **last;
};

/* --- a line of the output ------------------------------------------------------------------------ */

static json_t *response_json(const char *id, struct work_reply *reply) {
    json_t *json = json_object();
    put(&json, "status_code", json_integer(reply->status));
    put(&json, "request_id", json_sprintf("req_%s", id));
    put(&json, "body", reply->body);
    reply->body = NULL;
    return json;
}

static json_t *error_json(const struct batch_request *r) {
    return json_pack("{s:s, s:s, s:i}", "code", r->code, "message", r->message, "line", r->line);
}

/* In OpenAI's words: what a server said is a response, whatever it said; an error is what no server was asked. Takes the
 * reply's body over; NULL without memory. */
static json_t *line_json(const struct batch_request *r, struct work_reply *reply) {
    char id[BATCH_DIGEST_DIGITS + 1];
    json_t *json = json_object();
    batch_digest_print(&r->id, id);
    put(&json, "id", json_sprintf("batch_req_%s", id));
    put(&json, "custom_id", r->custom_id ? json_string(r->custom_id) : json_null());
    put(&json, "response", reply ? response_json(id, reply) : json_null());
    put(&json, "error", reply ? json_null() : error_json(r));
    return json;
}

/* The first error is the one that is told. */
static void fail(struct run *run, const struct mo_error *error) {
    if (run->code) return;
    run->code = error->code;
    *run->error = *error;
}

static int add_line(struct run *run, const struct batch_request *r, struct work_reply *reply, struct mo_error *error) {
    struct buffer text = {0};
    int code = put_dump(&text, line_json(r, reply));
    buffer_add(&text, "\n", 1);
    if (code || text.failed) {
        code = mo_error_set(error, MO_E_NO_MEMORY, "no memory to write the answer to line %d", r->line);
    } else {
        code = batch_output_add(run->job->output, &run->job->input->entries[r->index], text.data, text.size, error);
    }
    buffer_free(&text);
    return code;
}

static void write_line(struct run *run, const struct batch_request *r, struct work_reply *reply) {
    struct mo_error error = {0};
    if (run->cannot_write) return;
    if (add_line(run, r, reply, &error)) {
        run->cannot_write = true;
        fail(run, &error);
        return;
    }
    run->job->report->n_done++;
    if (!reply)
        batch_report_error(run->job->report, r->custom_id, r->message);
    else if (reply->status != 200)
        batch_report_error(run->job->report, r->custom_id, reply->error.message);
}

/* --- landing ------------------------------------------------------------------------------------- */

/* Any thread. */
static void land(void *context) {
    struct flight *flight = context;
    struct run *run = flight->run;
    pthread_mutex_lock(&run->lock);
    flight->next = NULL;
    *run->last = flight;
    run->last = &flight->next;
    pthread_cond_signal(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

static struct flight *take_landed(struct run *run) {
    pthread_mutex_lock(&run->lock);
    struct flight *landed = run->landed;
    run->landed = NULL;
    run->last = &run->landed;
    pthread_mutex_unlock(&run->lock);
    return landed;
}

/* Whether the answer is one that a later run would not want to make again. */
static bool is_worth_writing(struct run *run, const struct work_reply *reply) {
    if (reply->status < 500) {
        run->n_failures = 0;
        return true;
    }
    if (run->gives_up) return false;
    if (reply->status != 503 && ++run->n_failures < FAILURES_MAX) return true;
    struct mo_error error;
    mo_error_set(&error, MO_E_INTERNAL, "the engine cannot go on: %s", reply->error.message);
    fail(run, &error);
    return false;
}

static void finish(struct run *run, struct flight *flight) {
    struct batch_report *report = run->job->report;
    struct work_reply reply;
    run->n_choices -= work_choices(flight->work);
    run->n_flying--;
    work_take(flight->work, &reply);
    flight->work = NULL;
    if (is_worth_writing(run, &reply)) {
        report->n_prompt += reply.usage.n_prompt;
        report->n_cached += reply.usage.n_cached;
        report->n_generated += reply.usage.n_generated;
        write_line(run, &flight->request, &reply);
    }
    json_decref(reply.body);
    batch_request_free(&flight->request);
    flight->next = run->free;
    run->free = flight;
}

static void finish_landed(struct run *run) {
    for (struct flight *flight = take_landed(run), *next; flight; flight = next) {
        next = flight->next;
        finish(run, flight);
    }
}

/* --- taking off ---------------------------------------------------------------------------------- */

static void start(struct run *run, const struct batch_request *request) {
    struct flight *flight = run->free;
    flight->request = *request;
    const struct work_request wanted = {request->method, request->url, request->body};
    flight->work = work_start(&run->job->model, run->job->fingerprint, &wanted, land, flight);
    if (!flight->work) {
        struct mo_error error;
        mo_error_set(&error, MO_E_NO_MEMORY, "no memory for the request in line %d", request->line);
        fail(run, &error);
        batch_request_free(&flight->request);
    } else {
        run->free = flight->next;
        flight->request.body = NULL; /* the work has read it */
        json_object_del(flight->request.root, "body");
        run->n_flying++;
        run->n_choices += work_choices(flight->work);
    }
}

static void fail_changed(struct run *run, int line) {
    struct mo_error error;
    mo_error_set(&error, MO_E_IO, "%s line %d: the file was changed meanwhile", run->job->input->path, line);
    fail(run, &error);
}

/* Reads one more line, and begins what it asks for. */
static void start_next(struct run *run) {
    struct batch_input *input = run->job->input;
    struct batch_request request;
    struct mo_error error = {0};
    int got = batch_input_next(input, &request, &error);
    if (got < 0) fail(run, &error);
    run->at_end = got != 1;
    if (got == 0 && input->next != input->n) fail_changed(run, input->line);
    if (got != 1) return;
    const struct batch_entry *entry = &input->entries[request.index];
    if (request.index >= input->n || memcmp(&entry->id, &request.id, sizeof request.id) != 0) {
        fail_changed(run, request.line);
    } else if (entry->at < 0 && !request.code) {
        start(run, &request);
        return; /* the request is the flight's */
    } else if (entry->at < 0) {
        write_line(run, &request, NULL);
    }
    batch_request_free(&request);
}

/* --- the whole ----------------------------------------------------------------------------------- */

static void give_up(struct run *run) {
    if (run->gives_up) return;
    run->gives_up = true;
    for (int i = 0; i < run->n_flights; i++) {
        if (run->flights[i].work) work_cancel(run->flights[i].work);
    }
}

static void wait_for_landing(struct run *run) {
    double until_s = clock_now_s() + LOOK_MS * 1e-3;
    pthread_mutex_lock(&run->lock);
    while (!run->landed && clock_wait(&run->changed, &run->lock, until_s)) {
    }
    pthread_mutex_unlock(&run->lock);
}

static void fly(struct run *run) {
    struct sched *sched = run->job->model.engine->sched;
    for (;;) {
        finish_landed(run);
        batch_report_show(run->job->report, sched);
        bool stops = run->code || atomic_load(run->job->stop);
        if (stops) give_up(run);
        bool has_room = run->free && run->n_choices < run->n_flights;
        if (!stops && !run->at_end && has_room) {
            start_next(run);
        } else if (run->n_flying > 0) {
            wait_for_landing(run);
        } else if (stops || run->at_end) {
            return;
        }
    }
}

int batch_run(const struct batch_job *job, struct mo_error *error) {
    struct run run = {.job = job, .error = error, .lock = PTHREAD_MUTEX_INITIALIZER, .last = &run.landed};
    run.n_flights = 2 * job->model.engine->options.max_num_seqs;
    run.flights = calloc((size_t)run.n_flights, sizeof *run.flights);
    if (!run.flights) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d requests", run.n_flights);
    clock_cond_init(&run.changed);
    for (int i = 0; i < run.n_flights; i++) {
        run.flights[i] = (struct flight){.run = &run, .next = run.free};
        run.free = &run.flights[i];
    }
    fly(&run);
    pthread_cond_destroy(&run.changed);
    free(run.flights);
    bool is_whole = job->report->n_kept + job->report->n_done == job->input->n;
    if (run.code || is_whole) return run.code;
    return mo_error_set(error, MO_E_CANCELLED, "stopped");
}
