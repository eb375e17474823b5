#include "cmd/top/terminal.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>
#include "base/file.h"

/* The other screen, no cursor, lines that end at the edge; and back. */
static const char ENTER[] = "\033[?1049h\033[?25l\033[?7l\033[2J", LEAVE[] = "\033[?7h\033[?25h\033[?1049l";

static const int ENDING[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT}, CRASHES[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

/* For the handler of crashes, which is handed nothing. */
static struct termios saved_mode;
static volatile sig_atomic_t has_mode, is_entered;

/* Safe inside a signal handler. */
static void leave(void) {
    if (is_entered) file_write_all(STDOUT_FILENO, LEAVE, sizeof LEAVE - 1);
    is_entered = 0;
    if (has_mode) tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_mode);
}

static int enter(struct mo_error *error) {
    if (has_mode) {
        struct termios mode = saved_mode;
        mode.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        mode.c_cc[VMIN] = 1; /* nothing read is a terminal that is gone */
        mode.c_cc[VTIME] = 0;
        if (tcsetattr(STDIN_FILENO, TCSADRAIN, &mode)) return mo_error_set(error, MO_E_IO, "the terminal's mode: %m");
    }
    is_entered = 1;
    if (file_write_all(STDOUT_FILENO, ENTER, sizeof ENTER - 1)) return mo_error_set(error, MO_E_IO, "the terminal: %m");
    return 0;
}

static void on_crash(int signal_number) {
    leave();
    raise(signal_number); /* the handler is gone by SA_RESETHAND: it ends as it would have */
}

static void handle_crashes(void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = handler == SIG_DFL ? 0 : (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof CRASHES / sizeof *CRASHES; i++) sigaction(CRASHES[i], &action, NULL);
}

static sigset_t watched_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof ENDING / sizeof *ENDING; i++) sigaddset(&set, ENDING[i]);
    sigaddset(&set, SIGWINCH);
    sigaddset(&set, SIGTSTP);
    return set;
}

static void read_size(struct top_terminal *terminal) {
    enum { COLS_MAX = 500, ROWS_MAX = 500 };
    struct winsize size = {0};
    bool is_known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
    terminal->cols = !is_known ? 80 : size.ws_col < COLS_MAX ? size.ws_col : COLS_MAX;
    terminal->rows = !is_known ? 24 : size.ws_row < ROWS_MAX ? size.ws_row : ROWS_MAX;
}

int top_terminal_open(struct top_terminal *terminal, struct mo_error *error) {
    sigset_t set = watched_signals();
    *terminal = (struct top_terminal){.has_keys = isatty(STDIN_FILENO)};
    has_mode = terminal->has_keys && tcgetattr(STDIN_FILENO, &saved_mode) == 0;
    sigprocmask(SIG_BLOCK, &set, NULL); /* before libcurl starts threads, which inherit it */
    terminal->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (terminal->signal_fd < 0) return mo_error_set(error, MO_E_IO, "signalfd: %m");
    handle_crashes(on_crash);
    read_size(terminal);
    int code = enter(error);
    if (code) top_terminal_close(terminal);
    return code;
}

void top_terminal_close(struct top_terminal *terminal) {
    sigset_t set = watched_signals();
    leave();
    handle_crashes(SIG_DFL);
    close(terminal->signal_fd);
    buffer_free(&terminal->frame);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    has_mode = 0;
}

enum top_event top_terminal_read_keys(struct top_terminal *terminal) {
    char keys[64];
    ssize_t n = read(STDIN_FILENO, keys, sizeof keys);
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) {
        terminal->has_keys = false; /* hung up: a signal says so, too, unless nobody sends it */
        return TOP_EVENT_QUIT;
    }
    if (n < 0 || keys[0] == '\033') return TOP_EVENT_NONE; /* an arrow key is not what its letters are */
    for (ssize_t i = 0; i < n; i++) {
        if (keys[i] == 'q' || keys[i] == 'Q') return TOP_EVENT_QUIT;
    }
    return TOP_EVENT_REDRAW;
}

/* Ctrl-Z: the shell gets its screen, and later this one its own. */
static enum top_event stop(struct top_terminal *terminal) {
    leave();
    raise(SIGSTOP);
    if (enter(NULL)) return TOP_EVENT_QUIT;
    read_size(terminal);
    return TOP_EVENT_REDRAW;
}

enum top_event top_terminal_read_signals(struct top_terminal *terminal) {
    struct signalfd_siginfo info;
    enum top_event event = TOP_EVENT_NONE;
    while (read(terminal->signal_fd, &info, sizeof info) == sizeof info) {
        int number = (int)info.ssi_signo;
        if (number == SIGWINCH) {
            read_size(terminal);
            event = TOP_EVENT_REDRAW;
        } else if (number == SIGTSTP) {
            event = stop(terminal);
            if (event == TOP_EVENT_QUIT) return event;
        } else {
            terminal->last_signal = number;
            return TOP_EVENT_QUIT;
        }
    }
    return event;
}

/* A line is wiped before it is written: at the edge the cursor stands on the last character, which wiping would take. */
static void add_line(struct buffer *frame, const char *line, size_t size, bool is_first) {
    buffer_add_text(frame, is_first ? "\033[H\033[K\033[7m" : "\r\n\033[K");
    buffer_add(frame, line, size);
    if (is_first) buffer_add_text(frame, "\033[0m");
}

int top_terminal_show(struct top_terminal *terminal, const struct buffer *text, struct mo_error *error) {
    struct buffer *frame = &terminal->frame;
    int n_lines = 0;
    frame->size = 0;
    for (size_t at = 0; at < text->size; n_lines++) {
        const char *line = text->data + at, *end = memchr(line, '\n', text->size - at);
        size_t n = end ? (size_t)(end - line) : text->size - at;
        add_line(frame, line, n, at == 0);
        at += n + 1;
    }
    if (n_lines < terminal->rows) buffer_add_text(frame, "\r\n\033[J");
    if (frame->failed) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for a screen");
    if (file_write_all(STDOUT_FILENO, frame->data, frame->size))
        return mo_error_set(error, MO_E_IO, "the terminal: %m");
    return 0;
}
