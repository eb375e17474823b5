/* base/text.h - small things that are done with C strings. */
#ifndef MOEBIUS_BASE_TEXT_H
#define MOEBIUS_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

bool text_ends_with(const char *text, const char *end);
/* Bytes [n] as text [2 * n + 1], two small digits each. */
void text_print_hex(const void *bytes, size_t n, char *text);

#endif
