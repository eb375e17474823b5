#include "plan/plot.h"

#include <math.h>

enum { WIDTH = 860, HEIGHT = 540, LEFT = 70, RIGHT = 150, TOP = 64, BOTTOM = 62 };

static double place_x(const struct plot_axis *axis, double value) {
    return LEFT + (WIDTH - LEFT - RIGHT) * log(value / axis->min) / log(axis->max / axis->min);
}

static double place_y(const struct plot_axis *axis, double value) {
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * log(value / axis->min) / log(axis->max / axis->min);
}

static void draw_x_axis(FILE *out, const struct plot_axis *axis) {
    for (int i = 0; i < axis->n_ticks; i++) {
        double x = place_x(axis, axis->ticks[i]);
        fprintf(out, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#e2e2e2\"/>\n", x, TOP, x,
                HEIGHT - BOTTOM);
        fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", x, HEIGHT - BOTTOM + 18,
                axis->ticks[i]);
    }
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", (WIDTH + LEFT - RIGHT) / 2,
            HEIGHT - BOTTOM + 42, axis->label);
}

static void draw_y_axis(FILE *out, const struct plot_axis *axis) {
    for (int i = 0; i < axis->n_ticks; i++) {
        double y = place_y(axis, axis->ticks[i]);
        fprintf(out, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#e2e2e2\"/>\n", LEFT, y, WIDTH - RIGHT,
                y);
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", LEFT - 8, y + 4, axis->ticks[i]);
    }
    fprintf(out, "<text transform=\"translate(20 %d) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
            (HEIGHT + TOP - BOTTOM) / 2, axis->label);
}

void plot_begin(FILE *out, const char *title, const char *note, const struct plot_axis *x, const struct plot_axis *y) {
    fprintf(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"13\" "
        "fill=\"#222222\">\n<title>%s</title>\n<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
        WIDTH, HEIGHT, title, WIDTH, HEIGHT);
    fprintf(out, "<text x=\"%d\" y=\"26\" font-size=\"17\" font-weight=\"bold\">%s</text>\n", LEFT, title);
    fprintf(out, "<text x=\"%d\" y=\"46\" fill=\"#555555\">%s</text>\n", LEFT, note);
    draw_x_axis(out, x);
    draw_y_axis(out, y);
    fprintf(out, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#222222\"/>\n", LEFT, TOP, HEIGHT - BOTTOM,
            WIDTH - RIGHT);
}

void plot_line(FILE *out, const struct plot_axis *x, const struct plot_axis *y, const struct plot_series *s) {
    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"", s->color,
            s->dashed ? " stroke-dasharray=\"6 5\"" : "");
    for (int i = 0; i < s->n; i++) fprintf(out, "%s%.1f,%.1f", i ? " " : "", place_x(x, s->x[i]), place_y(y, s->y[i]));
    fprintf(out, "\"/>\n");
    if (!s->label || !s->n) return;
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%s</text>\n", place_x(x, s->x[s->n - 1]) + 6,
            place_y(y, s->y[s->n - 1]) + 4, s->color, s->label);
}

void plot_point(FILE *out, const struct plot_axis *x, const struct plot_axis *y, const char *color, double at_x,
                double at_y) {
    fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", place_x(x, at_x), place_y(y, at_y), color);
}

void plot_upright(FILE *out, const struct plot_axis *x, double at, const char *label, int left) {
    double at_x = place_x(x, at);
    fprintf(out, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#bbbbbb\"/>\n", at_x, TOP, at_x,
            HEIGHT - BOTTOM);
    fprintf(out, "<text transform=\"translate(%.1f %d) rotate(-90)\" font-size=\"11\" fill=\"#555555\">%s</text>\n",
            at_x + (left ? -3 : 10), HEIGHT - BOTTOM - 6, label);
}

void plot_end(FILE *out) {
    fprintf(out, "</svg>\n");
}
