#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/json.h"
#include "base/memory.h"
#include "find/pull.h"

static const double REDRAW_S = 0.25;

/* "31.4 GB", "812 kB" */
static const char *bytes_text(char text[32], double bytes) {
    if (bytes >= 1e9)
        snprintf(text, 32, "%.2f GB", bytes / 1e9);
    else if (bytes >= 1e6)
        snprintf(text, 32, "%.1f MB", bytes / 1e6);
    else if (bytes >= 1e3)
        snprintf(text, 32, "%.1f kB", bytes / 1e3);
    else
        snprintf(text, 32, "%.0f bytes", bytes);
    return text;
}

static const char *time_text(char text[32], double seconds) {
    if (seconds >= 3600)
        snprintf(text, 32, "%.0f h %02.0f min", (double)(int)(seconds / 3600), (double)((int)(seconds / 60) % 60));
    else if (seconds >= 60)
        snprintf(text, 32, "%d min %02d s", (int)seconds / 60, (int)seconds % 60);
    else
        snprintf(text, 32, "%.0f s", seconds);
    return text;
}

static bool is_counted(const struct hub_file *file) {
    return file->is_wanted && !file->is_copy;
}

/* Whether it could run here: weights lie in memory, unless experts stay on disk. */
static void say_what_fits(const struct hub_pull *pull) {
    double weights = 0, memory = memory_available_bytes();
    char a[32], b[32];
    for (int i = 0; i < pull->listing.n; i++) {
        const struct hub_file *file = &pull->listing.files[i];
        const char *dot = strrchr(file->path, '.');
        if (is_counted(file) && dot && (!strcmp(dot, ".safetensors") || !strcmp(dot, ".gguf")))
            weights += (double)file->size;
    }
    if (weights <= 0 || memory <= 0) return;
    fprintf(stderr, "Weights of %s; this machine has %s of memory free%s\n", bytes_text(a, weights),
            bytes_text(b, memory),
            weights < 0.9 * memory ? "" : ": not all of it fits (`moebius plan` says what does, and how fast)");
}

void pull_view_begin(struct pull_view *view, const struct hub_pull *pull) {
    char total[32], there[32];
    view->total = view->was_there = 0;
    view->n_files = 0;
    for (int i = 0; i < pull->listing.n; i++) {
        const struct hub_file *file = &pull->listing.files[i];
        if (!is_counted(file)) continue;
        view->n_files++;
        view->total += file->size;
        view->was_there += hub_cache_bytes(&pull->cache, file);
    }
    view->is_terminal = isatty(STDERR_FILENO);
    view->shown_s = clock_now_s();
    if (view->start_s == 0) view->start_s = view->shown_s; /* else it is listed again */
    view->speed = 0;
    view->shown_received = atomic_load(&pull->n_received);
    if (!view->is_terminal) return;
    fprintf(stderr, "%s at %.10s: %d files, %s, of which %s are here\n", pull->model, pull->listing.commit,
            view->n_files, bytes_text(total, (double)view->total), bytes_text(there, (double)view->was_there));
    if (!view->is_judged) say_what_fits(pull);
}

void pull_view_note(void *context, const char *line) {
    const struct pull_view *view = context;
    fprintf(stderr, "%smoebius pull: %s\n", view->is_terminal ? "\r\033[K" : "", line);
}

void pull_view_tick(void *context, const struct hub_pull *pull) {
    struct pull_view *view = context;
    double now = clock_now_s(), passed = now - view->shown_s;
    if (!view->is_terminal || passed < REDRAW_S) return;
    long long received = atomic_load(&pull->n_received), there = atomic_load(&pull->n_there);
    double speed = (double)(received - view->shown_received) / passed;
    char left[32] = "";
    view->speed = view->speed > 0 ? 0.95 * view->speed + 0.05 * speed : speed; /* over about five seconds */
    view->shown_s = now;
    view->shown_received = received;
    if (view->speed > 0 && there < view->total) time_text(left, (double)(view->total - there) / view->speed);
    fprintf(stderr, "\r\033[K%d of %d files, %.2f of %.2f GB, %.1f MB/s%s%s", atomic_load(&pull->n_files_done),
            view->n_files, (double)there / 1e9, (double)view->total / 1e9, view->speed / 1e6, *left ? ", " : "", left);
    if (*left) fputs(" left", stderr);
    fflush(stderr);
}

void pull_view_end(const struct pull_view *view) {
    if (view->is_terminal) fputs("\r\033[K", stderr);
}

void pull_view_done(const struct pull_view *view, const struct hub_pull *pull) {
    double received = (double)atomic_load(&pull->n_received), seconds = clock_now_s() - view->start_s;
    if (received > 0)
        fprintf(stderr, "%s: %d files, %.3f GB, %.3f GB of them now, in %.1f s (%.1f MB/s); hashes are right\n",
                pull->model, view->n_files, (double)view->total / 1e9, received / 1e9, seconds,
                received / 1e6 / (seconds > 0 ? seconds : 1));
    else
        fprintf(stderr, "%s: %d files, %.3f GB, all here already\n", pull->model, view->n_files,
                (double)view->total / 1e9);
}

void pull_print_plan(const struct pull_view *view, const struct hub_pull *pull) {
    char a[32], b[32], c[32];
    int64_t left = hub_cache_free_bytes(&pull->cache);
    for (int i = 0; i < pull->listing.n; i++) {
        const struct hub_file *file = &pull->listing.files[i];
        int64_t there = hub_cache_bytes(&pull->cache, file);
        if (!file->is_wanted) continue;
        printf("%12s  %-8s  %s\n", bytes_text(a, (double)file->size),
               hub_cache_has(&pull->cache, file) ? "is here"
               : there                           ? "in part"
                                                 : "",
               file->path);
    }
    printf("%s at %s: %d files, %s; %s to download", pull->model, pull->listing.commit, view->n_files,
           bytes_text(a, (double)view->total), bytes_text(b, (double)(view->total - view->was_there)));
    if (left >= 0) printf(", %s free", bytes_text(c, (double)left));
    printf("\n");
}

int pull_print_json(const struct pull_view *view, const struct hub_pull *pull, const char *path, bool is_dry,
                    struct mo_error *error) {
    json_t *files = json_array();
    for (int i = 0; i < pull->listing.n; i++) {
        const struct hub_file *file = &pull->listing.files[i];
        if (!file->is_wanted) continue;
        json_array_append_new(files, json_pack("{ss sI sI ss}", "path", file->path, "bytes", (json_int_t)file->size,
                                               "bytes_here", (json_int_t)hub_cache_bytes(&pull->cache, file), "blob",
                                               file->hash));
    }
    json_t *root = json_pack("{ss ss ss so sb sI sI sI sf so}", "model", pull->model, "revision", pull->revision,
                             "commit", pull->listing.commit, "path", json_lossy(path), "dry_run", is_dry, "bytes",
                             (json_int_t)view->total, "bytes_were_here", (json_int_t)view->was_there, "bytes_received",
                             (json_int_t)atomic_load(&pull->n_received), "seconds",
                             is_dry ? 0.0 : clock_now_s() - view->start_s, "files", files);
    return json_print(root, error);
}

int pull_print_choices(const struct hub_pull *pull, bool is_json, struct mo_error *error) {
    struct hub_choice choice;
    char size[32];
    json_t *choices = is_json ? json_array() : NULL;
    if (!is_json) fprintf(stderr, "%s holds GGUF files, of which one is a whole model:\n", pull->model);
    for (int at = 0; hub_next_choice(&pull->listing, &at, &choice);) {
        if (is_json) {
            json_array_append_new(choices, json_pack("{ss sI si}", "include", choice.path, "bytes",
                                                     (json_int_t)choice.size, "files", choice.n_files));
            continue;
        }
        fprintf(stderr, "%12s  --include '%s'", bytes_text(size, (double)choice.size), choice.path);
        if (choice.n_files > 1) fprintf(stderr, "  (%d files)", choice.n_files);
        fputc('\n', stderr);
    }
    if (!is_json) return 0;
    return json_print(json_pack("{ss ss so}", "model", pull->model, "commit", pull->listing.commit, "choices", choices),
                      error);
}
