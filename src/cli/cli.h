/* cli/cli.h - the command line as a table: each subcommand lists its flags once, and gets parsing, range checks and
 * --help from the list (--help-all with what is known and not listened to). `--flag value`, `--flag=value` and, for one-letter
 * aliases, `-n 5` are accepted; in long names "_" is "-". */
#ifndef MOEBIUS_CLI_CLI_H
#define MOEBIUS_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

enum cli_type {
    CLI_FLAG,         /* bool *: no value; true when given */
    CLI_INT,          /* int *: within [min, max] */
    CLI_DOUBLE,       /* double *: within [min, max] */
    CLI_UINT64,       /* uint64_t * */
    CLI_STRING,       /* const char **: points into argv */
    CLI_LIST,         /* struct cli_list *: may be given several times */
    CLI_CHOICE,       /* int *: index into `choices`, "a|b|c" */
    CLI_IGNORED,      /* accepted for compatibility, has a value; `help` says why nothing happens */
    CLI_IGNORED_FLAG, /* the same without a value */
    CLI_REFUSED,      /* known, has a value, and cannot be had; `help` says why */
    CLI_REFUSED_FLAG, /* the same without a value */
    CLI_HEADING,      /* no flag: a heading in --help */
};

enum { CLI_LIST_MAX = 64 };
struct cli_list {
    const char *items[CLI_LIST_MAX];
    int n;
};

struct cli_flag {
    const char *names; /* "--max-model-len,--context,-c": the first is the one that messages use */
    enum cli_type type;
    void *target;
    double min, max;     /* CLI_INT, CLI_DOUBLE */
    const char *choices; /* CLI_CHOICE; CLI_IGNORED_FLAG: words that may follow it */
    const char *value;   /* what --help calls the value: "N", "FILE" */
    const char *help;    /* one line or two; the default is said here */
    bool *given;         /* if not NULL, set when the flag occurs */
};

struct cli_command {
    const char *name;             /* "run" */
    const char *arguments;        /* "MODEL [flags]" */
    const char *about;            /* a paragraph for --help */
    const char *examples;         /* lines for --help, or NULL */
    const struct cli_flag *flags; /* up to names == NULL; several tables chain through `more` */
    const struct cli_flag *more;  /* a second table or NULL; names that are in both are the first one's */
    int max_positionals;
};

/* Parses argv[1..]. Positional arguments go to `positionals` [max_positionals]. Returns 0, 1 when --help was printed
 * (the caller exits with 0), or a negative code: an unknown flag names the nearest known one. */
int cli_parse(const struct cli_command *command, int argc, char **argv, const char **positionals, int *n_positionals,
              struct mo_error *error);

/* Prints "moebius NAME: MESSAGE" to stderr; returns the exit status: 2 for wrong usage (INVALID from cli_parse), 130 if it was
 * stopped (CANCELLED), else 1. */
int cli_fail(const char *command, const struct mo_error *error);

#endif
