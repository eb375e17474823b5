/* The tiny golden models on a card, without Python: each through `moebius logits`, against DeepSeek's reference code run in
 * float32 (tests/golden), as test_cuda.py judges it; and whether chunks and recorded steps give the same bits.
 *
 *   golden MOEBIUS MODELS [--report FILE] [--sets NAME,NAME] [--cases p17,p200]
 *
 * Prints a line a check and `N passed, N failed`. */
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SETS_MAX = 32, WORDS_MAX = 32, TOKENS_CHUNKED = 80, GREEDY = 12, EXPLAINED_MOST = 4 };
static const double AGREE_LEAST = 0.8;

/* How far logits may be off: on average, and at most. Where an indexer chooses among tokens that score alike, bf16 activations may choose
 * others than float32's. */
struct bars {
    double mean, max;
};
static const struct bars NEAR = {0.05, 0.2}, CHOSEN = {0.25, 1};

struct golden {
    const char *moebius, *models, *report, *sets, *cases;
    char folder[64]; /* for files */
    json_t *lines;
    int passed, failed, explained;
};

/* A set and one of its cases. */
struct subject {
    const char *set;
    char path[4096];
    json_t *manifest, *item;
};

static bool is_listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *at = list; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : "") {
        if (!strncmp(at, name, n) && (at[n] == ',' || !at[n])) return true;
    }
    return !list;
}

/* After every check, and beside and renamed: a visit's time limit may end this program at any moment. */
static void save(const struct golden *g) {
    char beside[4400];
    if (!g->report) return;
    snprintf(beside, sizeof beside, "%.4300s.part", g->report);
    if (json_dump_file(g->lines, beside, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) || rename(beside, g->report)) {
        perror(g->report);
    }
}

static void note(struct golden *g, const struct subject *s, const char *check, bool ok, json_t *figures) {
    char *text = json_dumps(figures, JSON_COMPACT | JSON_REAL_PRECISION(4));
    printf("%-7s%s %s %s %s\n", ok ? "ok" : "FAILED", s->set, json_string_value(json_object_get(s->item, "id")), check,
           text ? text : "");
    free(text);
    json_t *line = json_pack("{ss ss ss sb}", "set", s->set, "case", json_string_value(json_object_get(s->item, "id")),
                             "check", check, "ok", ok);
    json_object_update_new(line, figures);
    json_array_append_new(g->lines, line);
    g->passed += ok;
    g->failed += !ok;
    fflush(stdout);
    save(g);
}

/* The whole file, malloc'd; NULL if there is none. */
static void *read_whole(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    void *data = malloc((size_t)size + 1);
    *bytes = data ? fread(data, 1, (size_t)size, file) : 0;
    fclose(file);
    return data;
}

static void path_in(const struct golden *g, char path[256], const char *name) {
    snprintf(path, 256, "%.64s/%.100s", g->folder, name);
}

/* Passes on what the program warned of. Without a card it computes on the CPU, which proves nothing here. */
static bool was_on_card(const struct golden *g) {
    char path[256];
    size_t bytes = 0;
    path_in(g, path, "warned");
    char *text = read_whole(path, &bytes);
    if (text) text[bytes] = '\0';
    if (text) fputs(text, stderr);
    bool on_card = text && !strstr(text, "computing on the CPU");
    free(text);
    return on_card;
}

/* The program, with a variable of its own or without (NULL); the results are files of g->folder. */
static int run_words(const struct golden *g, const char *const *words, const char *variable, const char *value) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        char out[256], err[256];
        path_in(g, out, "said");
        path_in(g, err, "warned");
        if (!freopen(out, "w", stdout) || !freopen(err, "w", stderr)) _exit(126);
        if (variable) setenv(variable, value, 1);
        execv(g->moebius, (char *const *)(uintptr_t)words);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) return -1;
    return was_on_card(g) ? status : -1;
}

/* moebius logits SET --ids ids.json --device cuda FLAGS... */
static int run(const struct golden *g, const struct subject *s, bool recorded, const char *const *flags) {
    char ids[256];
    path_in(g, ids, "ids.json");
    const char *words[WORDS_MAX] = {g->moebius, "logits", s->path, "--ids", ids, "--device", "cuda"};
    for (int n = 7; *flags && n < WORDS_MAX - 1;) words[n++] = *flags++;
    return run_words(g, words, recorded ? NULL : "MOEBIUS_CUDA_GRAPHS", "0");
}

/* Of a set with wrong logits: the self-test, which goes stage by stage, and a wait after every kernel name what is wrong. */
static void explain(const struct golden *g, const struct subject *s) {
    const char *const words[] = {g->moebius, "bench",    s->path, "--device",        "cuda", "--prompt",
                                 "8",        "--batch",  "1",     "--depth",         "0",    "--generate",
                                 "1",        "--repeat", "1",     "--max-model-len", "64",   NULL};
    fprintf(stderr, "%s once more, kernel by kernel:\n", s->set);
    if (run_words(g, words, "MOEBIUS_CUDA_WAIT", "1") == 0) fprintf(stderr, "its self-test finds nothing\n");
}

static bool write_ids(const struct golden *g, const struct subject *s, size_t most) {
    char path[256];
    json_t *ids = json_array(), *tokens = json_object_get(s->item, "tokens");
    for (size_t i = 0; i < json_array_size(tokens) && i < most; i++) json_array_append(ids, json_array_get(tokens, i));
    path_in(g, path, "ids.json");
    bool ok = !json_dump_file(ids, path, 0);
    json_decref(ids);
    return ok;
}

static int64_t shape_at(const json_t *entry, size_t i) {
    return json_integer_value(json_array_get(json_object_get(entry, "shape"), i));
}

static void *read_entry(const struct subject *s, const json_t *entry, size_t *bytes) {
    char path[4400];
    snprintf(path, sizeof path, "%.4096s/%.200s", s->path, json_string_value(json_object_get(entry, "file")));
    return read_whole(path, bytes);
}

/* The first layer with experts in which those of token `row` do not agree, in any order; -1: all do. ids are [layers][tokens][k]. */
static int64_t other_experts(const int32_t *a, const int32_t *b, int64_t layers, int64_t tokens, int64_t k,
                             int64_t row) {
    for (int64_t layer = 0; layer < layers; layer++) {
        const int32_t *x = a + (layer * tokens + row) * k, *y = b + (layer * tokens + row) * k;
        for (int64_t i = 0; i < k; i++) {
            int64_t j = 0;
            while (j < k && y[j] != x[i]) j++;
            if (j == k) return layer;
        }
    }
    return -1;
}

struct difference {
    double sum, max, max_most;
    int64_t values, rows, agreeing;
    int64_t wrong, not_numbers, first_pos, first_id; /* logits far from the reference's, and the first of them */
    double got, want;
    int64_t other_layer,
        other_pos; /* where an expert is another one: the first layer, from 0, and the first token there */
};

static void add_row(struct difference *d, int64_t pos, const float *got, const float *want, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double error = fabs((double)got[i] - (double)want[i]);
        d->not_numbers += !isfinite(got[i]);
        if (isfinite(error)) d->sum += error;
        d->max = fmax(d->max, error);
        if (error <= d->max_most || d->wrong++) continue;
        d->first_pos = pos, d->first_id = i;
        d->got = (double)got[i], d->want = (double)want[i];
    }
    d->values += n;
    d->agreeing++;
}

static bool has_indexer(const struct subject *s) {
    char path[4400];
    snprintf(path, sizeof path, "%s/config.json", s->path);
    json_t *config = json_load_file(path, 0, NULL);
    const json_t *text = json_object_get(config, "text_config"); /* V4.1 */
    bool has = json_object_get(text ? text : config, "index_topk") != NULL;
    json_decref(config);
    return has;
}

static struct bars bars_of(const struct subject *s) {
    return has_indexer(s) && json_array_size(json_object_get(s->item, "tokens")) > 64 ? CHOSEN : NEAR;
}

/* Rows whose experts are the reference's must be near; of the others there may be few. */
static struct difference compare(const struct golden *g, const struct subject *s) {
    const json_t *logits = json_object_get(s->item, "logits"), *routing = json_object_get(s->item, "routing");
    const json_t *ids_entry = json_object_get(routing, "ids"), *positions = json_object_get(logits, "positions");
    struct difference d = {.rows = shape_at(logits, 0), .other_layer = -1, .max_most = bars_of(s).max};
    char path[256];
    size_t want_bytes = 0, got_bytes = 0, want_ids_bytes = 0, got_ids_bytes = 0;
    int64_t vocab = shape_at(logits, 1), layers = shape_at(ids_entry, 0), tokens = shape_at(ids_entry, 1),
            k = shape_at(ids_entry, 2);
    float *want = read_entry(s, logits, &want_bytes);
    path_in(g, path, "logits");
    float *got = read_whole(path, &got_bytes);
    path_in(g, path, "experts");
    int32_t *got_ids = read_whole(path, &got_ids_bytes), *want_ids = NULL;
    if (routing) want_ids = read_entry(s, ids_entry, &want_ids_bytes);
    bool routed = want_ids && got_ids && want_ids_bytes == got_ids_bytes;
    for (int64_t r = 0; r < d.rows && want && got; r++) {
        int64_t pos = json_integer_value(json_array_get(positions, (size_t)r));
        if ((size_t)((pos + 1) * vocab) * sizeof *got > got_bytes) break;
        int64_t other = routed ? other_experts(got_ids, want_ids, layers, tokens, k, pos) : -1;
        if (other >= 0 && (d.other_layer < 0 || other < d.other_layer)) d.other_layer = other, d.other_pos = pos;
        for (int64_t i = 0; i < vocab && other >= 0; i++) d.not_numbers += !isfinite(got[pos * vocab + i]);
        if (other >= 0) continue;
        add_row(&d, pos, got + pos * vocab, want + r * vocab, vocab);
    }
    free(want);
    free(got);
    free(got_ids);
    free(want_ids);
    return d;
}

/* Where a set went wrong: what helps to find out why. */
static void add_places(json_t *figures, const struct difference *d) {
    char text[160];
    json_object_set_new(figures, "wrong", json_integer((json_int_t)d->wrong));
    json_object_set_new(figures, "not_numbers", json_integer((json_int_t)d->not_numbers));
    if (d->wrong) {
        snprintf(text, sizeof text, "position %lld, token %lld: expected %.6g, found %.6g", (long long)d->first_pos,
                 (long long)d->first_id, d->want, d->got);
        json_object_set_new(figures, "first_wrong", json_string(text));
    }
    if (d->rows == d->agreeing || d->other_layer < 0) return;
    snprintf(text, sizeof text, "layer %lld of those with experts, position %lld", (long long)d->other_layer,
             (long long)d->other_pos);
    json_object_set_new(figures, "first_other_experts", json_string(text));
}

static void check_reference(struct golden *g, const struct subject *s) {
    char logits[256], experts[256];
    path_in(g, logits, "logits");
    path_in(g, experts, "experts");
    const char *const flags[] = {"--all", "--out", logits, "--experts", experts, NULL};
    bool ran = write_ids(g, s, SIZE_MAX) && run(g, s, true, flags) == 0;
    struct difference d = {0};
    if (ran) d = compare(g, s);
    double mean = d.values ? d.sum / (double)d.values : 0;
    bool ok = ran && d.values && !d.not_numbers && (double)d.agreeing >= AGREE_LEAST * (double)d.rows &&
              mean <= bars_of(s).mean && d.max <= bars_of(s).max;
    json_t *figures = json_pack("{sb sI sI sf sf}", "ran", ran, "rows", (json_int_t)d.rows, "rows_agreeing",
                                (json_int_t)d.agreeing, "mean_error", mean, "max_error", fmin(d.max, 1e30));
    if (!ok) add_places(figures, &d);
    note(g, s, "reference", ok, figures);
    if (!ok && g->explained++ < EXPLAINED_MOST) explain(g, s);
    unlink(logits);
    unlink(experts);
}

static bool same_files(const char *a, const char *b) {
    size_t n = 0, m = 0;
    void *x = read_whole(a, &n), *y = read_whole(b, &m);
    bool same = x && y && n && n == m && !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

/* A row has the same bits in every chunk: through the skinny kernels and the wide ones, with attention in one form. (Left to itself,
 * a long chunk takes the other form than a short one, and that has other bits.) The first `sizes` of the sizes are tried. */
static void check_chunks(struct golden *g, const struct subject *s, const char *form, int sizes) {
    static const char *const chunks[] = {"13", "5", "64"};
    char whole[256], part[256];
    path_in(g, whole, "whole");
    path_in(g, part, "part");
    const char *const flags[] = {"--all", "--out", whole, "--chunk", "80", "--attention", form, NULL};
    bool ran = write_ids(g, s, TOKENS_CHUNKED) && run(g, s, true, flags) == 0, same = ran;
    for (int i = 0; i < sizes && same; i++) {
        const char *const again[] = {"--all", "--out", part, "--chunk", chunks[i], "--attention", form, NULL};
        same = run(g, s, true, again) == 0 && same_files(whole, part);
    }
    note(g, s, !strcmp(form, "absorbed") ? "chunks, absorbed" : "chunks, expanded", same,
         json_pack("{sb}", "same_bits", same));
}

/* Recorded decode steps give what eager ones give. */
static void check_recorded(struct golden *g, const struct subject *s) {
    char recorded[256], eager[256], n[16];
    path_in(g, recorded, "recorded");
    path_in(g, eager, "eager");
    snprintf(n, sizeof n, "%d", GREEDY);
    const char *const flags[] = {"--greedy", n, "--out", recorded, NULL};
    const char *const again[] = {"--greedy", n, "--out", eager, NULL};
    bool same = write_ids(g, s, 17) && run(g, s, true, flags) == 0 && run(g, s, false, again) == 0 &&
                same_files(recorded, eager);
    note(g, s, "recorded steps", same, json_pack("{sb}", "same_bits", same));
}

static void check_set(struct golden *g, const char *set, bool first) {
    struct subject s = {.set = set};
    char path[4400];
    snprintf(s.path, sizeof s.path, "%.3800s/%.200s", g->models, set);
    snprintf(path, sizeof path, "%s/manifest.json", s.path);
    s.manifest = json_load_file(path, 0, NULL);
    const json_t *cases = json_object_get(s.manifest, "cases");
    for (size_t i = 0; i < json_array_size(cases); i++) {
        s.item = json_array_get(cases, i);
        const char *id = json_string_value(json_object_get(s.item, "id"));
        if (!id || !is_listed(g->cases, id) || !json_object_get(s.item, "tokens")) continue;
        check_reference(g, &s);
        if (!strcmp(id, "p200") && (first || strstr(set, "fp8"))) {
            check_chunks(g, &s, "absorbed", 3);
            if (!has_indexer(&s))
                check_chunks(g, &s, "expanded", 1); /* a program takes seconds to start where no other holds the card */
        }
        if (!strcmp(id, "p17") && (first || strstr(set, "fp8"))) check_recorded(g, &s);
    }
    json_decref(s.manifest);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void check_all(struct golden *g) {
    char *names[SETS_MAX], path[4400];
    int n = 0;
    DIR *folder = opendir(g->models);
    for (struct dirent *entry; folder && (entry = readdir(folder)) && n < SETS_MAX;) {
        snprintf(path, sizeof path, "%.3800s/%.256s/manifest.json", g->models, entry->d_name);
        if (is_listed(g->sets, entry->d_name) && !access(path, R_OK)) names[n++] = strdup(entry->d_name);
    }
    if (folder) closedir(folder);
    qsort(names, (size_t)n, sizeof *names, compare_names);
    for (int i = 0; i < n; i++) {
        check_set(g, names[i], i == 0);
        free(names[i]);
    }
}

static void clean(const struct golden *g) {
    static const char *const files[] = {"ids.json", "said", "warned",   "logits", "experts",
                                        "whole",    "part", "recorded", "eager"};
    char path[256];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        path_in(g, path, files[i]);
        unlink(path);
    }
    rmdir(g->folder);
}

int main(int argc, char **argv) {
    struct golden g = {.cases = "p17,p200", .lines = json_array()};
    if (argc < 3) {
        fprintf(stderr, "use: golden MOEBIUS MODELS [--report FILE] [--sets NAME,NAME] [--cases p17,p200]\n");
        return 2;
    }
    g.moebius = argv[1];
    g.models = argv[2];
    for (int i = 3; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--report")) g.report = argv[i + 1];
        if (!strcmp(argv[i], "--sets")) g.sets = argv[i + 1];
        if (!strcmp(argv[i], "--cases")) g.cases = argv[i + 1];
    }
    const char *temporary = getenv("TMPDIR");
    snprintf(g.folder, sizeof g.folder, "%.40s/golden-XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(g.folder)) {
        perror(g.folder);
        return 2;
    }
    check_all(&g);
    clean(&g);
    json_decref(g.lines);
    printf("%d passed, %d failed\n", g.passed, g.failed);
    return g.failed || !g.passed;
}
