/* tests/fuzz/driver.c - runs a fuzz target without libFuzzer: all seeds as they are, then random changes of them, the
 * same for the same --seed. `make test` uses it for a short run under the sanitizers; `make fuzz` uses libFuzzer.
 *
 *   fuzz_config [--seed N] [--seconds S] [--runs N] FILE_OR_FOLDER...
 *
 * The run ends after --runs inputs (default 200000) or --seconds, whichever is first; only the number of inputs depends
 * on the machine, never their order. The input that kills the target is written beside the program, as TARGET.crash. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

enum { MAX_SEEDS = 4096, MAX_INPUT_BYTES = 1 << 16, HANG_S = 10 };

struct input {
    uint8_t *data; /* [size] */
    size_t size;
};

static struct input g_seeds[MAX_SEEDS];
static int g_n_seeds;
static uint64_t g_random;
static const char *g_target;
static struct input g_current; /* what the target is reading; data NULL: nothing */
static long g_run;

/* xorshift64*: good enough, and the same everywhere. */
static uint32_t random_u32(void) {
    g_random ^= g_random >> 12;
    g_random ^= g_random << 25;
    g_random ^= g_random >> 27;
    return (uint32_t)((g_random * 0x2545F4914F6CDD1Du) >> 32);
}

static size_t random_below(size_t n) {
    return n ? random_u32() % n : 0;
}

/* --- the input that kills -------------------------------------------------------------------------------------- */

static void save_current(void) {
    char path[4096];
    if (!g_current.data) return; /* at the end: a leak, which the sanitizer tells */
    snprintf(path, sizeof path, "%s.crash", g_target);
    FILE *file = fopen(path, "wb");
    if (file) {
        fwrite(g_current.data, 1, g_current.size, file);
        fclose(file);
    }
    fprintf(stderr, "%s: died on run %ld, input of %zu bytes written to %s\n", g_target, g_run, g_current.size, path);
}

static void on_signal(int number) {
    if (number == SIGALRM) fprintf(stderr, "%s: one input took more than %d s\n", g_target, HANG_S);
    save_current();
    signal(number == SIGALRM ? SIGABRT : number, SIG_DFL);
    raise(number == SIGALRM ? SIGABRT : number);
}

static void watch_for_death(void) {
    signal(SIGALRM, on_signal);
    signal(SIGABRT, on_signal);
    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(save_current);
    } else {
        signal(SIGSEGV, on_signal);
        signal(SIGFPE, on_signal);
    }
}

/* The target gets a block of exactly this size, so that a sanitizer sees one byte too far. */
static void run_one(const uint8_t *data, size_t size) {
    g_current.data = malloc(size ? size : 1);
    if (!g_current.data) abort();
    memcpy(g_current.data, data, size);
    g_current.size = size;
    alarm(HANG_S);
    LLVMFuzzerTestOneInput(g_current.data, size);
    free(g_current.data);
    g_current = (struct input){0};
    g_run++;
}

/* --- seeds ----------------------------------------------------------------------------------------------------- */

static void add_seed_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || g_n_seeds == MAX_SEEDS) {
        fprintf(stderr, "%s: cannot take the seed: %s\n", path, file ? "too many" : strerror(errno));
        exit(2);
    }
    struct input *seed = &g_seeds[g_n_seeds++];
    seed->data = malloc(MAX_INPUT_BYTES);
    if (!seed->data) abort();
    seed->size = fread(seed->data, 1, MAX_INPUT_BYTES, file);
    fclose(file);
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static void add_seeds(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0 || !S_ISDIR(status.st_mode)) {
        add_seed_file(path);
        return;
    }
    struct dirent **names;
    int n = scandir(path, &names, is_visible, alphasort);
    for (int i = 0; i < n; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name);
        add_seed_file(file);
        free(names[i]);
    }
    if (n >= 0) free(names);
}

/* --- changes --------------------------------------------------------------------------------------------------- */

/* Replaces input[at .. at + cut) by `with` [n], as far as it fits. */
static void splice(struct input *input, size_t at, size_t cut, const void *with, size_t n) {
    if (cut > input->size - at) cut = input->size - at;
    if (input->size - cut + n > MAX_INPUT_BYTES) return;
    memmove(input->data + at + n, input->data + at + cut, input->size - at - cut);
    if (n) memcpy(input->data + at, with, n);
    input->size = input->size - cut + n;
}

/* Words that parsers of JSON and of sizes stumble over. */
static const char *const g_words[] = {"0",
                                      "-1",
                                      "1",
                                      "255",
                                      "65536",
                                      "2147483647",
                                      "2147483648",
                                      "4294967296",
                                      "9223372036854775807",
                                      "9223372036854775808",
                                      "18446744073709551615",
                                      "1e308",
                                      "1e400",
                                      "-0.0",
                                      "0.5",
                                      "null",
                                      "true",
                                      "false",
                                      "{}",
                                      "[]",
                                      "\"\"",
                                      "[[[[[[[[",
                                      "{\"a\":",
                                      "}",
                                      "]",
                                      ",",
                                      ":",
                                      "\"",
                                      "\\u0000",
                                      "\\ud800",
                                      "\xc3\x28",
                                      "\xf0\x9f\x98\x80"};

/* A number in the text becomes another: how most damage to a JSON file that still parses looks. */
static void change_number(struct input *input) {
    size_t at = random_below(input->size), from = at;
    while (at < input->size && (input->data[at] < '0' || input->data[at] > '9')) at++;
    if (at == input->size) return;
    from = at;
    while (at < input->size && input->data[at] >= '0' && input->data[at] <= '9') at++;
    const char *word = g_words[random_below(sizeof g_words / sizeof *g_words)];
    splice(input, from, at - from, word, strlen(word));
}

static void copy_from_seed(struct input *input) {
    const struct input *other = &g_seeds[random_below((size_t)g_n_seeds)];
    size_t from = random_below(other->size), n = random_below(other->size - from);
    if (random_below(4)) n = n > 64 ? random_below(64) : n;
    splice(input, random_below(input->size), random_below(2) ? n : 0, other->data + from, n);
}

static void change_once(struct input *input) {
    const char *word = g_words[random_below(sizeof g_words / sizeof *g_words)];
    size_t at = random_below(input->size);
    uint8_t byte = (uint8_t)random_u32();
    switch (input->size ? random_below(8) : 1) {
    case 0:
        input->data[at] ^= (uint8_t)(1 << random_below(8));
        break;
    case 1:
        splice(input, at, 0, word, strlen(word));
        break;
    case 2:
        splice(input, at, strlen(word), word, strlen(word));
        break;
    case 3:
        splice(input, at, 1 + random_below(16), NULL, 0);
        break;
    case 4:
        splice(input, at, 1, &byte, 1);
        break;
    case 5:
        input->size = at;
        break;
    case 6:
        change_number(input);
        break;
    default:
        copy_from_seed(input);
        break;
    }
}

static void run_changed(void) {
    static uint8_t buffer[MAX_INPUT_BYTES];
    struct input input = {buffer, 0};
    const struct input *seed = &g_seeds[random_below((size_t)g_n_seeds)];
    memcpy(buffer, seed->data, seed->size);
    input.size = seed->size;
    for (size_t n = 1 + random_below(4); n > 0; n--) change_once(&input);
    run_one(input.data, input.size);
}

int main(int argc, char **argv) {
    double seconds = 1e9;
    long runs = 200000;
    g_target = argv[0];
    g_random = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            g_random = strtoull(argv[++i], NULL, 10) * 0x9E3779B97F4A7C15u + 1;
        } else if (!strcmp(argv[i], "--seconds") && i + 1 < argc) {
            seconds = strtod(argv[++i], NULL);
        } else if (!strcmp(argv[i], "--runs") && i + 1 < argc) {
            runs = strtol(argv[++i], NULL, 10);
        } else {
            add_seeds(argv[i]);
        }
    }
    if (g_n_seeds == 0) {
        fprintf(stderr, "%s: no seeds\n", g_target);
        return 2;
    }
    watch_for_death();
    time_t start = time(NULL);
    for (int i = 0; i < g_n_seeds; i++) run_one(g_seeds[i].data, g_seeds[i].size);
    while (g_run < runs && difftime(time(NULL), start) < seconds) run_changed();
    alarm(0);
    for (int i = 0; i < g_n_seeds; i++) free(g_seeds[i].data);
    printf("%s: %d seeds, %ld inputs\n1 passed, 0 failed\n", g_target, g_n_seeds, g_run);
    return 0;
}
