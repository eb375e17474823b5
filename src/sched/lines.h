/* sched/lines.h - the rules of an answer's lines that editors ask for: where indentation ends, so does a suggestion. Works on
 * text in pieces; the result does not depend on where it was cut. Owner: one sequence. Includes: nothing of the project. */
#ifndef MOEBIUS_SCHED_LINES_H
#define MOEBIUS_SCHED_LINES_H

#include <stdbool.h>
#include <stddef.h>

/* Zero it, then set min_indent. */
struct line_rule {
    int min_indent; /* > 0: a line after the first that begins with fewer blanks and tabs ends the text; so does an empty one */
    bool has_break; /* a line has ended */
    bool ended;     /* by the rule: nothing is kept any more */
    bool at_start;  /* of a line after the first: only blanks so far, ... */
    int n_blanks;   /* ... this many */
};

/* How much of the text [size] is kept: all of it, or what comes before the first character of a line that begins too early. */
size_t line_rule_push(struct line_rule *rule, const char *text, size_t size);

#endif
