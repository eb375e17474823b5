#include "server/frame.h"

#include <stdlib.h>

int frame_add(struct buffer *out, const char *event, json_t *json) {
    char *text = json ? json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(json);
    if (!text) return -1;
    if (event) {
        buffer_add_text(out, "event: ");
        buffer_add_text(out, event);
        buffer_add_text(out, "\n");
    }
    buffer_add_text(out, "data: ");
    buffer_add_text(out, text);
    buffer_add_text(out, "\n\n");
    free(text);
    return out->failed ? -1 : 0;
}
