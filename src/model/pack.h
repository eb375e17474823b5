/* model/pack.h - one file that holds a whole model: a safetensors file with config.json and where the weights come from in
 * its __metadata__, the tokenizer's files as tensors of bytes, and every tensor at a multiple of 4 KiB, so that a mapped
 * file is ready at once. Safetensors allows no holes: tensors named moebius.pad.N fill them.
 *
 * __metadata__  moebius.format       PACK_FORMAT: which version of all this
 *               moebius.config.json  the model's, with quantization_config {"quant_method": "moebius", ...}
 *               moebius.checksums    XXH3 (64 bits, 16 hex digits) of each tensor, in the order of their data
 *               moebius.checksum     XXH3 of the header's JSON with these 16 digits as 0
 *               others               said by who wrote it: version, options, source
 *
 * A file is written as FILE.partial, which is locked and begins with zeros until everything else is on the disk; then it gets
 * its header and its name. Whatever interrupts that leaves no FILE. One thread. Includes: base, model. */
#ifndef MOEBIUS_MODEL_PACK_H
#define MOEBIUS_MODEL_PACK_H

#include "model/checkpoint.h"

#define PACK_FORMAT "1"
#define PACK_PREFIX "moebius."
#define PACK_FILE_PREFIX PACK_PREFIX "file."
#define PACK_PAD_PREFIX PACK_PREFIX "pad."
#define PACK_KEY_FORMAT PACK_PREFIX "format"
#define PACK_KEY_CONFIG PACK_PREFIX "config.json"
#define PACK_KEY_CHECKSUMS PACK_PREFIX "checksums"
#define PACK_KEY_CHECKSUM PACK_PREFIX "checksum"

enum { PACK_ALIGN = 4096 };

struct pack;

/* First the metadata and all tensors are named, in the order of their data ... */
int pack_create(struct pack **pack, const char *path, struct mo_error *error);
int pack_set(struct pack *pack, const char *key, const char *value, struct mo_error *error);
int pack_add(struct pack *pack, const char *name, enum dtype dtype, const int64_t *shape, int n_dims,
             struct mo_error *error);
/* ... then the file is begun (a disk that is too small is refused here), and the data of one tensor after the other
 * written; padding goes in between by itself. */
int pack_begin(struct pack *pack, struct mo_error *error);
int pack_write(struct pack *pack, const void *data, size_t size, struct mo_error *error);
int pack_finish(struct pack *pack, struct mo_error *error);
int64_t pack_file_bytes(const struct pack *pack);
void pack_close(struct pack *pack); /* what is not finished is removed; accepts NULL */

/* Is the header what was written? */
int pack_check_header(const uint8_t *data, size_t header_bytes, const char *path, struct mo_error *error);
/* Reads everything: checksums, and that every scale of INT4, INT8 and FP8 is finite. */
int pack_verify(const struct checkpoint *checkpoint, struct mo_error *error);

#endif
