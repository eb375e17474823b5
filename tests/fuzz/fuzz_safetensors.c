/* tests/fuzz/fuzz_safetensors.c - a safetensors file is refused with a message, or every tensor it lists lies inside it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "model/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_tensor(const struct tensor *tensor, const uint8_t *data, size_t size, size_t header_bytes) {
    const uint8_t *from = tensor->data;
    if (!tensor->name || tensor->n_dims < 0 || tensor->n_dims > TENSOR_MAX_DIMS) abort();
    if (tensor->bytes > size || (size_t)dtype_bytes_of(tensor->dtype, tensor->elements) != tensor->bytes) abort();
    if (tensor->bytes && (from < data + header_bytes || from + tensor->bytes > data + size)) abort();
    volatile uint8_t sink = 0;
    for (size_t i = 0; i < tensor->bytes; i++) sink = (uint8_t)(sink ^ from[i]);
    char text[TENSOR_SHAPE_BYTES];
    if (strlen(tensor_shape_text(tensor, text)) >= sizeof text) abort();
}

static void parse(const uint8_t *data, size_t size) {
    struct arena *arena = arena_create();
    struct mo_error error = {0};
    struct safetensors out;
    if (!arena) abort();
    int code = safetensors_parse(data, size, "fuzz.safetensors", 0, arena, &out, &error);
    if (code == 0 && (out.header_bytes < 8 || out.header_bytes > size)) abort();
    for (int i = 0; code == 0 && i < out.n_tensors; i++) check_tensor(&out.tensors[i], data, size, out.header_bytes);
    if (code != 0 && (error.code != code || error.message[0] == 0)) abort();
    arena_destroy(arena);
}

/* As it is, and with the length of the header put right: otherwise almost no changed file would reach the JSON. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    parse(data, size);
    const uint8_t *end = size > 8 ? memrchr(data + 8, '}', size - 8) : NULL;
    if (!end) return 0;
    uint8_t *copy = malloc(size);
    if (!copy) abort();
    memcpy(copy, data, size);
    uint64_t header_bytes = (uint64_t)(end - data) - 7;
    for (int i = 0; i < 8; i++) copy[i] = (uint8_t)(header_bytes >> (8 * i));
    parse(copy, size);
    free(copy);
    return 0;
}
