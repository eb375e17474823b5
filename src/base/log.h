/* base/log.h - lines for people, on stderr. Quiet levels cost one comparison. Thread-safe. */
#ifndef MOEBIUS_BASE_LOG_H
#define MOEBIUS_BASE_LOG_H

enum log_level { LOG_QUIET, LOG_ERROR, LOG_WARN, LOG_INFO };

void log_set_level(enum log_level level); /* default LOG_INFO */
void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
