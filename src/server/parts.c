#include "server/parts.h"

#include <stdlib.h>
#include <string.h>

enum { PARTS_MIN = 4 };

static struct part *last(const struct parts *parts) {
    return parts->n > 0 ? &parts->list[parts->n - 1] : NULL;
}

static int part_begin(struct parts *parts, const struct parts_writer *writer, const struct part *part) {
    if (parts->n == parts->capacity) {
        int capacity = parts->capacity ? 2 * parts->capacity : PARTS_MIN;
        struct part *list = realloc(parts->list, (size_t)capacity * sizeof *list);
        if (!list) return -1;
        parts->list = list;
        parts->capacity = capacity;
    }
    parts->list[parts->n++] = *part;
    last(parts)->is_open = true;
    return parts->out ? writer->begin(writer->context, parts, last(parts)) : 0;
}

int parts_end(struct parts *parts, const struct parts_writer *writer) {
    struct part *part = last(parts);
    if (!part || !part->is_open) return 0;
    part->is_open = false;
    return parts->out ? writer->end(writer->context, parts, part) : 0;
}

int parts_add(struct parts *parts, const struct parts_writer *writer, enum part_kind kind, const char *text,
              size_t size) {
    struct part *part = last(parts);
    if (size == 0) return 0;
    if (!part || !part->is_open || part->kind != kind) {
        int code = parts_end(parts, writer);
        if (!code) code = part_begin(parts, writer, &(struct part){.kind = kind});
        if (code) return code;
        part = last(parts);
    }
    buffer_add(&part->text, text, size);
    if (part->text.failed) return -1;
    return parts->out ? writer->grow(writer->context, parts, part, text, size) : 0;
}

int parts_add_call(struct parts *parts, const struct parts_writer *writer, const char *id, const char *name,
                   size_t name_size) {
    struct part part = {.kind = PART_CALL, .call_id = strdup(id), .name = strndup(name, name_size)};
    int code = part.call_id && part.name ? parts_end(parts, writer) : -1;
    int n = parts->n;
    if (!code) code = part_begin(parts, writer, &part);
    if (parts->n == n) { /* it is not in the list, which would free them */
        free(part.call_id);
        free(part.name);
    }
    return code;
}

int parts_finish(struct parts *parts, const struct parts_writer *writer) {
    int code = parts->n == 0 ? part_begin(parts, writer, &(struct part){.kind = PART_TEXT}) : 0;
    parts->is_over = true;
    return code ? code : parts_end(parts, writer);
}

int parts_index(const struct parts *parts, const struct part *part) {
    return (int)(part - parts->list);
}

void parts_free(struct parts *parts) {
    for (int i = 0; i < parts->n; i++) {
        buffer_free(&parts->list[i].text);
        free(parts->list[i].call_id);
        free(parts->list[i].name);
    }
    free(parts->list);
    *parts = (struct parts){0};
}
