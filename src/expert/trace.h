/* expert/trace.h - which experts the tokens of a text chose, what that says about them, and what a cache of a given size would have
 * found: by the store's own rules (the code of store.c, without files), by the best fixed set, and by one who knows the future.
 *
 * Tokens count one at a time, as they are decoded. What a cache finds is counted over the second half of the tokens, after the first
 * half has filled it; `cold` is all of them, from an empty cache.
 * Includes: base, model, store.h. */
#ifndef MOEBIUS_EXPERT_TRACE_H
#define MOEBIUS_EXPERT_TRACE_H

#include "expert/store.h"

struct trace {
    const struct model *model;
    int layers;       /* with experts */
    int n, room;      /* tokens */
    uint16_t *choice; /* [room][layers][top_k] ascending within a token and layer */
    bool *begins;     /* [room] has no neighbour before it: another text begins */
};

/* Room for `tokens`. The model must outlive the trace. */
int trace_open(struct trace *trace, const struct model *model, int tokens, struct mo_error *error);
void trace_close(struct trace *trace); /* accepts a zeroed one */

/* What forward.h's tap sees of one layer: ids [n_rows][top_k] of tokens from `first` on. */
void trace_record(struct trace *trace, int first, int layer, const int32_t *ids, int n_rows);
/* After all layers: these rows are tokens now. */
void trace_add(struct trace *trace, int n_rows, bool begins);

/* Of the choices of one layer, or of all layers together. */
struct trace_use {
    int experts;                /* of that layer, or of all */
    double least, median, most; /* share of the tokens that an expert is chosen by */
    double entropy;             /* of the choices, as a share of log2(experts): 1 is even */
    int covers[3];              /* experts, the most wanted first, that take 50, 80 and 90 % of the choices */
    double reuse;               /* share of a token's experts that the token before it had chosen too */
    double by_shares;           /* what that would be if tokens followed one another by chance, with these shares */
    double by_chance;           /* and if all experts were alike: top_k / experts of a layer */
};
/* `layer` counts those with experts, from 0; -1: all of them. */
int trace_use_of(const struct trace *trace, int layer, struct trace_use *use, struct mo_error *error);

/* Distinct experts of a layer that `tokens` neighbours choose, on average over all layers; 0 where there are not so many. */
double trace_distinct(const struct trace *trace, int tokens);

struct trace_hits {
    uint64_t hits, asked;
};
static inline double trace_hit_rate(const struct trace_hits *hits) {
    return hits->asked ? (double)hits->hits / (double)hits->asked : 0;
}

/* The store, with so many slots. */
int trace_replay(const struct trace *trace, int slots, struct trace_hits *cold, struct trace_hits *warm,
                 struct mo_error *error);
/* Those that the counted tokens want most, never changed; what passes by has a place beside them. */
int trace_fixed(const struct trace *trace, int slots, struct trace_hits *warm, struct mo_error *error);
/* Knowing the future (Belady): giving away what is wanted again last, if that is not the one that has just come. Begins with what
 * is wanted first, so nobody finds more. */
int trace_best(const struct trace *trace, int slots, struct trace_hits *warm, struct mo_error *error);

#endif
