/* cmd/top/screen.h - samples as lines of text: the screen of `moebius top`, and what `--once` prints. Pure: what is drawn depends on the
 * view alone. Only what the server tells gets a line. */
#ifndef MOEBIUS_CMD_TOP_SCREEN_H
#define MOEBIUS_CMD_TOP_SCREEN_H

#include "base/buffer.h"
#include "cmd/top/history.h"

enum top_state {
    TOP_CONNECTING, /* not asked yet, or no answer yet */
    TOP_READY,
    TOP_LOADING, /* it answers, but has no model yet */
    TOP_SLOW,    /* it does not answer in time */
    TOP_GONE,    /* nobody is there */
    TOP_REFUSED, /* it wants a key, or another one */
    TOP_FOREIGN, /* an answer that tells nothing we know */
    TOP_FAILED,  /* HTTP errors, answers too large, and the like */
};

const char *top_state_name(enum top_state state);

struct top_view {
    const struct top_history *history;
    enum top_state state;
    const char *url;
    const char *trouble; /* a sentence, where `state` has one to tell; else "" */
    double state_s;      /* how long it has been so */
    double now_s;        /* clock_now_s, for the age of what is shown */
    double now_unix_s;   /* for the uptime */
    double interval_s;   /* between samples */
    int cols, rows;      /* no more than this is drawn; rows 0: all there is */
    bool is_utf8;        /* blocks for bars, else ASCII */
    bool is_live;        /* a terminal: with the last minute beside the last interval */
};

/* Lines, each ended by '\n'. */
void top_screen_draw(struct buffer *out, const struct top_view *view);

/* Seconds since the server started, NaN if it does not tell. */
double top_uptime_s(const struct top_sample *sample, double now_unix_s);

#endif
