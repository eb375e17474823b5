#include "server/frame.h"

#include "server/put.h"

/* Takes `json` over. A frame without all of it is none. */
static int end_frame(struct buffer *out, size_t before, json_t *json, const char *end) {
    int code = put_dump(out, json);
    if (code)
        out->size = before;
    else
        buffer_add_text(out, end);
    return out->failed ? -1 : code;
}

int frame_add(struct buffer *out, const char *event, json_t *json) {
    size_t before = out->size;
    if (event) {
        buffer_add_text(out, "event: ");
        buffer_add_text(out, event);
        buffer_add_text(out, "\n");
    }
    buffer_add_text(out, "data: ");
    return end_frame(out, before, json, "\n\n");
}

int frame_add_line(struct buffer *out, json_t *json) {
    return end_frame(out, out->size, json, "\n");
}

int frame_add_comment(struct buffer *out) {
    buffer_add_text(out, ": ping\n\n");
    return out->failed ? -1 : 0;
}
