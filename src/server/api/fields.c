#include "server/api/fields.h"

#include <math.h>
#include <string.h>

struct shape {
    int depth;
    size_t n_brackets, n_values;
};

/* What is outside of strings: jansson's parser recurses, this loop does not; and it takes a hundred times the bytes of an empty
 * object, and twenty times those of a digit. */
static struct shape measure(const char *text, size_t size) {
    struct shape shape = {0};
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') i++;
            if (c == '"') in_string = false;
            continue;
        }
        bool opens = c == '[' || c == '{';
        if (c == '"') in_string = true;
        if (opens) depth++;
        if (c == ']' || c == '}') depth--;
        shape.n_brackets += opens;
        shape.n_values += opens || c == ','; /* all but the first of a list or an object stand behind one */
        if (depth > shape.depth) shape.depth = depth;
    }
    return shape;
}

json_t *fields_parse(const char *body, size_t size, struct api_error *error) {
    static const char BOM[] = "\xEF\xBB\xBF"; /* some write it in front of UTF-8 (RFC 8259, 8.1) */
    struct mo_error cause = {0};
    json_t *root = NULL;
    if (size >= 3 && !memcmp(body, BOM, 3)) body += 3, size -= 3;
    struct shape shape = measure(body, size);
    if (size == 0) {
        api_error_field(error, NULL, "the request has no body: expected a JSON object");
    } else if (shape.depth > API_JSON_DEPTH_MAX) {
        api_error_field(error, NULL, "the body nests deeper than %d levels", API_JSON_DEPTH_MAX);
    } else if (shape.n_brackets > API_JSON_BRACKETS_MAX) {
        api_error_field(error, NULL, "the body has more than %d objects and arrays", API_JSON_BRACKETS_MAX);
    } else if (shape.n_values > API_JSON_VALUES_MAX) {
        api_error_field(error, NULL, "the body has more than %d values", API_JSON_VALUES_MAX);
    } else if (json_parse(body, size, "body", &root, &cause)) {
        api_error_from(error, &cause, NULL);
    } else if (!json_is_object(root)) {
        api_error_field(error, NULL, "the body must be a JSON object, found %s", json_type_name(root));
        json_decref(root);
        root = NULL;
    }
    return root;
}

bool fields_failed(const struct fields *fields) {
    return fields->error->status != 0;
}

const json_t *fields_get(const struct fields *fields, const char *key) {
    const json_t *value = fields_failed(fields) ? NULL : json_object_get(fields->object, key);
    return json_is_null(value) ? NULL : value;
}

static void wrong_type(struct fields *fields, const char *key, const char *expected, const json_t *value) {
    api_error_field(fields->error, key, "%s must be %s, found %s", key, expected, json_type_name(value));
}

bool fields_bool(struct fields *fields, const char *key, bool value) {
    const json_t *found = fields_get(fields, key);
    if (!found) return value;
    if (!json_is_boolean(found)) wrong_type(fields, key, "true or false", found);
    return json_is_true(found);
}

/* 5.0 is one, too: some clients know no other numbers. */
static bool is_whole(const json_t *value) {
    static const double MOST = 9007199254740992.0; /* 2^53: from there on not every integer is a double */
    double number = json_real_value(value);
    return json_is_integer(value) || (json_is_real(value) && fabs(number) <= MOST && floor(number) == number);
}

static int64_t whole_value(const json_t *value) {
    return json_is_real(value) ? (int64_t)json_real_value(value) : json_integer_value(value);
}

int64_t fields_int(struct fields *fields, const char *key, int64_t min, int64_t max, int64_t value) {
    const json_t *found = fields_get(fields, key);
    if (!found) return value;
    if (!is_whole(found)) {
        wrong_type(fields, key, "an integer", found);
        return value;
    }
    int64_t number = whole_value(found);
    if (number >= min && number <= max) return number;
    api_error_field(fields->error, key, "%s must be from %lld to %lld, found %lld", key, (long long)min, (long long)max,
                    (long long)number);
    return value;
}

double fields_number(struct fields *fields, const char *key, double min, double max, double value) {
    const json_t *found = fields_get(fields, key);
    if (!found) return value;
    if (!json_is_number(found)) {
        wrong_type(fields, key, "a number", found);
        return value;
    }
    double number = json_number_value(found);
    if (number >= min && number <= max) return number;
    api_error_field(fields->error, key, "%s must be from %g to %g, found %g", key, min, max, number);
    return value;
}

static const json_t *of_type(struct fields *fields, const char *key, json_type type, const char *expected) {
    const json_t *found = fields_get(fields, key);
    if (!found || json_typeof(found) == type) return found;
    wrong_type(fields, key, expected, found);
    return NULL;
}

const json_t *fields_string(struct fields *fields, const char *key) {
    return of_type(fields, key, JSON_STRING, "a string");
}

const json_t *fields_object(struct fields *fields, const char *key) {
    return of_type(fields, key, JSON_OBJECT, "an object");
}

const json_t *fields_array(struct fields *fields, const char *key) {
    return of_type(fields, key, JSON_ARRAY, "an array");
}

void fields_refuse(struct fields *fields, const char *key, const char *why) {
    const json_t *value = fields_get(fields, key);
    bool is_empty = (json_is_array(value) && json_array_size(value) == 0) ||
                    (json_is_string(value) && json_string_length(value) == 0);
    if (!value || json_is_false(value) || is_empty) return;
    api_error_set(fields->error, 400, key, "unsupported_parameter", "%s is not supported: %s", key, why);
}

void fields_drop(json_t *object, const char *const *names, size_t n) {
    for (size_t i = 0; object && i < n; i++) json_object_del(object, names[i]);
}

const char *fields_type_of(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

int32_t fields_token(struct fields *fields, const json_t *value, const char *param, int vocab) {
    if (!is_whole(value)) {
        api_error_field(fields->error, param, "%s: expected token ids, found %s", param, json_type_name(value));
        return 0;
    }
    int64_t id = whole_value(value);
    if (id >= 0 && id < vocab) return (int32_t)id;
    api_error_field(fields->error, param, "%s: token %lld is not in the vocabulary (0 to %d)", param, (long long)id,
                    vocab - 1);
    return 0;
}
