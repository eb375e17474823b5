#include "plan/curve.h"

#include <stdio.h>
#include "base/utf8.h"

enum { MAX_CURVE_BYTES = 16 << 20, MAX_TOKENS = 1 << 30 };

static int check_number(const json_t *root, const char *key, int wanted, const char *path, struct mo_error *error) {
    int found = 0, code = json_get_int(root, key, JSON_REQUIRED_KEY, 0, MAX_TOKENS, path, &found, error);
    if (code || found == wanted) return code;
    return mo_error_set(error, MO_E_INVALID, "%s: key \"%s\": expected %d, as this model has, found %d", path, key,
                        wanted, found);
}

static int read_points(struct plan_curve *curve, const json_t *root, const char *path, struct mo_error *error) {
    const json_t *list = json_object_get(root, "curve");
    size_t n = json_array_size(list);
    int code = 0;
    if (n < 1 || n > PLAN_MAX_CURVE) {
        return mo_error_set(error, MO_E_INVALID, "%s: key \"curve\": expected an array of 1 to %d sizes, found %s",
                            path, PLAN_MAX_CURVE, json_is_array(list) ? "another number" : json_type_name(list));
    }
    for (size_t i = 0; i < n && !code; i++) {
        const json_t *point = json_array_get(list, i);
        double last = i ? curve->share[i - 1] : 0;
        if (!json_is_object(point)) {
            return mo_error_set(error, MO_E_INVALID, "%s: key \"curve\": expected objects, found %s", path,
                                json_type_name(point));
        }
        code = json_get_double(point, "share", JSON_REQUIRED_KEY, last, 1, path, &curve->share[i], error);
        if (!code) code = json_get_double(point, "hit_rate", JSON_REQUIRED_KEY, 0, 1, path, &curve->hit_rate[i], error);
    }
    curve->n = (int)n;
    return code;
}

int plan_curve_from(struct plan_curve *curve, const json_t *root, const char *path, const struct plan_arch *arch,
                    struct mo_error *error) {
    const char *source = "";
    *curve = (struct plan_curve){0};
    if (!json_is_object(root))
        return mo_error_set(error, MO_E_INVALID, "%s: expected an object, found %s", path, json_type_name(root));
    int code = check_number(root, "experts", arch->experts, path, error);
    if (!code) code = check_number(root, "top_k", arch->top_k, path, error);
    if (!code) code = check_number(root, "expert_layers", plan_arch_moe_layers(arch), path, error);
    if (!code) code = json_get_int(root, "tokens", JSON_REQUIRED_KEY, 1, MAX_TOKENS, path, &curve->tokens, error);
    if (!code) code = json_get_bool(root, "synthetic", JSON_OPTIONAL_KEY, path, &curve->synthetic, error);
    if (!code) code = json_get_bool(root, "generated", JSON_OPTIONAL_KEY, path, &curve->generated, error);
    if (!code) code = json_get_string(root, "source", JSON_OPTIONAL_KEY, path, &source, error);
    if (code) return code;
    snprintf(curve->source, sizeof curve->source, "%s", source);
    utf8_clean(curve->source);
    return read_points(curve, root, path, error);
}

int plan_curve_read(struct plan_curve *curve, const char *path, const struct plan_arch *arch, struct mo_error *error) {
    json_t *root;
    int code = json_parse_file(path, MAX_CURVE_BYTES, &root, error);
    if (code) return code;
    code = plan_curve_from(curve, root, path, arch, error);
    json_decref(root);
    return code;
}

double plan_curve_at(const struct plan_curve *curve, double share) {
    double x = 0, y = 0;
    for (int i = 0; i <= curve->n; i++) {
        double next_x = i < curve->n ? curve->share[i] : 1, next_y = i < curve->n ? curve->hit_rate[i] : 1;
        if (share < next_x) return y + (next_y - y) * (share - x) / (next_x - x);
        x = next_x;
        y = next_y;
    }
    return 1;
}
