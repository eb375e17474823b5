#include "cmd/ids.h"

#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"

enum { MAX_IDS_BYTES = 256 << 20 };

static int read_list(const char *text, struct token_list *ids, struct mo_error *error) {
    for (const char *at = text;; at++) {
        char *end;
        long id = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || id < 0 || id > INT32_MAX) {
            return mo_error_set(error, MO_E_INVALID, "--ids: expected a file, or token ids as in 1,2,3; found \"%s\"",
                                text);
        }
        int code = token_list_push(ids, (int32_t)id, error);
        if (code || !*end) return code;
        at = end;
    }
}

static int read_file_of(const char *path, struct token_list *ids, struct mo_error *error) {
    json_t *root;
    int code = json_parse_file(path, MAX_IDS_BYTES, &root, error);
    if (code) return code;
    if (!json_is_array(root)) code = mo_error_set(error, MO_E_INVALID, "%s: expected a JSON array of token ids", path);
    for (size_t i = 0; i < json_array_size(root) && !code; i++) {
        const json_t *value = json_array_get(root, i);
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id > INT32_MAX) {
            code = mo_error_set(error, MO_E_INVALID, "%s: item %zu is no token id", path, i);
        } else {
            code = token_list_push(ids, (int32_t)id, error);
        }
    }
    json_decref(root);
    return code;
}

int ids_read(const char *source, int vocab, struct token_list *ids, struct mo_error *error) {
    bool is_file = file_exists(source) || !strcmp(source, "-");
    int code = is_file ? read_file_of(source, ids, error) : read_list(source, ids, error);
    if (code) return code;
    if (ids->n == 0) return mo_error_set(error, MO_E_INVALID, "--ids: no token ids");
    for (size_t i = 0; i < ids->n; i++) {
        if (ids->ids[i] < vocab) continue;
        return mo_error_set(error, MO_E_INVALID, "--ids: token %zu is %d: expected 0 to %d (the vocabulary)", i,
                            ids->ids[i], vocab - 1);
    }
    return 0;
}
