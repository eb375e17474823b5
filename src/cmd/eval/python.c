#include "cmd/eval/python.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_REPLY_BYTES = 64 << 20 };

/* A version at once; then one line of JSON in, one out, or nothing for nothing. What parses may warn, and Ctrl-C may come:
 * neither is worth a traceback. */
static const char script[] = "import ast, json, signal, sys, warnings\n"
                             "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
                             "warnings.simplefilter('ignore')\n"
                             "print(sys.version.split()[0], flush=True)\n"
                             "def parses(source):\n"
                             "    try:\n"
                             "        ast.parse(source)\n"
                             "        return True\n"
                             "    except (SyntaxError, ValueError, RecursionError, MemoryError):\n"
                             "        return False\n"
                             "text = sys.stdin.read()\n"
                             "if text:\n"
                             "    print(json.dumps([parses(source) for source in json.loads(text)]))\n";

static int spawn(struct eval_python *p, const int to[2], const int from[2]) {
    char *const arguments[] = {"python3", "-I", "-c", (char *)(uintptr_t)script, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, from[1], STDOUT_FILENO);
    int reason = posix_spawnp(&p->pid, "python3", &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (reason) p->pid = 0;
    return reason;
}

/* The ends that are ours, as streams. */
static void open_streams(struct eval_python *p, const int to[2], const int from[2]) {
    close(to[0]);
    close(from[1]);
    p->to = fdopen(to[1], "w");
    p->from = fdopen(from[0], "r");
    if (!p->to) close(to[1]);
    if (!p->from) close(from[0]);
}

/* The first line is the version: three numbers, or this is no Python that we know. */
static bool read_version(struct eval_python *p) {
    if (!p->to || !p->from || !fgets(p->version, sizeof p->version, p->from)) return false;
    p->version[strcspn(p->version, "\r\n")] = 0;
    return p->version[0] == '3';
}

bool eval_python_start(struct eval_python *p) {
    int to[2], from[2];
    *p = (struct eval_python){0};
    if (pipe2(to, O_CLOEXEC)) {
        snprintf(p->reason, sizeof p->reason, "no pipe to python3: %s", strerror(errno));
        return false;
    }
    if (pipe2(from, O_CLOEXEC)) {
        snprintf(p->reason, sizeof p->reason, "no pipe from python3: %s", strerror(errno));
        close(to[0]);
        close(to[1]);
        return false;
    }
    int reason = spawn(p, to, from);
    open_streams(p, to, from);
    bool works = !reason && read_version(p);
    if (reason) snprintf(p->reason, sizeof p->reason, "python3 cannot be started: %s", strerror(reason));
    if (!works && !reason) snprintf(p->reason, sizeof p->reason, "python3 was started, but did not say its version");
    if (!works) eval_python_stop(p);
    return works;
}

/* All of it is sent before anything is read: the child answers only when it has read everything. */
static bool send(struct eval_python *p, const json_t *sources) {
    bool failed = json_dumpf(sources, p->to, JSON_ENSURE_ASCII) != 0;
    failed |= fclose(p->to) != 0;
    p->to = NULL;
    return !failed;
}

static json_t *receive(struct eval_python *p) {
    char *line = NULL;
    size_t capacity = 0;
    json_t *root = NULL;
    ssize_t size = getline(&line, &capacity, p->from);
    if (size > 0 && size <= MAX_REPLY_BYTES) json_parse(line, (size_t)size, "python3", &root, NULL);
    free(line);
    return root;
}

bool eval_python_parse(struct eval_python *p, const json_t *sources, bool *is_python) {
    size_t n = json_array_size(sources);
    bool sent = send(p, sources);
    json_t *reply = sent ? receive(p) : NULL;
    bool answered = json_is_array(reply) && json_array_size(reply) == n;
    for (size_t i = 0; i < n && answered; i++) is_python[i] = json_is_true(json_array_get(reply, i));
    json_decref(reply);
    if (!answered) snprintf(p->reason, sizeof p->reason, "python3 ended without an answer");
    return answered;
}

void eval_python_stop(struct eval_python *p) {
    if (p->to) fclose(p->to);
    if (p->from) fclose(p->from);
    p->to = p->from = NULL;
    while (p->pid && waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) continue;
    p->pid = 0;
}
