/* cmd/top/json.h - one sample for programs: what `moebius top --once --json` prints. Totals are the server's, the rest is of the interval
 * between two samples. What the server does not tell is left out; what the interval does not say is null. Pure. */
#ifndef MOEBIUS_CMD_TOP_JSON_H
#define MOEBIUS_CMD_TOP_JSON_H

#include "base/json.h"
#include "cmd/top/screen.h"

/* NULL: no memory. */
json_t *top_json(const struct top_view *view);

#endif
