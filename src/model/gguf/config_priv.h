/* model/gguf/config_priv.h - what the files that write config.json from a GGUF share: gguf/config.c, and one for each family.
 * Private to src/model. */
#ifndef MOEBIUS_MODEL_GGUF_CONFIG_PRIV_H
#define MOEBIUS_MODEL_GGUF_CONFIG_PRIV_H

#include "model/gguf/gguf.h"

enum { GGUF_KEY_BYTES = 128 };

/* The document being made. */
struct gguf_maker {
    const struct gguf *gguf;
    json_t *root;
    bool *failed; /* to put something: a key left out would be a default taken in silence */
    struct mo_error *error;
};

/* Keys of the file that begin with a dot are the architecture's: ".block_count" is "deepseek2.block_count". */
const char *maker_key(const struct gguf_maker *m, const char *key, char full[GGUF_KEY_BYTES]);
int maker_int(const struct gguf_maker *m, const char *key, enum json_need need, int64_t max, int *out); /* from 0 */
int maker_double(const struct gguf_maker *m, const char *key, enum json_need need, double *out);
/* A key of config.json; takes the value over. */
void maker_put(const struct gguf_maker *m, const char *key, json_t *value);
void maker_put_int(const struct gguf_maker *m, const char *key, int value);
/* Integers of the file into config.json's. */
struct maker_size {
    const char *key, *name;
    enum json_need need; /* what is optional counts as absent when it is 0 */
};
int maker_sizes(const struct gguf_maker *m, const struct maker_size *sizes, int n);
/* An error that names file and key. */
int maker_refuse(const struct gguf_maker *m, const char *key, const char *expected, const char *found);
/* Keys that change the rotation and are 1 in every file of a DeepSeek model. */
int maker_refuse_foreign_rope(const struct gguf_maker *m);

/* What is the family's own: gguf/config_latent.c and gguf/config_hybrid.c. */
int gguf_put_latent(const struct gguf_maker *m);
int gguf_put_hybrid(const struct gguf_maker *m);

#endif
