#include "cli/cli.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool takes_value(const struct cli_flag *flag) {
    return flag->type != CLI_FLAG && flag->type != CLI_IGNORED_FLAG && flag->type != CLI_REFUSED_FLAG;
}

/* vLLM's command lines have underscores, too. */
static bool is_same(const char *known, const char *given, size_t size) {
    for (size_t i = 0; i < size; i++) {
        char letter = given[i] == '_' && i >= 2 ? '-' : given[i];
        if (letter != known[i]) return false;
    }
    return true;
}

/* Whether `name` [size] is one of the comma-separated names of the flag. */
static bool is_named(const struct cli_flag *flag, const char *name, size_t size) {
    if (flag->type == CLI_HEADING) return false;
    for (const char *at = flag->names; *at;) {
        size_t n = strcspn(at, ",");
        if (n == size && is_same(at, name, n)) return true;
        at += n + (at[n] == ',');
    }
    return false;
}

static const struct cli_flag *find_flag(const struct cli_command *command, const char *name, size_t size) {
    const struct cli_flag *tables[2] = {command->flags, command->more};
    for (int i = 0; i < 2; i++) {
        for (const struct cli_flag *flag = tables[i]; flag && flag->names; flag++) {
            if (is_named(flag, name, size)) return flag;
        }
    }
    return NULL;
}

/* Edit distance, for "did you mean": names are short, so the plain quadratic form does. */
static int edit_distance(const char *a, size_t n_a, const char *b, size_t n_b) {
    enum { LONGEST = 64 };
    if (n_a >= LONGEST || n_b >= LONGEST) return LONGEST;
    int row[LONGEST];
    for (size_t j = 0; j <= n_b; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n_a; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= n_b; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int shift = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = change < shift ? change : shift;
        }
    }
    return row[n_b];
}

static int unknown_flag(const struct cli_command *command, const char *name, size_t size, struct mo_error *error) {
    const struct cli_flag *tables[2] = {command->flags, command->more};
    const char *nearest = NULL;
    int best = 4;
    for (int i = 0; i < 2; i++) {
        for (const struct cli_flag *flag = tables[i]; flag && flag->names; flag++) {
            if (flag->type == CLI_HEADING) continue;
            size_t n = strcspn(flag->names, ",");
            int distance = edit_distance(name, size, flag->names, n);
            if (distance < best) {
                best = distance;
                nearest = flag->names;
            }
        }
    }
    if (nearest) {
        return mo_error_set(error, MO_E_INVALID, "unknown flag %.*s; did you mean %.*s? (--help lists them)", (int)size,
                            name, (int)strcspn(nearest, ","), nearest);
    }
    return mo_error_set(error, MO_E_INVALID, "unknown flag %.*s (--help lists them)", (int)size, name);
}

/* The index of `value` in "a|b|c", or -1. */
static int find_choice(const char *choices, const char *value) {
    int index = 0;
    for (const char *at = choices; *at; index++) {
        size_t n = strcspn(at, "|");
        if (strlen(value) == n && memcmp(at, value, n) == 0) return index;
        at += n + (at[n] == '|');
    }
    return -1;
}

static int parse_choice(const struct cli_flag *flag, const char *name, const char *value, struct mo_error *error) {
    int index = find_choice(flag->choices, value);
    if (index < 0)
        return mo_error_set(error, MO_E_INVALID, "%s: expected %s, found \"%s\"", name, flag->choices, value);
    *(int *)flag->target = index;
    return 0;
}

static int parse_number(const struct cli_flag *flag, const char *name, const char *value, struct mo_error *error) {
    char *end;
    errno = 0;
    double number = strtod(value, &end);
    bool whole = flag->type != CLI_INT || number == floor(number);
    if (end == value || *end || !isfinite(number) || !whole) {
        return mo_error_set(error, MO_E_INVALID, "%s: expected %s, found \"%s\"", name,
                            flag->type == CLI_INT ? "a whole number" : "a number", value);
    }
    if (number < flag->min || number > flag->max) {
        return mo_error_set(error, MO_E_INVALID, "%s: expected %.10g to %.10g, found %s", name, flag->min, flag->max,
                            value);
    }
    if (flag->type == CLI_INT) {
        *(int *)flag->target = (int)number;
    } else {
        *(double *)flag->target = number;
    }
    return 0;
}

static int parse_uint64(const struct cli_flag *flag, const char *name, const char *value, struct mo_error *error) {
    char *end;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    if (end == value || *end || errno || value[0] == '-') {
        return mo_error_set(error, MO_E_INVALID, "%s: expected a number from 0 to 2^64 - 1, found \"%s\"", name, value);
    }
    *(uint64_t *)flag->target = number;
    return 0;
}

static int append_to_list(const struct cli_flag *flag, const char *name, const char *value, struct mo_error *error) {
    struct cli_list *list = flag->target;
    if (list->n == CLI_LIST_MAX) {
        return mo_error_set(error, MO_E_INVALID, "%s: given more than %d times", name, CLI_LIST_MAX);
    }
    list->items[list->n++] = value;
    return 0;
}

static int set_flag(const struct cli_flag *flag, const char *name, const char *value, struct mo_error *error) {
    if (flag->given) *flag->given = true;
    switch (flag->type) {
    case CLI_FLAG:
        *(bool *)flag->target = true;
        return 0;
    case CLI_INT:
    case CLI_DOUBLE:
        return parse_number(flag, name, value, error);
    case CLI_UINT64:
        return parse_uint64(flag, name, value, error);
    case CLI_STRING:
        *(const char **)flag->target = value;
        return 0;
    case CLI_LIST:
        return append_to_list(flag, name, value, error);
    case CLI_CHOICE:
        return parse_choice(flag, name, value, error);
    case CLI_IGNORED:
    case CLI_IGNORED_FLAG:
        fprintf(stderr, "moebius: %s: %s\n", name, flag->help);
        return 0;
    case CLI_REFUSED:
    case CLI_REFUSED_FLAG:
        return mo_error_set(error, MO_E_UNSUPPORTED, "%s is refused: %s", name, flag->help);
    case CLI_HEADING:
        break;
    }
    assert(flag->type != CLI_HEADING);
    return 0;
}

static bool is_refused(const struct cli_flag *flag) {
    return flag->type == CLI_REFUSED || flag->type == CLI_REFUSED_FLAG;
}

/* Taken so that other engines' command lines go on working, or do not, with the reason: nothing here listens to it. */
static bool is_of_others(const struct cli_flag *flag) {
    return flag->type == CLI_IGNORED || flag->type == CLI_IGNORED_FLAG || is_refused(flag);
}

/* The flag's names, but for those that an earlier one has taken, with what its value is called. Returns how many. */
static int name_flag(const struct cli_command *command, const struct cli_flag *flag, char *out, size_t out_size) {
    int n = snprintf(out, out_size, "  "), names = 0;
    for (const char *at = flag->names; *at && n < (int)out_size - 4;) {
        size_t size = strcspn(at, ",");
        if (find_flag(command, at, size) == flag)
            n += snprintf(out + n, out_size - (size_t)n, "%s%.*s", names++ ? ", " : "", (int)size, at);
        at += size + (at[size] == ',');
    }
    if ((takes_value(flag) || flag->choices) && n < (int)out_size) {
        snprintf(out + n, out_size - (size_t)n, takes_value(flag) ? " %s" : " [%s]",
                 flag->choices ? flag->choices
                 : flag->value ? flag->value
                               : "X");
    }
    return names;
}

static void print_flag(const struct cli_flag *flag, const char *names) {
    const char *help = flag->help ? flag->help : "", *before = is_refused(flag) ? "refused: " : "";
    printf(strlen(names) < 34 ? "%-34s" : "%s\n%34s", names, "");
    for (const char *line = help; *line;) {
        int size = (int)strcspn(line, "\n");
        printf("%s%.*s\n", line == help ? before : "                                  ", size, line);
        line += size + (line[size] == '\n');
    }
    if (!*help) putchar('\n');
}

/* Headings over nothing are left out. Returns how many names are not shown, since they are other engines'. */
static int print_flags(const struct cli_command *command, bool all) {
    const struct cli_flag *tables[2] = {command->flags, command->more};
    const char *heading = "Flags";
    char names[128];
    int left_out = 0;
    for (int i = 0; i < 2; i++) {
        for (const struct cli_flag *flag = tables[i]; flag && flag->names; flag++) {
            if (flag->type == CLI_HEADING) {
                heading = flag->names;
                continue;
            }
            const int n = name_flag(command, flag, names, sizeof names);
            if (!all && is_of_others(flag)) {
                left_out += n;
            } else if (n) {
                if (heading) printf("\n%s:\n", heading);
                heading = NULL;
                print_flag(flag, names);
            }
        }
    }
    return left_out;
}

static void print_help(const struct cli_command *command, bool all) {
    printf("Usage: moebius %s %s\n\n%s\n", command->name, command->arguments, command->about);
    int left_out = print_flags(command, all);
    if (left_out) {
        printf("\n`moebius %s --help-all` lists %d more, which other engines' command lines have: what each stands for "
               "here.\n",
               command->name, left_out);
    }
    if (command->examples) printf("\nExamples:\n%s\n", command->examples);
}

/* One flag with its value, at argv[*i]; *i moves to the last argument used. */
static int parse_flag(const struct cli_command *command, int argc, char **argv, int *i, struct mo_error *error) {
    const char *argument = argv[*i];
    size_t size = strcspn(argument, "=");
    const struct cli_flag *flag = find_flag(command, argument, size);
    if (!flag) return unknown_flag(command, argument, size, error);
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)size, argument);
    if (!takes_value(flag)) {
        const char *next = argument[size] ? argument + size + 1 : *i + 1 < argc ? argv[*i + 1] : "";
        bool has_value = flag->choices && find_choice(flag->choices, next) >= 0;
        if (argument[size] && !has_value) return mo_error_set(error, MO_E_INVALID, "%s takes no value", name);
        *i += has_value && !argument[size];
        return set_flag(flag, name, NULL, error);
    }
    if (argument[size]) return set_flag(flag, name, argument + size + 1, error);
    if (*i + 1 >= argc) return mo_error_set(error, MO_E_INVALID, "%s: its value is missing", name);
    *i += 1;
    return set_flag(flag, name, argv[*i], error);
}

static bool is_help(const char *argument) {
    return !strcmp(argument, "--help") || !strcmp(argument, "-h") || !strcmp(argument, "--help-all");
}

int cli_parse(const struct cli_command *command, int argc, char **argv, const char **positionals, int *n_positionals,
              struct mo_error *error) {
    *n_positionals = 0;
    bool only_positionals = false;
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (!only_positionals && strcmp(argument, "--") == 0) {
            only_positionals = true;
        } else if (!only_positionals && is_help(argument)) {
            print_help(command, !strcmp(argument, "--help-all"));
            return 1;
        } else if (!only_positionals && argument[0] == '-' && argument[1]) {
            int code = parse_flag(command, argc, argv, &i, error);
            if (code) return code;
        } else if (*n_positionals == command->max_positionals) {
            return mo_error_set(error, MO_E_INVALID, "unexpected argument \"%s\"", argument);
        } else {
            positionals[(*n_positionals)++] = argument;
        }
    }
    return 0;
}

int cli_fail(const char *command, const struct mo_error *error) {
    fprintf(stderr, "moebius %s: %s\n", command, error->message);
    return error->code == MO_E_INVALID ? 2 : error->code == MO_E_CANCELLED ? 130 : 1;
}
