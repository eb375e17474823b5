#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static enum log_level g_level = LOG_INFO;

void log_set_level(enum log_level level) {
    g_level = level;
}

/* One vfprintf per line under the stream's lock, so that lines of threads do not mix. */
static void log_line(enum log_level level, const char *prefix, const char *format, va_list arguments) {
    if (level > g_level) return;
    flockfile(stderr);
    fputs(prefix, stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    funlockfile(stderr);
}

#define LOG_FUNCTION(name, level, prefix)                                                                              \
    void name(const char *format, ...) {                                                                               \
        va_list arguments;                                                                                             \
        va_start(arguments, format);                                                                                   \
        log_line(level, prefix, format, arguments);                                                                    \
        va_end(arguments);                                                                                             \
    }
LOG_FUNCTION(log_error, LOG_ERROR, "moebius: error: ")
LOG_FUNCTION(log_warn, LOG_WARN, "moebius: warning: ")
LOG_FUNCTION(log_info, LOG_INFO, "moebius: ")
