/* model/cache_row.h - what one token takes of the cache in one layer: the row of its latent and, where there is an indexer (V3.2), its
 * index key. A page has the rows of its tokens, and behind them their keys.
 *   F32, BF16  row [kv_lora + rope]; key [index_dim]
 *   FP8        row e4m3 [kv_lora] | fp32 scale per KV_SCALE_GROUP of them | rope bf16, padded to 16 bytes. The rope part stays
 *              in bf16: its error would turn with the position.
 *              key e4m3 [index_dim] | fp32 scale per KV_SCALE_GROUP; the scales of a page lie behind its keys. */
#ifndef MOEBIUS_MODEL_CACHE_ROW_H
#define MOEBIUS_MODEL_CACHE_ROW_H

#include <stddef.h>

enum kv_format { KV_F32, KV_BF16, KV_FP8, KV_FORMATS };
enum { KV_SCALE_GROUP = 128, KV_ROW_ALIGN = 16 };

static inline size_t cache_row_bytes(int kv_lora, int rope_dim, enum kv_format kv) {
    size_t lora = (size_t)kv_lora, rope = (size_t)rope_dim;
    if (kv != KV_FP8) return (lora + rope) * (kv == KV_F32 ? 4 : 2);
    size_t bytes = lora + (lora + KV_SCALE_GROUP - 1) / KV_SCALE_GROUP * sizeof(float) + rope * 2;
    return (bytes + KV_ROW_ALIGN - 1) / KV_ROW_ALIGN * KV_ROW_ALIGN;
}

static inline size_t cache_key_bytes(int index_dim, enum kv_format kv) {
    size_t dim = (size_t)index_dim;
    if (kv != KV_FP8) return dim * (kv == KV_F32 ? 4 : 2);
    return dim + (dim + KV_SCALE_GROUP - 1) / KV_SCALE_GROUP * sizeof(float);
}

#endif
