#include "base/energy.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"

static const double TICK_S = 10; /* the narrowest meters begin anew after 65 kJ: two minutes of a large machine */

/* ---- processors ---- */

static bool read_line(const char *folder, const char *name, char *line, int bytes) {
    char path[ENERGY_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool read = fgets(line, bytes, file);
    fclose(file);
    if (!read) errno = EIO;
    line[strcspn(line, "\n")] = '\0';
    return read;
}

static bool read_number(const char *folder, const char *name, uint64_t *value) {
    char line[32] = "", *end;
    if (!read_line(folder, name, line, sizeof line)) return false;
    errno = EINVAL;
    *value = strtoull(line, &end, 10);
    return end != line && !*end;
}

/* Packages, and memory, which is beside them; cores and graphics are parts of a package, and "psys" is all of it once more. */
static bool is_wanted(const char *folder) {
    char name[64] = "";
    return read_line(folder, "name", name, sizeof name) && (!strncmp(name, "package-", 8) || !strcmp(name, "dram"));
}

static int add_zone(struct energy *energy, const char *folder, struct mo_error *error) {
    struct energy_zone *zone = &energy->zones[energy->n_zones];
    snprintf(zone->path, sizeof zone->path, "%s", folder);
    if (!read_number(folder, "energy_uj", &zone->last) || !read_number(folder, "max_energy_range_uj", &zone->range))
        return mo_error_set(error, MO_E_IO, "%s/energy_uj: %s", folder, strerror(errno));
    energy->n_zones++;
    return 0;
}

/* The kernel links all zones, parts of zones too, side by side. Some of them would be a wrong sum: all or none. */
static void open_zones(struct energy *energy, struct mo_error *error) {
    const char *root = getenv("MOEBIUS_POWERCAP");
    if (!root) root = "/sys/class/powercap";
    DIR *folder = opendir(root);
    int code = 0;
    for (struct dirent *entry; folder && !code && (entry = readdir(folder));) {
        char path[ENERGY_PATH_BYTES];
        if (strncmp(entry->d_name, "intel-rapl:", 11)) continue; /* AMD's, too */
        int length = snprintf(path, sizeof path, "%s/%s", root, entry->d_name);
        if (length >= (int)sizeof path || energy->n_zones == ENERGY_ZONES_MAX || !is_wanted(path)) continue;
        code = add_zone(energy, path, error);
    }
    if (folder) closedir(folder);
    if (code) energy->n_zones = 0;
    if (!code && !energy->n_zones)
        mo_error_set(error, MO_E_NOT_FOUND, "%s: no meter of a processor here, as is usual in virtual machines", root);
}

static void read_zones(struct energy *energy) {
    energy->read_s = clock_now_s();
    for (int i = 0; i < energy->n_zones; i++) {
        struct energy_zone *zone = &energy->zones[i];
        uint64_t now;
        if (!read_number(zone->path, "energy_uj", &now)) continue; /* what is missed comes with the next */
        uint64_t used = now >= zone->last ? now - zone->last : zone->range - zone->last + now;
        energy->processor_j += (double)used * 1e-6;
        zone->last = now;
    }
}

/* ---- cards ---- */

struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*find)(const char *pci, void **device);
    int (*energy)(void *device, unsigned long long *millijoules);
};

/* dlsym gives an object pointer; POSIX promises that its bytes are the function's address. */
static bool find_symbol(const struct nvml *nvml, const char *symbol, void *field) {
    void *address = dlsym(nvml->library, symbol);
    memcpy(field, &address, sizeof address);
    return address;
}

static bool load_nvml(struct nvml *nvml) {
    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    return nvml->library && find_symbol(nvml, "nvmlInit_v2", &nvml->init) &&
           find_symbol(nvml, "nvmlShutdown", &nvml->shutdown) &&
           find_symbol(nvml, "nvmlDeviceGetHandleByPciBusId_v2", &nvml->find) &&
           find_symbol(nvml, "nvmlDeviceGetTotalEnergyConsumption", &nvml->energy) && !nvml->init();
}

static double card_joules(const struct energy *energy, int card) {
    unsigned long long millijoules;
    return energy->nvml->energy(energy->cards[card], &millijoules) ? NAN : (double)millijoules * 1e-3;
}

static void close_nvml(struct energy *energy, bool started) {
    if (started) energy->nvml->shutdown();
    if (energy->nvml->library) dlclose(energy->nvml->library);
    free(energy->nvml);
    energy->nvml = NULL;
    energy->n_cards = 0;
}

static void open_cards(struct energy *energy, const char (*cards)[24], int n, struct mo_error *error) {
    if (!n || n > ENERGY_CARDS_MAX || !(energy->nvml = calloc(1, sizeof *energy->nvml))) return;
    if (!load_nvml(energy->nvml)) {
        mo_error_set(error, MO_E_NOT_FOUND, "libnvidia-ml.so.1 is not there, or does not start");
        close_nvml(energy, false);
        return;
    }
    for (; energy->n_cards < n; energy->n_cards++) {
        const int i = energy->n_cards;
        bool found = !energy->nvml->find(cards[i], &energy->cards[i]);
        energy->card_start_j[i] = found ? card_joules(energy, i) : NAN;
        if (isnan(energy->card_start_j[i])) break;
    }
    if (energy->n_cards == n) return;
    mo_error_set(error, MO_E_UNSUPPORTED, "the card at %s has no meter", cards[energy->n_cards]);
    close_nvml(energy, true);
}

static double read_cards(const struct energy *energy) {
    double sum = 0;
    for (int i = 0; i < energy->n_cards; i++) sum += card_joules(energy, i) - energy->card_start_j[i];
    return energy->n_cards ? sum : NAN;
}

/* ---- both ---- */

void energy_open(struct energy *energy, const char (*cards)[24], int n_cards, struct mo_error *error) {
    *energy = (struct energy){.n_asked = n_cards};
    open_cards(energy, cards, n_cards, error);
    open_zones(energy, error);
    energy->read_s = clock_now_s();
}

void energy_close(struct energy *energy) {
    if (energy->nvml) close_nvml(energy, true);
    *energy = (struct energy){0};
}

struct joules energy_read(struct energy *energy) {
    read_zones(energy);
    return (struct joules){energy->n_zones ? energy->processor_j : NAN, read_cards(energy)};
}

void energy_tick(struct energy *energy) {
    if (energy->n_zones && clock_now_s() - energy->read_s > TICK_S) read_zones(energy);
}
