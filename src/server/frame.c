#include "server/frame.h"

#include <stdlib.h>
#include "server/put.h"

/* Takes `json` over. */
static int add_json(struct buffer *out, json_t *json, const char *end) {
    char *text = put_dump(json);
    if (!text) return -1;
    buffer_add_text(out, text);
    buffer_add_text(out, end);
    free(text);
    return out->failed ? -1 : 0;
}

int frame_add(struct buffer *out, const char *event, json_t *json) {
    if (event) {
        buffer_add_text(out, "event: ");
        buffer_add_text(out, event);
        buffer_add_text(out, "\n");
    }
    buffer_add_text(out, "data: ");
    return add_json(out, json, "\n\n");
}

int frame_add_line(struct buffer *out, json_t *json) {
    return add_json(out, json, "\n");
}

int frame_add_comment(struct buffer *out) {
    buffer_add_text(out, ": ping\n\n");
    return out->failed ? -1 : 0;
}
