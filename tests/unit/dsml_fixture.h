/* dsml_fixture.h - texts in V3.2's form of DSML, said in V4's: what holds for one holds for the other. */
#ifndef MOEBIUS_TESTS_DSML_FIXTURE_H
#define MOEBIUS_TESTS_DSML_FIXTURE_H

#include <string.h>
#include "base/buffer.h"

/* The block of calls is called "tool_calls" there, and not "function_calls"; "func" is its beginning, too. The caller's. */
static inline char *in_v4(const char *text) {
    static const char OLD[] = "｜func", REST[] = "tion", NEW[] = "｜tool";
    struct buffer out = {0};
    for (const char *found; (found = strstr(text, OLD));) {
        buffer_add(&out, text, (size_t)(found - text));
        buffer_add_text(&out, NEW);
        text = found + strlen(OLD);
        if (strncmp(text, REST, strlen(REST)) == 0) text += strlen(REST);
    }
    buffer_add(&out, text, strlen(text) + 1);
    return out.data;
}

#endif
