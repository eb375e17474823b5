#include "cmd/bench/energy.h"

#include <math.h>
#include <stdio.h>

void bench_energy_open(struct energy *energy, const struct engine *engine, const struct bench_gpu *gpu) {
    const bool is_alone = gpu && engine->n_parts <= 1;
    energy_open(energy, is_alone ? &gpu->card.pci : NULL, is_alone, NULL);
    if (gpu && !is_alone) energy->n_asked = engine->n_parts; /* no figure, rather than one that leaves cards out */
}

struct joules bench_energy_since(struct energy *energy, struct joules before, double tokens) {
    struct joules now = energy_read(energy);
    return (struct joules){(now.processor - before.processor) / tokens, (now.card - before.card) / tokens};
}

/* Is there a meter of all that compute? */
static bool is_whole(const struct energy *energy) {
    return energy->n_asked ? energy->n_cards == energy->n_asked : energy->n_zones > 0;
}

static double sum(const struct energy *energy, struct joules joules) {
    if (!is_whole(energy)) return NAN;
    return (isnan(joules.processor) ? 0 : joules.processor) + (isnan(joules.card) ? 0 : joules.card);
}

void bench_energy_say(const struct energy *energy, struct joules joules) {
    double all = sum(energy, joules);
    if (isnan(all)) return;
    printf("       energy: %.3g J a token", all);
    if (!isnan(joules.card)) printf(", %.3g of them of the card", joules.card);
    printf("%s\n", isnan(joules.processor) ? "; the processor has no meter" : "");
}

static json_t *known(double joules) {
    return isnan(joules) ? json_null() : json_real(joules);
}

json_t *bench_energy_json(const struct energy *energy, struct joules joules) {
    return json_pack("{so so so}", "total", known(sum(energy, joules)), "processor", known(joules.processor), "card",
                     known(joules.card));
}
