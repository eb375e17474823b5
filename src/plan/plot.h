/* plan/plot.h - lines and points on logarithmic axes, as SVG. Everything is written with fixed decimals, so that the same
 * numbers give the same file everywhere. Includes: nothing of the project. */
#ifndef MOEBIUS_PLAN_PLOT_H
#define MOEBIUS_PLAN_PLOT_H

#include <stdio.h>

struct plot_axis {
    const char *label;
    double min, max;
    const double *ticks; /* [n_ticks] */
    int n_ticks;
};

enum { PLOT_MAX_POINTS = 64 };
struct plot_series {
    const char *label; /* written at the last point */
    const char *color; /* "#0072b2" */
    int dashed;
    int n;
    double x[PLOT_MAX_POINTS], y[PLOT_MAX_POINTS];
};

void plot_begin(FILE *out, const char *title, const char *note, const struct plot_axis *x, const struct plot_axis *y);
void plot_line(FILE *out, const struct plot_axis *x, const struct plot_axis *y, const struct plot_series *series);
void plot_point(FILE *out, const struct plot_axis *x, const struct plot_axis *y, const char *color, double at_x,
                double at_y);
/* A thin upright at `at`, named along its foot, on its left or right side. */
void plot_upright(FILE *out, const struct plot_axis *x, double at, const char *label, int left);
void plot_end(FILE *out);

#endif
