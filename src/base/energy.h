/* base/energy.h - what this machine takes, by meters that count: of processors and their memory (RAPL, Linux' powercap: zones
 * "package-N" and "dram"; Documentation/power/powercap/powercap.rst), of cards (NVML's nvmlDeviceGetTotalEnergyConsumption, Volta and
 * newer; libnvidia-ml.so.1 is opened by name). Machines without any are common: virtual ones, and those whose powercap only root
 * reads. What counts is the whole of a processor or a card, idle parts and other programs included. One thread. Includes: error.h. */
#ifndef MOEBIUS_BASE_ENERGY_H
#define MOEBIUS_BASE_ENERGY_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"

enum { ENERGY_ZONES_MAX = 32, ENERGY_CARDS_MAX = 16, ENERGY_PATH_BYTES = 320 };

/* One meter of powercap: counts micro-joules, and begins anew after `range`. */
struct energy_zone {
    char path[ENERGY_PATH_BYTES];
    uint64_t last, range;
};

struct nvml;
struct energy {
    struct energy_zone zones[ENERGY_ZONES_MAX];
    int n_zones, n_cards;
    int n_asked;                   /* cards that should have meters */
    void *cards[ENERGY_CARDS_MAX]; /* nvmlDevice_t */
    double card_start_j[ENERGY_CARDS_MAX];
    struct nvml *nvml;
    double processor_j; /* since it was opened */
    double read_s;      /* when the zones were read last */
};

struct joules {
    double processor, card; /* NAN: no meter */
};

/* Opens the meters that can be read; `error` (NULL: nobody asks) says why those of the processor, or else of the cards, cannot. `cards`
 * are PCI addresses ("00000000:01:00.0"): all of them have meters, or none is read. MOEBIUS_POWERCAP names another folder than
 * /sys/class/powercap. */
void energy_open(struct energy *energy, const char (*cards)[24], int n_cards, struct mo_error *error);
void energy_close(struct energy *energy); /* accepts a zeroed one */

/* Since energy_open. */
struct joules energy_read(struct energy *energy);
/* To be called every minute or more often while nothing else is: a meter begins anew after some minutes. Cheap. */
void energy_tick(struct energy *energy);

#endif
