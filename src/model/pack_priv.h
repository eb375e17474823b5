/* model/pack_priv.h - shared by pack.c and pack_verify.c only: checksums as text. */
#ifndef MOEBIUS_MODEL_PACK_PRIV_H
#define MOEBIUS_MODEL_PACK_PRIV_H

#include <stddef.h>
#include <stdint.h>

enum { PACK_CHECKSUM_DIGITS = 16 };
#define PACK_NO_CHECKSUM "0000000000000000"

void pack_checksum_text(uint64_t checksum, char text[PACK_CHECKSUM_DIGITS + 1]);
/* Puts the checksum of the header's JSON (8 bytes of length before it) into its place; the place must be there. */
void pack_sign_header(char *header, size_t size);

#endif
