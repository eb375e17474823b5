/* model/config_priv.h - what the readers of config.json share: config.c (all families), config_hybrid.c (V4, V4.1), config_csa2.c (V4.1's
 * own), config_quant.c. Includes: base, model. */
#ifndef MOEBIUS_MODEL_CONFIG_PRIV_H
#define MOEBIUS_MODEL_CONFIG_PRIV_H

#include <string.h>
#include "base/json.h"
#include "model/model.h"

/* Bounds that no DeepSeek model comes near; they keep every later product of two dimensions inside 63 bits,
 * and check_count does so for those of more. */
enum {
    MAX_DIM = 1 << 20,
    MAX_HEADS = 4096,
    MAX_HEAD_DIM = 1024,
    MAX_VOCAB = 1 << 22,
    MAX_EXPERTS = 4096,
    MAX_CONTEXT = 1 << 26,
    MAX_CONFIG_BYTES = 4 << 20,
};

/* What every reader below needs: the object, its name in messages, and where to put an error. */
struct reader {
    const json_t *object;
    const char *where;
    struct mo_error *error;
};

static inline int need_int(const struct reader *r, const char *key, int min, int max, int *out) {
    return json_get_int(r->object, key, JSON_REQUIRED_KEY, min, max, r->where, out, r->error);
}

static inline int may_int(const struct reader *r, const char *key, int min, int max, int *out) {
    return json_get_int(r->object, key, JSON_OPTIONAL_KEY, min, max, r->where, out, r->error);
}

static inline int may_double(const struct reader *r, const char *key, double min, double max, double *out) {
    return json_get_double(r->object, key, JSON_OPTIONAL_KEY, min, max, r->where, out, r->error);
}

static inline int may_bool(const struct reader *r, const char *key, bool *out) {
    return json_get_bool(r->object, key, JSON_OPTIONAL_KEY, r->where, out, r->error);
}

static inline int may_string(const struct reader *r, const char *key, const char **out) {
    return json_get_string(r->object, key, JSON_OPTIONAL_KEY, r->where, out, r->error);
}

static inline int refuse(const struct reader *r, const char *key, const char *expected, const char *found) {
    return mo_error_set(r->error, MO_E_UNSUPPORTED, "%s: key \"%s\": expected %s, found \"%s\"", r->where, key,
                        expected, found);
}

static inline bool is_given(const struct reader *r, const char *key) {
    const json_t *value = json_object_get(r->object, key);
    return value && !json_is_null(value);
}

/* config_quant.c. k with one scale; where `may_be_row`, -1 is the whole row. */
int config_read_group(const struct reader *r, bool may_be_row, struct model *model);
int config_read_four_bits(const struct reader *r, const char *key);
int config_read_block_size(const struct reader *r, const json_t *block, struct model *model);
/* config_compressed.c */
int config_read_compressed_tensors(const struct reader *r, struct model *model);

/* config.c. The parameters of YaRN in `scaling`; mscale is left at 1 and mscale_all_dim at 0 where it has none. */
int config_read_yarn(const struct reader *config, const json_t *scaling, struct rope *rope);
static inline bool config_is_csa2(const struct model *model) {
    return !strcmp(model->architecture, "DeepseekV41ForCausalLM");
}
/* config_hybrid.c: all sizes of a V4 or V4.1, its experts and both its rotations. */
int config_read_hybrid(const struct reader *r, struct model *model);
/* config_csa2.c: which layers of a V4.1 make compressed rows, and which choose; after the ratios. And its n-gram memory. */
int config_read_sources(const struct reader *r, struct model *model);
int config_read_engram(const struct reader *r, struct model *model);
/* config_quant.c: how weights are stored. */
int config_read_quantization(const struct reader *config, struct model *model);

#endif
