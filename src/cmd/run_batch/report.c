#include "cmd/run_batch/report.h"

#include <stdio.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/json.h"
#include "base/utf8.h"

enum { BAR_CELLS = 24, REDRAWS_PER_S = 4 };

void batch_report_begin(struct batch_report *r, struct sched *sched) {
    r->start_s = clock_now_s();
    r->is_terminal = isatty(STDERR_FILENO);
    sched_stats_get(sched, &r->before);
}

void batch_report_error(struct batch_report *r, const char *custom_id, const char *why) {
    if (!r->first_error[0]) {
        snprintf(r->first_error, sizeof r->first_error, "%s%s%.400s", custom_id ? custom_id : "", custom_id ? ": " : "",
                 why);
        utf8_clean(r->first_error); /* the file's own words */
    }
    r->n_errors++;
}

static double rate(double n, double s) {
    return s > 0 ? n / s : 0;
}

/* "12 s", "3 min", "2.5 h" */
static void print_left(double left_s) {
    if (left_s < 100)
        fprintf(stderr, ", %.0f s left", left_s);
    else if (left_s < 6000)
        fprintf(stderr, ", %.0f min left", left_s / 60);
    else
        fprintf(stderr, ", %.1f h left", left_s / 3600);
}

void batch_report_show(struct batch_report *r, struct sched *sched) {
    double now_s = clock_now_s(), elapsed_s = now_s - r->start_s;
    if (!r->is_terminal || now_s - r->shown_s < 1.0 / REDRAWS_PER_S) return;
    struct sched_stats stats;
    sched_stats_get(sched, &stats);
    char bar[BAR_CELLS + 1] = "";
    int n = r->n_kept + r->n_done, full = (int)((double)n * BAR_CELLS / r->n_requests);
    for (int i = 0; i < BAR_CELLS; i++) bar[i] = i < full ? '#' : '.';
    fprintf(stderr, "\r\033[K[%s] %d of %d requests", bar, n, r->n_requests);
    if (r->n_errors) fprintf(stderr, ", %d errors", r->n_errors);
    fprintf(stderr, ", %.0f prompt and %.0f answer tokens/s",
            rate((double)(stats.prompt_tokens - r->before.prompt_tokens), elapsed_s),
            rate((double)(stats.generated_tokens - r->before.generated_tokens), elapsed_s));
    if (r->n_done > 0) print_left(elapsed_s / r->n_done * (r->n_requests - n));
    fflush(stderr);
    r->shown_s = now_s;
    r->is_shown = true;
}

void batch_report_end(struct batch_report *r) {
    if (r->is_shown) fputs("\r\033[K", stderr);
    r->is_shown = false;
    r->total_s = clock_now_s() - r->start_s;
}

static int print_json(const struct batch_report *r, const char *output, struct mo_error *error) {
    json_t *root =
        json_pack("{si si si si sI sI sI so so so so}", "requests", r->n_requests, "answered",
                  r->n_kept + r->n_done - r->n_errors, "errors", r->n_errors, "kept", r->n_kept, "prompt_tokens",
                  (json_int_t)r->n_prompt, "cached_tokens", (json_int_t)r->n_cached, "generated_tokens",
                  (json_int_t)r->n_generated, "seconds", json_finite(r->total_s), "generated_tokens_per_s",
                  json_finite(rate((double)r->n_generated, r->total_s)), "first_error",
                  r->first_error[0] ? json_string(r->first_error) : json_null(), "output", json_lossy(output));
    return json_print(root, error);
}

int batch_report_print(const struct batch_report *r, const char *output, bool json, struct mo_error *error) {
    if (json) return print_json(r, output, error);
    fprintf(stderr, "%d requests: %d answered, %d errors", r->n_requests, r->n_kept + r->n_done - r->n_errors,
            r->n_errors);
    if (r->n_kept) fprintf(stderr, ", %d of them kept from before", r->n_kept);
    fprintf(stderr, "; %lld prompt tokens (%lld cached), %lld generated in %.1f s, %.1f tokens/s; in %s\n",
            (long long)r->n_prompt, (long long)r->n_cached, (long long)r->n_generated, r->total_s,
            rate((double)r->n_generated, r->total_s), output);
    if (r->first_error[0]) fprintf(stderr, "the first error: %s\n", r->first_error);
    return 0;
}
