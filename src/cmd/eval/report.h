/* cmd/eval/report.h - rows of `moebius eval` for people, as they come, and for programs, at the end. */
#ifndef MOEBIUS_CMD_EVAL_REPORT_H
#define MOEBIUS_CMD_EVAL_REPORT_H

#include <jansson.h>
#include "cmd/eval/result.h"

/* `first`: the first row, which the others are compared with. */
json_t *eval_report_json(const struct engine *engine, const struct eval_plan *plan, const struct eval_result *result,
                         const struct eval_result *first);

/* The head is printed with the first row. */
void eval_report_print(const struct engine *engine, const struct eval_plan *plan, const struct eval_result *result,
                       const struct eval_result *first);
/* After the last row: why something has no figure. */
void eval_report_print_reasons(const struct eval_result *result);

#endif
