#include "cmd/experts_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/progress.h"
#include "plan/predict.h"

static const double SHARES[EXPERTS_POINTS] = {0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95};
static const int GROUPS[EXPERTS_GROUPS] = {8, 64, 512};
static const double GB = 1e9;

/* ---- what follows from a trace ---- */

static int records(const struct experts_report *r) {
    return r->trace.layers * r->engine->model.experts;
}

static int settle_point(const struct experts_report *r, int slots, struct experts_point *p, struct mo_error *error) {
    *p = (struct experts_point){.slots = slots, .share = (double)slots / records(r)};
    int code = trace_replay(&r->trace, slots, &p->cold, &p->store, error);
    if (!code) code = trace_fixed(&r->trace, slots, &p->fixed, error);
    return code ? code : trace_best(&r->trace, slots, &p->best, error);
}

static int settle_points(struct experts_report *r, struct mo_error *error) {
    struct progress progress;
    int code = 0;
    progress_begin(&progress, "asking caches", "sizes", 1, EXPERTS_POINTS);
    for (int i = 0; i < EXPERTS_POINTS && !code; i++) {
        int slots = (int)lround(SHARES[i] * records(r));
        if (slots < STORE_MIN_SLOTS) slots = STORE_MIN_SLOTS;
        if (slots > records(r)) slots = records(r);
        code = settle_point(r, slots, &r->points[i], error);
        progress_update(&progress, i + 1);
    }
    progress_end(&progress);
    if (!code && r->is_measured) code = settle_point(r, store_slots(r->engine->store), &r->simulated, error);
    return code;
}

int experts_report_settle(struct experts_report *r, struct mo_error *error) {
    struct plan_weights weights;
    plan_weights_from_model(&weights, &r->engine->model, &r->engine->weights);
    r->routed_bytes = weights.bytes[PLAN_ROUTED];
    r->layers = calloc((size_t)r->trace.layers, sizeof *r->layers);
    if (!r->layers) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the report");
    int code = trace_use_of(&r->trace, -1, &r->all, error);
    for (int i = 0; i < r->trace.layers && !code; i++) code = trace_use_of(&r->trace, i, &r->layers[i], error);
    for (int i = 0; i < EXPERTS_GROUPS; i++) r->distinct[i] = trace_distinct(&r->trace, GROUPS[i]);
    return code ? code : settle_points(r, error);
}

void experts_report_free(struct experts_report *r) {
    free(r->layers);
    trace_close(&r->trace);
}

/* ---- for people ---- */

static void say_head(const struct experts_report *r) {
    const struct model *m = &r->engine->model;
    printf("%s%s: %d layers of %d experts, %d a token; %.3f GB routed\n", r->engine->path,
           m->synthetic ? ", SYNTHETIC: random weights, so what follows says nothing of text" : "", r->trace.layers,
           m->experts, m->top_k, r->routed_bytes / GB);
    printf("%d tokens %s %s\n\n", r->trace.n, r->is_generated ? "that it wrote after" : "of", r->source);
}

static void say_use(const char *name, const struct trace_use *u) {
    printf("%-6s %6.2f %6.2f %6.2f %8.3f %6d %5d %5d %9.3f %8.3f %8.3f\n", name, 100 * u->least, 100 * u->median,
           100 * u->most, u->entropy, u->covers[0], u->covers[1], u->covers[2], u->by_chance, u->by_shares, u->reuse);
}

static void say_uses(const struct experts_report *r) {
    printf("%-6s %20s %8s %18s %27s\n", "", "% of tokens choose it", "", "experts that take",
           "chosen by the last token too");
    printf("%-6s %6s %6s %6s %8s %6s %5s %5s %9s %8s %8s\n", "layer", "least", "median", "most", "entropy", "50 %",
           "80 %", "90 %", "by chance", "shares", "found");
    for (int i = 0; i < r->trace.layers; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", r->engine->model.dense_layers + i);
        say_use(name, &r->layers[i]);
    }
    say_use("all", &r->all);
    printf(
        "entropy: 1 is even. By chance: of experts that are all alike; shares: if tokens of these shares came in any "
        "order.\n");
}

static double independent(const struct experts_report *r, int tokens) {
    double n = r->engine->model.experts, k = r->engine->model.top_k;
    return n * (1 - pow(1 - k / n, tokens));
}

static void say_distinct(const struct experts_report *r) {
    printf("experts of a layer met by tokens in a row, and by chance:");
    for (int i = 0; i < EXPERTS_GROUPS && r->distinct[i] > 0; i++) {
        printf("%s %d tokens %.1f, %.1f", i ? ";" : "", GROUPS[i], r->distinct[i], independent(r, GROUPS[i]));
    }
    printf("\n");
}

/* '#': what the store finds; '-': what could be found. */
static void say_bar(double store, double best) {
    enum { COLUMNS = 40 };
    char bar[COLUMNS + 1] = "";
    for (int i = 0; i < COLUMNS; i++)
        bar[i] = i < lround(store * COLUMNS) ? '#' : i < lround(best * COLUMNS) ? '-' : ' ';
    printf("  |%s|\n", bar);
}

static void say_point(const struct experts_report *r, const struct experts_point *p) {
    printf("%5.1f %% %7d %9.3f %8.3f %8.3f %8.3f %8.3f", 100 * p->share, p->slots, p->share * r->routed_bytes / GB,
           trace_hit_rate(&p->store), trace_hit_rate(&p->fixed), trace_hit_rate(&p->best), trace_hit_rate(&p->cold));
    say_bar(trace_hit_rate(&p->store), trace_hit_rate(&p->best));
}

static void say_measured(const struct experts_report *r) {
    const struct store_stats *s = &r->measured;
    const struct experts_point *p = &r->simulated;
    if (!r->is_measured) return;
    printf(
        "\nthis run, with --expert-cache: %d places, %llu of %llu found (%.3f), %.1f MB a token read; the simulation "
        "says %llu\n",
        p->slots, (unsigned long long)s->hits, (unsigned long long)(s->hits + s->misses),
        (double)s->hits / (double)(s->hits + s->misses), (double)s->read_bytes * 1e-6 / r->trace.n,
        (unsigned long long)p->cold.hits);
    if (s->predicted)
        printf("(%llu were read ahead; without that, MOEBIUS_EXPERT_PREFETCH=0, the two are the same)\n",
               (unsigned long long)s->predicted);
}

void experts_report_say(const struct experts_report *r) {
    say_head(r);
    say_uses(r);
    say_distinct(r);
    printf("\nhit rates of a cache, one token at a time, over the last %d tokens (cold: all of them, from nothing)\n",
           r->trace.n - r->trace.n / 2);
    printf("%7s %7s %9s %8s %8s %8s %8s\n", "size", "experts", "GB", "ours", "fixed", "at best", "cold");
    for (int i = 0; i < EXPERTS_POINTS; i++) say_point(r, &r->points[i]);
    printf(
        "ours (#): --expert-cache, without what it reads ahead. Fixed: the most wanted of these very tokens; at best\n"
        "(-): knowing the future; both begin with the right ones, and what passes by takes none of their places.\n");
    say_measured(r);
}

/* ---- for programs ---- */

static json_t *use_json(const struct trace_use *u) {
    return json_pack("{si sf sf sf sf s[iii] sf sf sf}", "experts", u->experts, "least", u->least, "median", u->median,
                     "most", u->most, "entropy", u->entropy, "covers", u->covers[0], u->covers[1], u->covers[2],
                     "reuse", u->reuse, "reuse_by_shares", u->by_shares, "reuse_by_chance", u->by_chance);
}

static json_t *point_json(const struct experts_point *p) {
    return json_pack("{sf si sf sf sf sI sI}", "share", p->share, "slots", p->slots, "hit_rate",
                     trace_hit_rate(&p->store), "fixed_hit_rate", trace_hit_rate(&p->fixed), "best_hit_rate",
                     trace_hit_rate(&p->best), "cold_hits", (json_int_t)p->cold.hits, "cold_misses",
                     (json_int_t)(p->cold.asked - p->cold.hits));
}

static json_t *measured_json(const struct experts_report *r) {
    const struct store_stats *s = &r->measured;
    if (!r->is_measured) return json_null();
    return json_pack("{sI sI sI sI so}", "hits", (json_int_t)s->hits, "misses", (json_int_t)s->misses, "read_bytes",
                     (json_int_t)s->read_bytes, "predicted", (json_int_t)s->predicted, "simulated",
                     point_json(&r->simulated));
}

json_t *experts_report_json(const struct experts_report *r) {
    const struct model *m = &r->engine->model;
    json_t *layers = json_array(), *curve = json_array(), *distinct = json_array();
    for (int i = 0; i < r->trace.layers; i++) json_array_append_new(layers, use_json(&r->layers[i]));
    for (int i = 0; i < EXPERTS_POINTS; i++) json_array_append_new(curve, point_json(&r->points[i]));
    for (int i = 0; i < EXPERTS_GROUPS; i++) {
        if (r->distinct[i] <= 0) continue;
        json_array_append_new(distinct, json_pack("{si sf sf}", "tokens", GROUPS[i], "experts", r->distinct[i],
                                                  "by_chance", independent(r, GROUPS[i])));
    }
    return json_pack("{so sb so sb si si si si sI so so so so so}", "model", json_lossy(r->engine->path), "synthetic",
                     m->synthetic, "source", json_lossy(r->source), "generated", r->is_generated, "tokens", r->trace.n,
                     "expert_layers", r->trace.layers, "experts", m->experts, "top_k", m->top_k, "routed_bytes",
                     (json_int_t)r->routed_bytes, "all", use_json(&r->all), "layers", layers, "distinct", distinct,
                     "curve", curve, "measured", measured_json(r));
}
