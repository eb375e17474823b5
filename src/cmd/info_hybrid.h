/* cmd/info_hybrid.h - what `moebius info` says of a model that is hybrid. Includes: base, model. */
#ifndef MOEBIUS_CMD_INFO_HYBRID_H
#define MOEBIUS_CMD_INFO_HYBRID_H

#include "base/json.h"
#include "model/model.h"

/* {"window": 128, "ratios": [...], ...}; the caller releases it. */
json_t *info_hybrid_json(const struct model *model);
/* The same in words, some lines. */
void info_hybrid_print(const struct model *model);

#endif
