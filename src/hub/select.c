#include "hub/select.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/text.h"

/* What Moebius, and who converts or reads about the model, needs; the rest (weights for other programs, code, pictures) stays
 * where it is. Of folders nothing: there lie other programs' copies (original/, onnx/); but what
 * V4 and V4.1 have in the place of a template lies in one. */
static const char *const NEEDED[] = {
    "config.json",   "generation_config.json",   "quantize_config.json",    "quant_config.json",
    "tokenizer*",    "chat_template*",           "special_tokens_map.json", "added_tokens.json",
    "*.safetensors", "*.safetensors.index.json", "[Ll][Ii][Cc][Ee]*",       "README*",
};
static const char *const NOT_NEEDED[] = {"consolidated*"}; /* the same weights once more, under other names */

/* The length of NAME in NAME-00001-of-00003.gguf; 0: not a shard. */
static size_t shard_stem(const char *path) {
    static const char shape[] = "-ddddd-of-ddddd.gguf";
    size_t n = strlen(path), m = sizeof shape - 1;
    if (n <= m) return 0;
    for (size_t i = 0; i < m; i++) {
        char c = path[n - m + i];
        if (shape[i] == 'd' ? !isdigit((unsigned char)c) : c != shape[i]) return 0;
    }
    return n - m;
}

static bool are_together(const char *a, const char *b) {
    size_t n = shard_stem(a);
    const size_t after = sizeof "-00001" - 1;
    return n && n == shard_stem(b) && !memcmp(a, b, n) && !strcmp(a + n + after, b + n + after);
}

/* 3 of NAME-00001-of-00003.gguf; 1: not a shard. */
static int shards_of(const char *path) {
    size_t n = shard_stem(path);
    return n ? atoi(path + n + sizeof "-00001-of-" - 1) : 1;
}

static bool is_path(const struct hub_listing *listing, const char *text) {
    for (int i = 0; i < listing->n; i++)
        if (!strcmp(listing->files[i].path, text)) return true;
    return false;
}

static bool matches(const struct hub_listing *listing, const char *path, const char *pattern) {
    char wide[HUB_MAX_PATH_BYTES + 3];
    if (is_path(listing, pattern)) return strcmp(pattern, path) == 0;
    if (strpbrk(pattern, "*?[")) return fnmatch(pattern, path, 0) == 0;
    int n = snprintf(wide, sizeof wide, "*%s*", pattern);
    return n > 0 && (size_t)n < sizeof wide && fnmatch(wide, path, FNM_CASEFOLD) == 0;
}

static bool matches_any(const struct hub_listing *listing, const char *path, const char *const *patterns, int n) {
    for (int i = 0; i < n; i++)
        if (matches(listing, path, patterns[i])) return true;
    return false;
}

static bool is_needed(const char *path) {
    if (!strcmp(path, "encoding/encoding_dsv4.py") || !strcmp(path, "encoding/encoding.py")) return true;
    if (strchr(path, '/')) return false;
    for (size_t i = 0; i < sizeof NOT_NEEDED / sizeof *NOT_NEEDED; i++)
        if (!fnmatch(NOT_NEEDED[i], path, 0)) return false;
    for (size_t i = 0; i < sizeof NEEDED / sizeof *NEEDED; i++)
        if (!fnmatch(NEEDED[i], path, 0)) return true;
    return false;
}

/* Half a model is none: who wants one shard gets all. */
static void add_shards(struct hub_listing *listing) {
    for (int i = 0; i < listing->n; i++) {
        struct hub_file *file = &listing->files[i];
        if (!file->is_wanted || !shard_stem(file->path)) continue;
        for (int j = 0; j < listing->n; j++)
            if (are_together(file->path, listing->files[j].path)) listing->files[j].is_wanted = true;
    }
}

static void find_copies(struct hub_listing *listing) {
    for (int i = 0; i < listing->n; i++) {
        struct hub_file *file = &listing->files[i];
        file->is_copy = false;
        for (int j = 0; j < i && file->is_wanted && !file->is_copy; j++)
            file->is_copy = listing->files[j].is_wanted && !strcmp(listing->files[j].hash, file->hash);
    }
}

/* "config.json, pytorch_model.bin, ..." */
static void list_some(const struct hub_listing *listing, char *text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < listing->n && used + 4 < size; i++) {
        int n = snprintf(text + used, size - used, "%s%s", i ? ", " : "", listing->files[i].path);
        if (n < 0 || used + (size_t)n + 5 >= size) {
            strcpy(text + used, ", ...");
            return;
        }
        used += (size_t)n;
    }
}

int hub_select(struct hub_listing *listing, const struct hub_patterns *patterns, const char *model,
               struct mo_error *error) {
    char some[400];
    int n = 0, n_weights = 0;
    for (int i = 0; i < listing->n; i++) {
        struct hub_file *file = &listing->files[i];
        file->is_wanted = patterns->n_include ? matches_any(listing, file->path, patterns->include, patterns->n_include)
                                              : is_needed(file->path);
    }
    add_shards(listing);
    for (int i = 0; i < listing->n; i++) {
        struct hub_file *file = &listing->files[i];
        if (matches_any(listing, file->path, patterns->exclude, patterns->n_exclude)) file->is_wanted = false;
        n += file->is_wanted;
        n_weights += text_ends_with(file->path, ".safetensors");
    }
    find_copies(listing);
    list_some(listing, some, sizeof some);
    if (!n) return mo_error_set(error, MO_E_NOT_FOUND, "%s: no file is wanted; there are: %s", model, some);
    if (patterns->n_include || n_weights) return 0;
    return mo_error_set(error, MO_E_UNSUPPORTED,
                        "%s has neither *.safetensors nor *.gguf, which is what Moebius reads; there are: %s "
                        "(--include PATTERN gets any of them)",
                        model, some);
}

/* And not statistics of a quantization, the eyes of a model that sees, or prediction layers: gguf/open.c leaves them out in the same
 * way. */
static bool is_model(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    bool is_part = !strncmp(name, "mmproj", 6) || !strncmp(name, "mtp-", 4);
    return text_ends_with(name, ".gguf") && !text_ends_with(name, "imatrix.gguf") && !is_part;
}

bool hub_is_first_of_gguf(const char *path) {
    size_t n = shard_stem(path);
    return is_model(path) && (n == 0 || !strncmp(path + n, "-00001-", 7));
}

bool hub_has_choices(const struct hub_listing *listing) {
    bool has = false;
    for (int i = 0; i < listing->n; i++) {
        if (text_ends_with(listing->files[i].path, ".safetensors")) return false;
        has |= is_model(listing->files[i].path);
    }
    return has;
}

bool hub_next_choice(const struct hub_listing *listing, int *at, struct hub_choice *choice) {
    for (; *at < listing->n; ++*at) {
        const char *path = listing->files[*at].path;
        if (!is_model(path)) continue;
        bool is_seen = false;
        for (int j = 0; j < *at && !is_seen; j++) is_seen = are_together(path, listing->files[j].path);
        if (is_seen) continue;
        *choice = (struct hub_choice){.path = path, .size = listing->files[*at].size, .n_files = 1};
        for (int j = *at + 1; j < listing->n; j++) {
            if (!are_together(path, listing->files[j].path)) continue;
            choice->size += listing->files[j].size;
            choice->n_files++;
        }
        choice->is_whole = choice->n_files == shards_of(path);
        ++*at;
        return true;
    }
    return false;
}

static bool has_word(const char *path, const char *word) {
    size_t n = strlen(word);
    for (const char *at = path; *at; at++) {
        bool begins = at == path || !isalnum((unsigned char)at[-1]);
        if (begins && !strncasecmp(at, word, n) && !isalnum((unsigned char)at[n]) && at[n] != '_') return true;
    }
    return false;
}

static bool choose_path(const struct hub_listing *listing, const char *path, struct hub_choice *choice) {
    for (int at = 0; hub_next_choice(listing, &at, choice);)
        if (!strcmp(choice->path, path)) return true;
    return false;
}

static bool choose_word(const struct hub_listing *listing, const char *word, struct hub_choice *choice) {
    for (int at = 0; hub_next_choice(listing, &at, choice);)
        if (has_word(choice->path, word)) return true;
    return false;
}

bool hub_choose(const struct hub_listing *listing, const char *name, struct hub_choice *choice) {
    if (name) return *name && (choose_path(listing, name, choice) || choose_word(listing, name, choice));
    return choose_word(listing, "Q4_K_M", choice) || hub_next_choice(listing, &(int){0}, choice);
}

bool hub_is_weights(const char *path) {
    return text_ends_with(path, ".safetensors") || text_ends_with(path, ".gguf");
}
