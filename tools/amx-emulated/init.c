/* tools/amx-emulated/init.c - the emulated machine's only program of its own (PID 1). Runs the lines of /commands,
 *     NAME LEVEL PROGRAM ARGUMENT...
 * with MOEBIUS_CPU=LEVEL (-: without), and writes to I/O port 0xE9, which the emulator copies to its standard output, for each:
 *     begin NAME
 *     line TEXT...                  what it printed
 *     file BYTES, data HEX...       what it left in /out, if anything
 *     end NAME EXIT-CODE SECONDS
 * and at last `done`. Then it switches the machine off. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_WORDS = 32, LINE_BYTES = 64, PORT = 0xe9, POWER_PORT = 0x8900 };

static void put(const char *text, size_t n) {
    __asm__ volatile("" : : : "memory"); /* glibc's outsb does not say that it reads memory */
    outsb(PORT, text, n);
}

static void say(const char *format, const char *name, int code, double seconds) {
    char line[256];
    int n = snprintf(line, sizeof line, format, name, code, seconds);
    put(line, (size_t)n);
}

static void fail(const char *what) {
    say("init: %s: %d\n", what, errno, 0);
    reboot(RB_POWER_OFF);
}

/* ---- what a command leaves ---- */

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "r");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*size + 1);
    if (!data || fread(data, 1, *size, file) != *size) fail(path);
    fclose(file);
    return data;
}

/* Lines as they come. */
static void send_text(int pipe_end) {
    FILE *from = fdopen(pipe_end, "r");
    char *line = NULL;
    size_t room = 0;
    if (!from) fail("fdopen");
    for (ssize_t n; (n = getline(&line, &room, from)) > 0;) {
        put("line ", 5);
        put(line, (size_t)n - (line[n - 1] == '\n'));
        put("\n", 1);
    }
    free(line);
    fclose(from);
}

static void send_data(const char *path) {
    static const char digit[] = "0123456789abcdef";
    size_t size = 0;
    char *data = read_file(path, &size), line[5 + 2 * LINE_BYTES + 1] = "data ";
    if (!data) return;
    say("file %s%d\n", "", (int)size, 0);
    for (size_t at = 0; at < size; at += LINE_BYTES) {
        size_t n = 5;
        for (size_t i = at; i < size && i < at + LINE_BYTES; i++) {
            line[n++] = digit[(uint8_t)data[i] >> 4];
            line[n++] = digit[data[i] & 15];
        }
        line[n++] = '\n';
        put(line, n);
    }
    free(data);
}

/* ---- commands ---- */

static void become(char **words, int out) {
    dup2(out, 1);
    dup2(out, 2);
    if (strcmp(words[1], "-")) setenv("MOEBIUS_CPU", words[1], 1);
    execv(words[2], words + 2);
    perror(words[2]);
    _exit(127);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run(char *line) {
    char *words[MAX_WORDS + 1] = {0};
    int n = 0, status = 0, ends[2];
    for (char *word; n < MAX_WORDS && (word = strsep(&line, " "));) words[n++] = word;
    if (n < 3) return;
    say("begin %s\n", words[0], 0, 0);
    unlink("/out");
    if (pipe2(ends, O_CLOEXEC)) fail("pipe");
    double start = now();
    pid_t child = fork();
    if (child == 0) become(words, ends[1]);
    close(ends[1]);
    send_text(ends[0]);
    waitpid(child, &status, 0);
    double seconds = now() - start;
    send_data("/out");
    say("end %s %d %.3f\n", words[0], WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), seconds);
}

int main(void) {
    if (iopl(3)) fail("iopl");
    mkdir("/proc", 0700);
    mkdir("/sys", 0700);
    mkdir("/dev", 0700);
    mkdir("/tmp", 0700);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    size_t size = 0;
    char *commands = read_file("/commands", &size);
    if (!commands) fail("/commands");
    commands[size] = 0;
    for (char *rest = commands, *line; (line = strsep(&rest, "\n"));) run(line);
    put("done\n", 5);
    sleep(1);
    for (const char *c = "Shutdown"; *c; c++) outb((unsigned char)*c, POWER_PORT);
    reboot(RB_POWER_OFF);
    return 0;
}
