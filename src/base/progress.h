/* base/progress.h - a line on stderr for work that takes longer than two seconds: how far, how fast, how long still. Nothing
 * is shown before that, nor when stderr is not a terminal. One at a time; the thread that works calls it. */
#ifndef MOEBIUS_BASE_PROGRESS_H
#define MOEBIUS_BASE_PROGRESS_H

#include <stdbool.h>

struct progress {
    const char *label; /* "reading the prompt" */
    const char *unit;  /* "tokens", "GB": of done and total after `scale` */
    double scale;      /* 1e-9 shows bytes as GB */
    double total;
    double start_s, shown_s;
    bool is_terminal, is_shown;
};

void progress_begin(struct progress *progress, const char *label, const char *unit, double scale, double total);
void progress_update(struct progress *progress, double done);
void progress_end(struct progress *progress); /* wipes the line */

#endif
