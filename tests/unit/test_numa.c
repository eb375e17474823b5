/* Memory nodes, played by files in a folder of their own. How pages and threads really lie: tools/numa-vm.sh. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/affinity.h"
#include "base/numa.h"
#include "base/numa_pages.h"

static char root[] = "/tmp/moebius-nodes-XXXXXX";
static int cpus[CPU_SETSIZE], n_cpus; /* that this process may use */

static void put(int id, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/node%d", root, id);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/node%d/%s", root, id, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void put_node(int id, const char *list, int memory_kib) {
    char text[96];
    snprintf(text, sizeof text, "Node %d MemTotal:       %d kB\nNode %d MemFree:        1 kB\n", id, memory_kib, id);
    put(id, "cpulist", list);
    put(id, "meminfo", text);
}

/* Two nodes, of one of our processors each. */
static void put_two(void) {
    char list[32];
    for (int i = 0; i < 2; i++) {
        snprintf(list, sizeof list, "%d\n", cpus[i]);
        put_node(i, list, 1000);
    }
}

static bool is_first_of_core(int cpu) {
    char path[96];
    int first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "r");
    if (!file) return true;
    if (fscanf(file, "%d", &first) != 1) first = cpu;
    fclose(file);
    return first == cpu;
}

/* From here on this process has one processor of each core, so that the order of processors is that of nodes alone. */
static int set_up(void **state) {
    cpu_set_t ours;
    (void)state;
    strcpy(root, "/tmp/moebius-nodes-XXXXXX");
    if (!mkdtemp(root) || sched_getaffinity(0, sizeof ours, &ours)) return -1;
    setenv("MOEBIUS_NODES", root, 1);
    n_cpus = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &ours) && !is_first_of_core(cpu)) CPU_CLR(cpu, &ours);
        if (CPU_ISSET(cpu, &ours)) cpus[n_cpus++] = cpu;
    }
    return sched_setaffinity(0, sizeof ours, &ours);
}

static int tear_down(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

static void test_nodes_are_read(void **state) {
    char list[64];
    struct numa numa;
    (void)state;
    snprintf(list, sizeof list, "%d-%d,900-1100,5000\n", cpus[0], cpus[n_cpus - 1]);
    put_node(0, "\n", 2000);         /* memory alone */
    put_node(2, list, 1000);         /* more processors than there are, and than can be counted */
    put_node(7, "1000-1020\n", 500); /* none of ours */
    put(9, "cpulist", "many\n");     /* nor is this one; and nobody knows its memory */
    numa_look(&numa);
    assert_int_equal(numa.n, 4);
    assert_int_equal(numa.nodes[0].n_cpus, 0);
    assert_int_equal(numa.nodes[1].id, 2);
    assert_int_equal(numa.nodes[1].n_cpus, n_cpus);
    assert_true(numa.nodes[1].memory_bytes == 1000 * 1024);
    assert_int_equal(numa.nodes[2].n_cpus, 0);
    assert_int_equal(numa.nodes[3].n_cpus, 0);
    assert_true(numa.nodes[3].memory_bytes == 0);
    assert_int_equal(numa_usable(&numa), 1 << 2);
    put_node(2, list, 0); /* processors alone */
    numa_look(&numa);
    assert_int_equal(numa_usable(&numa), 0);
    setenv("MOEBIUS_NODES", "/nowhere", 1);
    numa_look(&numa);
    assert_int_equal(numa.n, 0);
}

/* "3,1,2" becomes our processors of these numbers. */
static void put_ours(int id, const char *which) {
    char list[128] = "";
    size_t n = 0;
    for (; *which; which++) {
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%d", n ? "," : "", cpus[*which - '0']);
    }
    put_node(id, list, 1000);
}

/* Nodes take turns, and one that is used up is left out. */
static void test_threads_go_over_nodes_by_turns(void **state) {
    int order[CPU_SETSIZE];
    cpu_set_t places[CPU_SETSIZE];
    (void)state;
    if (n_cpus < 2) skip();
    put_ours(0, "1");
    put_ours(1, "0");
    assert_int_equal(affinity_list(order, CPU_SETSIZE), n_cpus);
    assert_int_equal(order[0], cpus[1]);
    assert_int_equal(order[1], cpus[0]);
    for (int i = 2; i < n_cpus; i++)
        assert_true(order[i] != order[0] && order[i] != order[1]); /* of no node that is known */
    assert_int_equal(affinity_list(order, 1), 1);
    assert_false(affinity_places(AFFINITY_NODE, places, n_cpus + 1));
    assert_false(affinity_places(AFFINITY_ANY, places, 1));
    assert_true(affinity_places(AFFINITY_PROCESSOR, places, 2));
    assert_true(CPU_COUNT(&places[0]) == 1 && CPU_ISSET(cpus[1], &places[0]));
    put_ours(1, "01"); /* one that two nodes claim is the first one's */
    assert_true(affinity_places(AFFINITY_NODE, places, 2));
    assert_true(CPU_COUNT(&places[0]) == 1 && CPU_ISSET(cpus[1], &places[0]));
    assert_true(CPU_COUNT(&places[1]) == 1 && CPU_ISSET(cpus[0], &places[1]));
    put_node(0, "\n", 1000);
    assert_true(affinity_places(AFFINITY_NODE, places, 2));
    assert_true(CPU_COUNT(&places[0]) == 2 && CPU_EQUAL(&places[0], &places[1]));
}

/* In a process of its own, as policies stay. The kernel has one node or more: of the played ones it takes those that it has, and the
 * first there always is. */
static int settle(enum numa_use wished, bool bind_first, struct numa_choice *choice, int *n_ours) {
    struct {
        int n_ours;
        struct numa_choice choice;
    } told;
    int pipes[2], status;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    if (!child) {
        const unsigned long first = 1;
        cpu_set_t ours;
        if (bind_first && syscall(SYS_set_mempolicy, 2, &first, 2)) _exit(77);
        numa_settle(wished, &told.choice);
        sched_getaffinity(0, sizeof ours, &ours);
        told.n_ours = CPU_COUNT(&ours);
        _exit(write(pipes[1], &told, sizeof told) != sizeof told);
    }
    waitpid(child, &status, 0);
    close(pipes[1]);
    if (WEXITSTATUS(status) == 77) skip();
    assert_int_equal(status, 0);
    assert_int_equal(read(pipes[0], &told, sizeof told), sizeof told);
    close(pipes[0]);
    *choice = told.choice;
    *n_ours = told.n_ours;
    return told.choice.why_not.code;
}

static void test_what_is_chosen(void **state) {
    struct numa_choice choice;
    int n;
    (void)state;
    put_node(0, "0-1023\n", 1000); /* one node: nothing to choose, whatever was wished */
    for (int wished = NUMA_AUTO; wished <= NUMA_AS_IT_IS; wished++) {
        assert_int_equal(settle((enum numa_use)wished, false, &choice, &n), 0);
        assert_true(choice.use == NUMA_AS_IT_IS && !choice.has_several && choice.nodes == 0 && n == n_cpus);
    }
    if (n_cpus < 2) skip();
    put_two();
    int code = settle(NUMA_AUTO, false, &choice, &n);
    if (code) { /* a container that forbids it: nothing has changed */
        assert_int_equal(code, MO_E_UNSUPPORTED);
        assert_true(choice.use == NUMA_AS_IT_IS && choice.nodes == 0);
        skip();
    }
    assert_true(choice.use == NUMA_DISTRIBUTE && choice.nodes == 3 && choice.has_several && n == n_cpus);
    assert_true(choice.memory_bytes == 2 * 1000 * 1024);
    assert_int_equal(settle(NUMA_AS_IT_IS, false, &choice, &n), 0);
    assert_true(choice.use == NUMA_AS_IT_IS && choice.nodes == 0 && choice.has_several && n == n_cpus);
    assert_int_equal(settle(NUMA_AUTO, true, &choice, &n), 0); /* numactl --membind=0 */
    assert_true(choice.use == NUMA_AS_IT_IS && choice.nodes == 0 && choice.is_bound);
    assert_int_equal(settle(NUMA_DISTRIBUTE, true, &choice, &n), 0);
    assert_true(choice.use == NUMA_DISTRIBUTE && choice.nodes == 3);
    put_node(0, "0-1023\n", 1000); /* the caller runs there */
    put_node(1, "0-1023\n", 1000);
    assert_int_equal(settle(NUMA_ISOLATE, false, &choice, &n), 0);
    assert_true(choice.use == NUMA_ISOLATE && choice.nodes == 1 && choice.memory_bytes == 1000 * 1024);
}

/* As mpirun --bind-to numa has it: one of several nodes is ours, and pages should be there. */
static void test_bound_to_one_of_several(void **state) {
    struct numa_choice choice;
    int n;
    (void)state;
    put_node(0, "1000-1001\n", 1000);
    put_node(1, "0-999\n", 500);
    assert_int_equal(settle(NUMA_AUTO, false, &choice, &n), 0);
    assert_true(choice.use == NUMA_AS_IT_IS && choice.nodes == 2 && choice.memory_bytes == 500 * 1024);
}

static void test_as_few_pages_as_possible_move(void **state) {
    const int all_on_one[] = {0, 0, 0, 0, 0, 0, 0, 0}, even[] = {0, 1, 1, 0, 1, 0, 0, 1},
              others[] = {5, -2, 0, 63, 64, 1};
    int to[8], on[2] = {0};
    (void)state;
    assert_int_equal(numa_pages_even(3, even, to, 8), 0);
    for (int i = 0; i < 8; i++) assert_int_equal(to[i], -1);
    assert_int_equal(numa_pages_even(3, all_on_one, to, 8), 4);
    for (int i = 0; i < 8; i++) on[to[i] < 0 ? 0 : to[i]]++;
    assert_true(on[0] == 4 && on[1] == 4);
    assert_int_equal(numa_pages_even(3, all_on_one, to, 7), 3);
    assert_int_equal(numa_pages_even(3, all_on_one, to, 1), 0);
    assert_int_equal(numa_pages_even(2, all_on_one, to, 8), 8);
    for (int i = 0; i < 8; i++) assert_int_equal(to[i], 1);
    assert_int_equal(numa_pages_even(3, others, to, 6),
                     2); /* to and fro: nodes that are not meant, and pages that are nowhere */
    assert_true(to[0] >= 0 && to[0] < 2 && to[3] == 1 - to[0]);
    assert_true(to[1] < 0 && to[2] < 0 && to[4] < 0 && to[5] < 0);
    assert_int_equal(numa_pages_even(0, all_on_one, to, 8), 0);
}

/* Of a file's pages those that are in memory count, wherever in a page a matrix begins. */
static void test_pages_of_a_file(void **state) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = 5000 * page;
    struct numa_tally tally;
    char path[64];
    (void)state;
    snprintf(path, sizeof path, "%s/file", root);
    FILE *file = fopen(path, "w+");
    assert_non_null(file);
    assert_int_equal(ftruncate(fileno(file), (off_t)bytes), 0);
    uint8_t *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    assert_true(data != MAP_FAILED);
    memset(data, 1, bytes);
    for (int moves = 0; moves < 2; moves++) {
        struct numa_pages *pages = numa_pages_open(UINT64_C(1) << 63, moves); /* a node that is not there */
        assert_non_null(pages);
        numa_pages_add(pages, data + 100, 4500 * page);
        numa_pages_add(pages, data + 4500 * page + 200, 10); /* on a page that was counted */
        numa_pages_add(pages, data + 4600 * page, 1);
        tally = numa_pages_close(pages);
        if (!tally.seen) skip(); /* a container that forbids to ask */
        assert_int_equal(tally.seen, 4502);
        assert_int_equal(tally.wrong, 4502);
        assert_int_equal(tally.moved, 0);
    }
    munmap(data, bytes);
    fclose(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nodes_are_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_threads_go_over_nodes_by_turns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_is_chosen, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bound_to_one_of_several, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_as_few_pages_as_possible_move, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_pages_of_a_file, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
