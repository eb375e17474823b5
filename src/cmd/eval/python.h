/* cmd/eval/python.h - python3 as a child process, to be asked once which of many texts are Python: ast.parse decides. It is
 * started before the texts are written, so that a machine without it is noticed first. */
#ifndef MOEBIUS_CMD_EVAL_PYTHON_H
#define MOEBIUS_CMD_EVAL_PYTHON_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>
#include "base/json.h"

struct eval_python {
    pid_t pid; /* 0: none */
    FILE *to, *from;
    char version[32];
    char reason[256]; /* why there is no answer */
};

/* False, with the reason, if there is no python3 that works. */
bool eval_python_start(struct eval_python *python);
/* `sources`: an array of strings. Fills is_python [size of the array]; false with the reason if the child fails. */
bool eval_python_parse(struct eval_python *python, const json_t *sources, bool *is_python);
void eval_python_stop(struct eval_python *python); /* accepts a zeroed one */

#endif
