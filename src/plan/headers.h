/* plan/headers.h - safetensors headers to bytes by group. Unlike model/checkpoint.c this takes a file that ends after its header, as
 * a range request gives it. Includes: base, plan. */
#ifndef MOEBIUS_PLAN_HEADERS_H
#define MOEBIUS_PLAN_HEADERS_H

#include "plan/quant.h"

/* The header's JSON; the caller releases it. */
int plan_header_read(json_t **header, const char *path, struct mo_error *error);
/* The config.json that a file of ours carries inside, or NULL; points into `header`. */
const char *plan_header_config(const json_t *header);
/* The built-in model whose shapes the header's tensors have, or NULL. */
const char *plan_header_match(const json_t *header);

/* What has been seen so far; begins zeroed. */
struct plan_seen {
    double params[PLAN_GROUPS], bytes[PLAN_GROUPS], card_more[PLAN_GROUPS], left_out_bytes;
    struct plan_format format[PLAN_GROUPS]; /* of the largest tensor of each */
    double largest[PLAN_GROUPS];
    int tensors;
};
int plan_header_add(struct plan_seen *seen, const json_t *header, const struct plan_arch *arch, const char *path,
                    struct mo_error *error);
/* Files that hold a part of the model only: the rest is taken to be stored alike, and the note says so. */
void plan_seen_finish(const struct plan_seen *seen, const struct plan_arch *arch, struct plan_weights *weights);

#endif
