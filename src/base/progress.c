#include "base/progress.h"

#include <stdio.h>
#include <unistd.h>
#include "base/clock.h"

static const double QUIET_S = 2, REDRAW_S = 0.2;

void progress_begin(struct progress *p, const char *label, const char *unit, double scale, double total) {
    *p = (struct progress){.label = label,
                           .unit = unit,
                           .scale = scale,
                           .total = total,
                           .start_s = clock_now_s(),
                           .is_terminal = isatty(STDERR_FILENO)};
}

void progress_update(struct progress *p, double done) {
    if (!p->is_terminal) return;
    double now = clock_now_s(), elapsed = now - p->start_s;
    if (elapsed < QUIET_S || now - p->shown_s < REDRAW_S) return;
    double rate = done / elapsed;
    int digits = p->scale == 1 ? 0 : 2;
    fprintf(stderr, "\r\033[K%s: %.*f of %.*f %s, %.*f %s/s", p->label, digits, done * p->scale, digits,
            p->total * p->scale, p->unit, digits, rate * p->scale, p->unit);
    if (rate > 0 && done < p->total) fprintf(stderr, ", %.0f s left", (p->total - done) / rate);
    fflush(stderr);
    p->shown_s = now;
    p->is_shown = true;
}

void progress_end(struct progress *p) {
    if (p->is_shown) fputs("\r\033[K", stderr);
    p->is_shown = false;
}
