/* text/calls.h - the marks of thoughts and calls as models write them: what the templates print, the grammars force and the
 * server reads is the same text. Includes: nothing. */
#ifndef MOEBIUS_TEXT_CALLS_H
#define MOEBIUS_TEXT_CALLS_H

#define THINK_BEGIN "<think>"
#define THINK_END "</think>"

/* V3's tokens */
#define CALLS_BEGIN "<｜tool▁calls▁begin｜>"
#define CALLS_END "<｜tool▁calls▁end｜>"
#define CALL_BEGIN "<｜tool▁call▁begin｜>"
#define CALL_SEPARATOR "<｜tool▁sep｜>"
#define CALL_END "<｜tool▁call▁end｜>"

/* CHAT_CALLS_FENCED: between CALL_BEGIN, the name, the arguments and CALL_END */
#define FENCED_KIND "function"
#define FENCED_OPEN "\n```json\n"
#define FENCED_CLOSE "\n```"

/* CHAT_CALLS_PLAIN: before the name, between it and the arguments, and behind them */
#define PLAIN_BEGIN "<tool_call>"
#define PLAIN_OPEN "\n{\"name\": \""
#define PLAIN_BETWEEN "\", \"arguments\": "
#define PLAIN_CLOSE "}\n"
#define PLAIN_END "</tool_call>"

enum { CALL_NAME_MAX = 128 }; /* bytes of a function's name, of letters, digits, _ - . : / */

#endif
