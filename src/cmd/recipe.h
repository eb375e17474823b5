/* cmd/recipe.h - the flags that say which format each group of tensors gets, and the words for what came out: shared by quantize
 * and synth. */
#ifndef MOEBIUS_CMD_RECIPE_H
#define MOEBIUS_CMD_RECIPE_H

#include "cli/cli.h"
#include "model/make.h"

struct recipe_arguments {
    const char *quant, *groups[TENSOR_GROUPS];
    int group_size, threads;
    char text[400]; /* all of it in one: "int4,head=bf16" */
};

enum { RECIPE_FLAGS_MAX = 16 };
void recipe_flags(struct recipe_arguments *arguments, struct cli_flag flags[RECIPE_FLAGS_MAX]);
/* Needs --quant; fills `text` too. */
int recipe_from_arguments(struct recipe *recipe, struct recipe_arguments *arguments, struct mo_error *error);

/* What was written, for people or for programs. Returns non-zero if it cannot be printed. */
int recipe_print_report(const struct make_report *report, const struct recipe *recipe, const char *path, double seconds,
                        bool json, struct mo_error *error);

#endif
