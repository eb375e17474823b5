#include "cmd/run_batch/input.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/utf8.h"
#include "server/api/fields.h"

enum { LINE_BYTES_MAX = 32 << 20, COPY_BYTES = 1 << 16 };

/* --- the file ------------------------------------------------------------------------------------ */

/* A file without a name, in TMPDIR. */
static int open_nameless(int *fd, struct mo_error *error) {
    const char *folder = getenv("TMPDIR");
    char path[4096];
    if (!folder || !*folder) folder = "/tmp";
    if ((size_t)snprintf(path, sizeof path, "%s/moebius-XXXXXX", folder) >= sizeof path) {
        return mo_error_set(error, MO_E_INVALID, "TMPDIR is too long");
    }
    *fd = mkostemp(path, O_CLOEXEC);
    if (*fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot create a file there: %s", folder, strerror(errno));
    unlink(path);
    return 0;
}

static int copy(int to, int from, const char *path, struct mo_error *error) {
    static char block[COPY_BYTES];
    for (;;) {
        ssize_t got = read(from, block, sizeof block);
        if (got == 0) return 0;
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return mo_error_set(error, MO_E_IO, "%s: cannot read: %s", path, strerror(errno));
        if (file_write_all(to, block, (size_t)got)) {
            return mo_error_set(error, MO_E_IO, "%s: cannot keep a copy in TMPDIR: %s", path, strerror(errno));
        }
    }
}

/* Takes `fd` over: a file that can be read twice. */
static int spool(int *fd, const char *path, struct mo_error *error) {
    int from = *fd, code = open_nameless(fd, error);
    if (!code) code = copy(*fd, from, path, error);
    if (from != STDIN_FILENO) close(from);
    return code;
}

int batch_input_open(struct batch_input *input, const char *path, struct mo_error *error) {
    bool is_stdin = !strcmp(path, "-");
    *input = (struct batch_input){.path = is_stdin ? "standard input" : path};
    int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC), code = 0;
    if (fd < 0) return mo_error_set(error, MO_E_IO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &input->source)) {
        code = mo_error_set(error, MO_E_IO, "%s: cannot read: %s", input->path, strerror(errno));
    } else if (S_ISDIR(input->source.st_mode)) {
        code = mo_error_set(error, MO_E_IO, "%s: a folder, no file of requests", path);
    } else if (is_stdin || !S_ISREG(input->source.st_mode)) {
        code = spool(&fd, input->path, error);
    }
    input->lines = (struct batch_lines){.fd = fd, .path = input->path, .max_bytes = LINE_BYTES_MAX};
    return code;
}

void batch_input_close(struct batch_input *input) {
    if (input->path && input->lines.fd > STDIN_FILENO) close(input->lines.fd);
    batch_lines_free(&input->lines);
    free(input->entries);
    *input = (struct batch_input){0};
}

/* --- a line -------------------------------------------------------------------------------------- */

static bool is_blank(const struct batch_line *line) {
    for (size_t i = 0; i < line->size; i++) {
        if (!strchr(" \t", line->text[i]) || !line->text[i]) return false;
    }
    return !line->is_too_long;
}

static void refuse(struct batch_request *r, const char *code, const char *why) {
    r->code = code;
    snprintf(r->message, sizeof r->message, "line %d: %.350s", r->line, why);
    size_t size = utf8_valid_prefix((const uint8_t *)r->message, strlen(r->message));
    r->message[size] = 0;
}

/* A text without NUL, which a C string would end at; NULL if it is none. */
static const char *text_of(const json_t *root, const char *key) {
    const json_t *value = json_object_get(root, key);
    const char *text = json_string_value(value);
    return text && *text && strlen(text) == json_string_length(value) ? text : NULL;
}

static void read_fields(struct batch_request *r) {
    r->custom_id = text_of(r->root, "custom_id");
    r->url = text_of(r->root, "url");
    r->method = text_of(r->root, "method");
    r->body = json_object_get(r->root, "body");
    bool has_method = json_object_get(r->root, "method") != NULL;
    if (!has_method) r->method = "POST"; /* there is no other */
    if (!r->custom_id)
        refuse(r, "missing_custom_id", "\"custom_id\" must be a text that tells this request from the others");
    else if (!r->url)
        refuse(r, "missing_url", "\"url\" must be a path like \"/v1/chat/completions\"");
    else if (!r->method)
        refuse(r, "invalid_method", "\"method\" must be \"POST\"");
    else if (!json_is_object(r->body))
        refuse(r, "missing_body", "\"body\" must be a JSON object: what a server would be sent");
}

static void read_line(struct batch_request *r, const struct batch_line *line) {
    struct api_error error = {0};
    char why[300];
    if (line->is_too_long) {
        snprintf(why, sizeof why, "longer than %d bytes", LINE_BYTES_MAX);
        refuse(r, "line_too_long", why);
        return;
    }
    r->root = fields_parse(line->text, line->size, &error);
    if (r->root) {
        read_fields(r);
        return;
    }
    static const char WHERE[] = "body: ";
    bool is_named = !strncmp(error.message, WHERE, strlen(WHERE));
    refuse(r, "invalid_json", error.message + (is_named ? strlen(WHERE) : 0));
}

static int bind_id(const struct batch_input *input, struct batch_digest *id, struct mo_error *error) {
    const struct batch_digest alone = *id;
    return batch_digest_make(id, &input->model, sizeof input->model, &alone, sizeof alone, error);
}

/* Requests are known by what their line says; other lines, which may be there twice, also by where they are. */
static int make_id(const struct batch_input *input, struct batch_request *r, const struct batch_line *line,
                   struct mo_error *error) {
    int number = r->custom_id ? 0 : r->line;
    int code = batch_digest_make(&r->id, &number, sizeof number, line->text, line->size, error);
    return code || !input->is_bound ? code : bind_id(input, &r->id, error);
}

int batch_input_next(struct batch_input *input, struct batch_request *r, struct mo_error *error) {
    struct batch_line line;
    int got;
    do {
        got = batch_lines_next(&input->lines, &line, error);
        if (got == 1 && line.at == 0 && line.size >= 3 && !memcmp(line.text, "\xEF\xBB\xBF", 3)) { /* Windows' mark */
            line.text += 3;
            line.size -= 3;
        }
        input->line += got == 1;
    } while (got == 1 && is_blank(&line));
    *r = (struct batch_request){.index = input->next, .line = input->line};
    if (got != 1) return got;
    input->next++;
    read_line(r, &line);
    int code = make_id(input, r, &line, error);
    if (code) batch_request_free(r);
    return code ? code : 1;
}

void batch_request_free(struct batch_request *r) {
    json_decref(r->root);
    *r = (struct batch_request){0};
}

/* --- the first time ------------------------------------------------------------------------------ */

static int add_entry(struct batch_input *input, const struct batch_request *r, struct mo_error *error) {
    if (input->n == input->capacity) {
        int capacity = input->capacity > INT_MAX / 2 ? 0 : 2 * input->capacity + 1024;
        struct batch_entry *grown = capacity ? realloc(input->entries, (size_t)capacity * sizeof *grown) : NULL;
        if (!grown) return mo_error_set(error, MO_E_NO_MEMORY, "%s: no memory for %d requests", input->path, input->n);
        input->entries = grown;
        input->capacity = capacity;
    }
    input->entries[input->n++] = (struct batch_entry){.id = r->id, .at = -1};
    if (r->code && input->n_bad++ == 0) snprintf(input->first_bad, sizeof input->first_bad, "%s", r->message);
    return 0;
}

/* Remembers the line of a custom_id, which nobody had before. */
static int add_name(const struct batch_input *input, struct batch_table *names, const struct batch_request *r,
                    struct mo_error *error) {
    struct batch_digest name;
    if (!r->custom_id) return 0;
    int code = batch_digest_make(&name, NULL, 0, r->custom_id, strlen(r->custom_id), error);
    int32_t line = code ? -1 : batch_table_find(names, &name);
    if (line >= 0) {
        return mo_error_set(
            error, MO_E_INVALID,
            "%s line %d: custom_id \"%.100s\" is that of line %d: nobody could tell their answers apart", input->path,
            r->line, r->custom_id, line);
    }
    return code ? code : batch_table_add(names, &name, r->line, error);
}

static int begin_again(struct batch_input *input, struct mo_error *error) {
    input->next = input->line = 0;
    return batch_lines_rewind(&input->lines, error);
}

int batch_input_scan(struct batch_input *input, struct mo_error *error) {
    struct batch_table names = {0};
    struct batch_request request;
    int code = begin_again(input, error), got = 1;
    while (!code && (got = batch_input_next(input, &request, error)) == 1) {
        code = add_name(input, &names, &request, error);
        if (!code) code = add_entry(input, &request, error);
        batch_request_free(&request);
    }
    batch_table_free(&names);
    if (code || got < 0) return code ? code : got;
    if (input->n == 0) return mo_error_set(error, MO_E_INVALID, "%s: there is no request in it", input->path);
    if (input->n_bad < input->n) return 0;
    return mo_error_set(error, MO_E_INVALID, "%s: there is no request in it: %s", input->path, input->first_bad);
}

int batch_input_bind(struct batch_input *input, const char *model, size_t size, struct mo_error *error) {
    int code = batch_digest_make(&input->model, NULL, 0, model, size, error);
    input->is_bound = true;
    for (int i = 0; i < input->n && !code; i++) code = bind_id(input, &input->entries[i].id, error);
    return code ? code : begin_again(input, error);
}
