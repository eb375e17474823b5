/* hub/select.h - which of a repository's files are wanted: what Moebius reads of a model, or what patterns say. A file's shards
 * (of GGUF: NAME-00001-of-00003.gguf) belong together. Includes: hub/list.h. */
#ifndef MOEBIUS_HUB_SELECT_H
#define MOEBIUS_HUB_SELECT_H

#include "hub/list.h"

/* Shell patterns, in which * also stands for '/', as Hugging Face's own programs have it. One without * ? [ that is no file's
 * whole path means any path that holds it: Q4_K_M. */
struct hub_patterns {
    const char *const *include; /* [n_include] */
    const char *const *exclude; /* [n_exclude] */
    int n_include, n_exclude;
};

/* Sets is_wanted of every file. Nothing wanted at all is an error that says what there is. */
int hub_select(struct hub_listing *listing, const struct hub_patterns *patterns, const char *model,
               struct mo_error *error);

/* Of a repository that has GGUF files and no safetensors somebody has to choose. */
bool hub_has_choices(const struct hub_listing *listing);
/* A GGUF file that a model begins with: not a later shard. */
bool hub_is_first_of_gguf(const char *path);
struct hub_choice {
    const char *path; /* of its first file, in the listing; as --include it means all its shards, and nothing else */
    int64_t size;
    int n_files;
    bool is_whole; /* all shards that its files' names speak of */
};
/* The next one from file *at on; false: there is no other. */
bool hub_next_choice(const struct hub_listing *listing, int *at, struct hub_choice *choice);
/* The one that is called so: its path, or Q4_K_M, in any case of letters, as a word of its path; of several the first. NULL: Q4_K_M, or without one
 * the first of all, as llama.cpp and Ollama choose. False: there is none. */
bool hub_choose(const struct hub_listing *listing, const char *name, struct hub_choice *choice);

/* *.safetensors and *.gguf: what is large. */
bool hub_is_weights(const char *path);

#endif
