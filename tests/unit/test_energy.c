/* Meters of processors, played by files in a folder of their own. Those of cards: tests/test_gpu_tools.py. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/energy.h"

static char root[] = "/tmp/moebius-energy-XXXXXX";

static void put(const char *zone, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", root, zone);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/%s/%s", root, zone, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void put_zone(const char *zone, const char *name, const char *energy, const char *range) {
    put(zone, "name", name);
    put(zone, "energy_uj", energy);
    put(zone, "max_energy_range_uj", range);
}

static int set_up(void **state) {
    (void)state;
    strcpy(root, "/tmp/moebius-energy-XXXXXX");
    if (!mkdtemp(root)) return -1;
    setenv("MOEBIUS_POWERCAP", root, 1);
    put_zone("intel-rapl:0", "package-0\n", "1000000\n", "65532610987\n");
    put_zone("intel-rapl:0:0", "core\n", "500000\n", "65532610987\n");
    put_zone("intel-rapl:0:1", "dram\n", "65532000000\n", "65532610987\n");
    put_zone("intel-rapl:1", "psys\n", "9000000\n", "65532610987\n");
    put_zone("intel-rapl-mmio:0", "package-0\n", "1000000\n", "65532610987\n");
    return 0;
}

static int tear_down(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

static void test_packages_and_memory_count_once(void **state) {
    struct energy energy;
    struct mo_error error = {0};
    (void)state;
    energy_open(&energy, NULL, 0, &error);
    assert_int_equal(error.code, 0);
    assert_int_equal(energy.n_zones, 2);
    put("intel-rapl:0", "energy_uj", "3500000\n");
    put("intel-rapl:0:0", "energy_uj", "9500000\n");
    put("intel-rapl:1", "energy_uj", "99000000\n");
    struct joules used = energy_read(&energy);
    assert_true(fabs(used.processor - 2.5) < 1e-9);
    assert_true(isnan(used.card));
    energy_close(&energy);
}

static void test_a_meter_that_begins_anew(void **state) {
    struct energy energy;
    (void)state;
    energy_open(&energy, NULL, 0, NULL);
    put("intel-rapl:0:1", "energy_uj", "389013\n"); /* 65532610987 - 65532000000 + 389013 = 1000000 */
    assert_true(fabs(energy_read(&energy).processor - 1) < 1e-9);
    put("intel-rapl:0:1", "energy_uj", "1389013\n");
    assert_true(fabs(energy_read(&energy).processor - 2) < 1e-9);
    energy_close(&energy);
}

/* While it cannot be read nothing is counted, and nothing is lost. */
static void test_a_meter_that_fails_for_a_while(void **state) {
    struct energy energy;
    (void)state;
    energy_open(&energy, NULL, 0, NULL);
    put("intel-rapl:0", "energy_uj", "not a number\n");
    assert_true(energy_read(&energy).processor == 0);
    put("intel-rapl:0", "energy_uj", "5000000\n");
    assert_true(fabs(energy_read(&energy).processor - 4) < 1e-9);
    energy_close(&energy);
}

static void test_all_or_none(void **state) {
    struct energy energy;
    struct mo_error error = {0};
    char path[256];
    (void)state;
    snprintf(path, sizeof path, "%s/intel-rapl:0:1/energy_uj", root);
    assert_int_equal(unlink(path), 0);
    energy_open(&energy, NULL, 0, &error);
    assert_int_equal(energy.n_zones, 0);
    assert_int_equal(error.code, MO_E_IO);
    assert_non_null(strstr(error.message, "intel-rapl:0:1/energy_uj"));
    assert_true(isnan(energy_read(&energy).processor));
    energy_close(&energy);
}

static void test_no_meters(void **state) {
    struct energy energy;
    struct mo_error error = {0};
    (void)state;
    setenv("MOEBIUS_POWERCAP", "/nowhere", 1);
    energy_open(&energy, NULL, 0, &error);
    assert_int_equal(error.code, MO_E_NOT_FOUND);
    assert_true(isnan(energy_read(&energy).processor));
    energy_close(&energy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_packages_and_memory_count_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_meter_that_begins_anew, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_meter_that_fails_for_a_while, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_all_or_none, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_meters, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
