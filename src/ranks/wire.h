/* ranks/wire.h - what the ranks say to each other. All of them are x86-64: structs travel as they are.
 *
 *   rank r -> 0   HELLO (or FAILED): what it has opened
 *   0 -> rank r   PLAN: who computes what
 *   rank r -> 0   ALIVE ... while it brings its experts into memory, then READY
 *   0 -> rank r   REQUEST, answered by REPLY (or FAILED), for every layer
 *   0 -> rank r   CLOSE: the engine is closed; another may be opened (`eval` has several)
 *   0 -> rank r   END, answered by BYE: the program is over; may come at any time
 *
 * Bytes of a token and layer: a rank gets the normed row once, if any of its experts is wanted (4 hidden), and gives back the output
 * of each expert as it is (4 hidden each, and 8 for the pair). With V3 (hidden 7168, top-8) that is 28 KB to each rank and 8 x 28 KB =
 * 229 KB back, less what rank 0 computes itself: half of it with two ranks. Over the 58 layers with experts, two ranks: 8.3 MB a
 * token, 7 ms of a 10 Gbit/s line. Sums of a rank's experts would be up to 8 times smaller and BF16 outputs half as large, but either
 * would add in another order or round: an answer would depend on how many machines there are (DESIGN.md, 3). Inputs could be sent in
 * 8 bits where the experts take them so, with the same bits; they are the smaller part.
 * Includes: ranks. */
#ifndef MOEBIUS_RANKS_WIRE_H
#define MOEBIUS_RANKS_WIRE_H

#include <stdint.h>
#include "ranks/transport.h"

enum { WIRE_VERSION = 3, WIRE_HOST = 64, WIRE_MAX_EXPERTS = 4096 /* as config.c allows */ };
static const uint32_t WIRE_MAGIC = 0x4e524f4d; /* "MORN" */

enum wire_kind {
    WIRE_HELLO = 1,
    WIRE_PLAN,
    WIRE_ALIVE,
    WIRE_READY,
    WIRE_FAILED,
    WIRE_REQUEST,
    WIRE_REPLY,
    WIRE_CLOSE,
    WIRE_END,
    WIRE_BYE,
};

struct wire_head {
    uint32_t magic;
    uint32_t kind; /* enum wire_kind */
};

/* The first three fields never move, so that any two versions can tell that they differ. */
struct wire_hello {
    struct wire_head head;
    int32_t wire_version;
    char version[32]; /* of the program */
    char host[WIRE_HOST];
    char hash[72];                                   /* of the model: checkpoint_hash */
    char bits[16];                                   /* whose its experts have: cpu_level_bits */
    int32_t threads, processors, machine_processors; /* it computes with, it may use, there are */
    double memory_bytes;                             /* that it may take */
};

struct wire_plan {
    struct wire_head head;
    int32_t max_rows, piece_pairs, compute;
    uint8_t owner[WIRE_MAX_EXPERTS], on_host[RANKS_MAX]; /* as in struct ranks_split */
};

struct wire_failed {
    struct wire_head head;
    int32_t code;
    char host[WIRE_HOST];
    char text[1024];
};

/* Followed by int32 row [n_pairs], int32 expert [n_pairs], ascending; then, at a multiple of 64, float x [n_rows][hidden]. */
struct wire_request {
    struct wire_head head;
    int32_t layer, n_rows, n_pairs;
    uint32_t serial;
    uint8_t padding[40];
};

/* Followed by float y [n_pairs][hidden]. */
struct wire_reply {
    struct wire_head head;
    int32_t n_pairs;
    uint32_t serial;
    uint8_t padding[48];
};

_Static_assert(sizeof(struct wire_request) == 64 && sizeof(struct wire_reply) == 64, "what follows is aligned");

#endif
