/* cmd/bench/energy.h - what a token takes, where this machine has meters (base/energy.h): all of the processor and of the card that
 * compute, from the first to the last of what is timed, so idle parts and other programs count. */
#ifndef MOEBIUS_CMD_BENCH_ENERGY_H
#define MOEBIUS_CMD_BENCH_ENERGY_H

#include <jansson.h>
#include "base/energy.h"
#include "cmd/bench/gpu.h"
#include "engine/engine.h"

/* `gpu`: NULL on a CPU. Where several cards compute there is no figure: only the first is known here. */
void bench_energy_open(struct energy *energy, const struct engine *engine, const struct bench_gpu *gpu);
/* A token of so many, since `before` was read. */
struct joules bench_energy_since(struct energy *energy, struct joules before, double tokens);

/* A line for people, if whoever computes has meters. */
void bench_energy_say(const struct energy *energy, struct joules joules);
/* {"total", "processor", "card"}, null each where it is not known: the total, where whoever computes has no meter. */
json_t *bench_energy_json(const struct energy *energy, struct joules joules);

#endif
