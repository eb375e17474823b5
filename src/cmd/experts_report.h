/* cmd/experts_report.h - what `moebius experts` found, for people and for programs; `plan --expert-trace` reads the latter
 * (plan/curve.h). */
#ifndef MOEBIUS_CMD_EXPERTS_REPORT_H
#define MOEBIUS_CMD_EXPERTS_REPORT_H

#include "base/json.h"
#include "engine/engine.h"
#include "expert/trace.h"

enum { EXPERTS_POINTS = 11, EXPERTS_GROUPS = 3 };

/* A cache of one size. */
struct experts_point {
    int slots;
    double share; /* of the routed experts */
    struct trace_hits cold, store, fixed, best;
};

struct experts_report {
    const struct engine *engine;
    struct trace trace;
    const char *source; /* the text's file, or how it came about */
    bool is_generated;
    double routed_bytes;
    struct trace_use all, *layers; /* [trace.layers] */
    double distinct[EXPERTS_GROUPS];
    struct experts_point points[EXPERTS_POINTS];
    bool is_measured; /* the engine's own store had one token a step, from its start: */
    struct store_stats measured;
    struct experts_point simulated; /* the same size, from the trace */
};

/* When the trace is complete: everything that follows from it. */
int experts_report_settle(struct experts_report *report, struct mo_error *error);
void experts_report_free(struct experts_report *report);

void experts_report_say(const struct experts_report *report);
json_t *experts_report_json(const struct experts_report *report);

#endif
