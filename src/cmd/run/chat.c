#include "cmd/run/chat.h"

#include <editline/readline.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cmd/run/generate.h"

enum { HISTORY_LINES = 1000 };

static int history_path(char *path, size_t size) {
    const char *home = getenv("HOME");
    return home && *home && (size_t)snprintf(path, size, "%s/.moebius_history", home) < size;
}

/* A line with editing and history on a terminal, a plain one else. malloc'd, without its end; NULL at the end of input. */
static char *read_line(bool terminal) {
    if (terminal) {
        char *line = readline("> ");
        if (line && *line) add_history(line);
        return line;
    }
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n = getline(&line, &capacity, stdin);
    if (n < 0) {
        free(line);
        return NULL;
    }
    if (memchr(line, 0, (size_t)n)) fprintf(stderr, "moebius run: a NUL ends the line: what follows it is not read\n");
    line[strcspn(line, "\r\n")] = 0;
    return line;
}

static int add_message(json_t *messages, const char *role, const char *text, size_t size, struct mo_error *error) {
    json_t *content = json_stringn(text, size);
    if (!content) return mo_error_set(error, MO_E_INVALID, "the text is not valid UTF-8");
    json_array_append_new(messages, json_pack("{ss so}", "role", role, "content", content));
    return 0;
}

/* One question and its answer. The whole conversation is encoded anew: templates may change earlier turns. */
static int take_turn(struct engine *engine, const struct sched_request *base, json_t *messages, const char *text,
                     struct mo_error *error) {
    struct token_list prompt = {0};
    struct generation answer = {0};
    int code = add_message(messages, "user", text, strlen(text), error);
    if (code) return code;
    code = engine_encode_chat(engine, messages, true, NULL, &prompt, error);
    struct sched_request request = *base;
    request.prompt = prompt.ids;
    request.n_prompt = (int)prompt.n;
    request.grammar_after = engine_reasoning_end(engine, &prompt);
    if (!code) code = generate(engine, &request, true, &answer, error);
    if (!code) {
        putchar('\n');
        generation_print_timings(&answer);
        code = add_message(messages, "assistant", answer.text ? answer.text : "", answer.text_size, error);
    } else {
        json_array_remove(messages, json_array_size(messages) - 1); /* as if it had not been asked */
    }
    free(answer.text);
    token_list_free(&prompt);
    return code;
}

/* Nothing but the system message, if there is one. */
static int start_conversation(json_t *messages, const char *system, struct mo_error *error) {
    json_array_clear(messages);
    int code = system ? add_message(messages, "system", system, strlen(system), error) : 0;
    return code ? mo_error_prefix(error, "--system") : 0;
}

/* Returns what take_turn returned last when input is not a terminal (a script wants to know), else 0. */
static int converse(struct engine *engine, const struct sched_request *request, const char *system, const char *first,
                    bool terminal, struct mo_error *error) {
    json_t *messages = json_array();
    int code = start_conversation(messages, system, error);
    bool failed = code != 0;
    char *line = failed ? NULL : first ? strdup(first) : read_line(terminal);
    for (; line; free(line), line = read_line(terminal)) {
        if (!strcmp(line, "/exit") || !strcmp(line, "/quit")) break;
        if (!strcmp(line, "/clear")) {
            start_conversation(messages, system, error);
            continue;
        }
        if (!*line) continue;
        code = take_turn(engine, request, messages, line, error);
        if ((code && !terminal) || ferror(stdout)) break; /* nobody reads: main says so */
        if (code) fprintf(stderr, "moebius run: %s\n", error->message);
    }
    free(line);
    json_decref(messages);
    return terminal && !failed ? 0 : code;
}

int chat_loop(struct engine *engine, const struct sched_request *request, const char *system, const char *first,
              struct mo_error *error) {
    bool terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    char path[4096];
    bool has_history = terminal && history_path(path, sizeof path);
    if (terminal) fprintf(stderr, "/clear begins anew, /exit or ctrl-D leaves, ctrl-C stops an answer\n");
    if (has_history) {
        using_history();
        read_history(path);
        stifle_history(HISTORY_LINES);
    }
    int code = converse(engine, request, system, first, terminal, error);
    if (has_history) write_history(path);
    return code;
}
