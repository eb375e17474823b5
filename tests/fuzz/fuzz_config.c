/* tests/fuzz/fuzz_config.c - config.json is refused with a message or gives a description that the rest of the program
 * can compute with. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void turn(const struct model *model, const struct rope *rope) {
    double *frequencies = malloc(sizeof(double) * (size_t)(model->rope_dim / 2));
    if (!frequencies) abort();
    model_rope_frequencies(model, rope, frequencies);
    for (int i = 0; i < model->rope_dim / 2; i++) {
        if (!isfinite(frequencies[i])) abort();
    }
    free(frequencies);
}

static void use(const struct model *model) {
    struct model_params params;
    model_count_params(model, &params);
    if (params.total < params.active || params.active < 0) abort();
    if (!isfinite(model_softmax_scale(model)) || !isfinite(model_rope_magnitude(model))) abort();
    if (model->rope_dim < 2 || model->rope_dim % 2 != 0) abort();
    turn(model, &model->rope);
    if (model_is_hybrid(model)) turn(model, &model->hybrid.rope);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct model model;
    struct mo_error error = {0};
    memset(&model, 0, sizeof model);
    int code = model_parse(&model, (const char *)data, size, "config.json", &error);
    if (code == 0) use(&model);
    if (code != 0 && (error.code != code || error.message[0] == 0)) abort();
    return 0;
}
