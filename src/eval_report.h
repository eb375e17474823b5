/* eval_report.h - rows of `moebius eval` for people, as they come, and for programs, at the end. */
#ifndef MOEBIUS_EVAL_REPORT_H
#define MOEBIUS_EVAL_REPORT_H

#include <jansson.h>
#include "eval_result.h"

/* `first`: the first row, which the others are compared with. */
json_t *eval_report_json(const struct engine *engine, const struct eval_plan *plan, const struct eval_result *result,
                         const struct eval_result *first);

/* The head is printed with the first row. */
void eval_report_print(const struct engine *engine, const struct eval_plan *plan, const struct eval_result *result,
                       const struct eval_result *first);
/* After the last row: why something has no figure. */
void eval_report_print_reasons(const struct eval_result *result);

#endif
