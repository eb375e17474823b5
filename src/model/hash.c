#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include "base/progress.h"
#include "base/text.h"
#include "model/checkpoint.h"

/* Enough to tell two checkpoints apart without reading hundreds of gigabytes. */
enum { SAMPLED_TENSORS = 256, SAMPLE_BYTES = 4096, MAX_CONFIG_BYTES = 4 << 20 };

static void add_sample(EVP_MD_CTX *hash, const uint8_t *data, size_t size, size_t at) {
    size_t n = size - at < SAMPLE_BYTES ? size - at : SAMPLE_BYTES;
    EVP_DigestUpdate(hash, data + at, n);
}

/* Start, middle and end; the parts of a short tensor may overlap. */
static void add_tensor(EVP_MD_CTX *hash, const struct tensor *tensor) {
    size_t size = tensor->bytes;
    add_sample(hash, tensor->data, size, 0);
    add_sample(hash, tensor->data, size, size / 2);
    add_sample(hash, tensor->data, size, size > SAMPLE_BYTES ? size - SAMPLE_BYTES : 0);
}

static void add_shard_samples(EVP_MD_CTX *hash, const struct checkpoint *checkpoint, int shard) {
    int n = 0;
    for (int i = 0; i < checkpoint->n_tensors; i++) n += checkpoint->tensors[i].shard == shard;
    int sampled = n < SAMPLED_TENSORS ? n : SAMPLED_TENSORS, index = 0, next = 0;
    for (int i = 0; i < checkpoint->n_tensors; i++) {
        if (checkpoint->tensors[i].shard != shard) continue;
        if (index++ != (int)((int64_t)next * n / sampled)) continue;
        add_tensor(hash, &checkpoint->tensors[i]);
        next++;
    }
}

/* A slice at a time, so that the progress line moves. */
static void add_file(EVP_MD_CTX *hash, const struct file_map *map, struct progress *progress, size_t before) {
    const size_t slice = 64 << 20;
    for (size_t at = 0; at < map->size; at += slice) {
        EVP_DigestUpdate(hash, map->data + at, map->size - at < slice ? map->size - at : slice);
        progress_update(progress, (double)(before + at));
    }
}

static void add_shards(EVP_MD_CTX *hash, const struct checkpoint *checkpoint, int full) {
    struct progress progress;
    size_t done = 0;
    progress_begin(&progress, "hashing", "GB", 1e-9, (double)checkpoint->total_bytes);
    for (int i = 0; i < checkpoint->n_shards; i++) {
        const struct shard *shard = &checkpoint->shards[i];
        if (full) {
            add_file(hash, &shard->map, &progress, done);
            done += shard->map.size;
        } else {
            EVP_DigestUpdate(hash, shard->map.data, shard->header_bytes);
            add_shard_samples(hash, checkpoint, i);
        }
    }
    progress_end(&progress);
}

int checkpoint_hash(const struct checkpoint *checkpoint, int full, char *text, struct mo_error *error) {
    char *config;
    size_t config_bytes;
    int code = checkpoint_read_file(checkpoint, "config.json", MAX_CONFIG_BYTES, &config, &config_bytes, error);
    if (code) return code;
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    if (!hash || !EVP_DigestInit_ex(hash, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(hash);
        free(config);
        return mo_error_set(error, MO_E_INTERNAL, "SHA-256 is not available");
    }
    EVP_DigestUpdate(hash, config, config_bytes);
    add_shards(hash, checkpoint, full);
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size;
    EVP_DigestFinal_ex(hash, digest, &size);
    text_print_hex(digest, size, text);
    EVP_MD_CTX_free(hash);
    free(config);
    return 0;
}
