/* cmd/top/terminal.h - a terminal's screen for as long as a program draws on it: the other screen, keys at once and unseen, no cursor.
 * Everything is as it was after top_terminal_close, while the program is stopped (ctrl-Z), and when it ends by a signal that it
 * brought upon itself. Signals that come from outside are read like keys, so nothing is interrupted. One terminal a process. */
#ifndef MOEBIUS_CMD_TOP_TERMINAL_H
#define MOEBIUS_CMD_TOP_TERMINAL_H

#include <stdbool.h>
#include "base/error.h"
#include "base/buffer.h"

struct top_terminal {
    int signal_fd;
    bool has_keys; /* standard input is a terminal, too */
    int cols, rows;
    int last_signal; /* that asks to end; 0: none */
    struct buffer frame;
};

enum top_event { TOP_EVENT_NONE, TOP_EVENT_REDRAW, TOP_EVENT_QUIT };

/* Standard output is a terminal. */
int top_terminal_open(struct top_terminal *terminal, struct mo_error *error);
void top_terminal_close(struct top_terminal *terminal);

/* What a readable descriptor has to say. */
enum top_event top_terminal_read_keys(struct top_terminal *terminal);
enum top_event top_terminal_read_signals(struct top_terminal *terminal);

/* Text of lines takes the place of what is shown. */
int top_terminal_show(struct top_terminal *terminal, const struct buffer *text, struct mo_error *error);

#endif
