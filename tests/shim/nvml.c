/* tests/shim/nvml.c - libnvidia-ml.so.1 for tests: one card, at the address that the shim's driver gives, whose meter goes on by 1.5 J at every
 * look. FAKE_NVML=none: a card without a meter. */
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **device);
int nvmlDeviceGetTotalEnergyConsumption(const void *device, unsigned long long *millijoules);

static char card;
static unsigned long long meter = 7000000;

API int nvmlInit_v2(void) {
    return OK;
}
API int nvmlShutdown(void) {
    return OK;
}
API int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **device) {
    *device = &card;
    return strcmp(pci, "00000001:01:01.0") ? NOT_FOUND : OK;
}
API int nvmlDeviceGetTotalEnergyConsumption(const void *device, unsigned long long *millijoules) {
    const char *kind = getenv("FAKE_NVML");
    if (device != &card || (kind && !strcmp(kind, "none"))) return NOT_SUPPORTED;
    *millijoules = meter += 1500;
    return OK;
}
