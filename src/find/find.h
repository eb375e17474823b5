/* find/find.h - MODEL on the command line to a folder or file that is here: a path as it is, or `org/name` (`org/name:Q4_K_M` of GGUF
 * files, also behind hf.co/), from the Hugging Face cache, or pulled into it now. Every command that takes a MODEL asks here. */
#ifndef MOEBIUS_FIND_FIND_H
#define MOEBIUS_FIND_FIND_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"
#include "cli/cli.h"

/* What flags say about the hub, beside MODEL and its revision; zeroed: nothing. */
struct find_flags {
    bool is_repository; /* MODEL came by -hf: no folder of that name is looked for */
    const char *file;   /* of the repository, a GGUF file */
    const char *token;
    bool is_offline;
};

/* The table's entries for these, for --revision and for -hf, into flags [FIND_FLAGS_MAX]; returns how many. */
enum { FIND_FLAGS_MAX = 6 };
size_t find_model_flags(struct find_flags *hub, const char **model, const char **revision, struct cli_flag *flags);

/* What has to be here. */
enum find_need {
    FIND_CONFIG, /* config.json, of a folder */
    FIND_TEXT,   /* the small files; GGUF files have them inside */
    FIND_FILES,  /* all */
    FIND_TO_RUN  /* all, and room for it in this machine's memory before it is pulled */
};

struct find_request {
    const char *model, *revision; /* NULL: "main" */
    const struct find_flags *hub;
    enum find_need need;
    const char *quantization, *device; /* FIND_TO_RUN: as engine_options have them */
};

/* "hf.co/org/name:TAG", whose first part browsers and Ollama write, in its parts. */
struct find_name {
    char repository[400], tag[400]; /* "org/name"; "" or the name of a GGUF file */
};
int find_read_name(struct find_name *name, const char *model, struct mo_error *error);

/* Writes the path to path [path_size]. The error says what is not here, and why it could not be had. */
int find_model(const struct find_request *request, char *path, size_t path_size, struct mo_error *error);

#endif
