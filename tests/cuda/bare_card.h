/* tests/cuda/bare_card.h - a card with kernels, and no model. */
#ifndef MOEBIUS_TESTS_CUDA_BARE_CARD_H
#define MOEBIUS_TESTS_CUDA_BARE_CARD_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "backend/cuda/cuda.h"

static inline void bare_card_open(struct cuda *card, const char *stage) {
    struct mo_error error = {0};
    cuda_memory_is_shared = true;
    if (cuda_driver_open(&card->driver, &error) || cuda_card_open(&card->driver, 0, &card->card, &error) ||
        cuda_check(&card->driver, card->driver.stream_create(&card->stream, 1), &error, "no stream") ||
        cuda_load_kernels(card, &error)) {
        fail_msg("%s", error.message);
    }
    card->stage = stage;
}

static inline void *bare_card_memory(struct cuda *card, size_t bytes) {
    cuda_address at;
    if (card->driver.memory_take(&at, bytes)) fail_msg("no memory");
    return (void *)(uintptr_t)at;
}

#endif
