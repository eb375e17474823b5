#include "base/text.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

bool text_ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && !strcmp(text + n - n_end, end);
}

void text_print_hex(const void *bytes, size_t n, char *text) {
    text[0] = 0;
    for (size_t i = 0; i < n; i++) snprintf(text + 2 * i, 3, "%02x", ((const uint8_t *)bytes)[i]);
}
