#include "server/token_event.h"

#include <stdlib.h>
#include <string.h>

static int stop_index(const struct sched_event *event, const char *const *stop, int n_stop) {
    for (int i = 0; event->stop_string && i < n_stop; i++) {
        if (strcmp(event->stop_string, stop[i]) == 0) return i;
    }
    return -1;
}

struct token_event *token_event_copy(const struct sched_event *event, int choice, const char *const *stop, int n_stop) {
    size_t top_bytes = (size_t)event->n_top * sizeof *event->top;
    size_t bytes = sizeof(struct token_event) + top_bytes + event->text_size;
    struct token_event *copy = malloc(bytes);
    if (!copy) return NULL;
    char *top = (char *)(copy + 1), *text = top + top_bytes;
    if (event->n_top) memcpy(top, event->top, top_bytes);
    if (event->text_size) memcpy(text, event->text, event->text_size);
    *copy = (struct token_event){
        .choice = choice,
        .is_prompt = event->is_prompt,
        .token = event->token,
        .logprob = event->logprob,
        .finish = event->finish,
        .stop_index = stop_index(event, stop, n_stop),
        .stop_token = event->stop_token,
        .n_prompt = event->n_prompt,
        .n_generated = event->n_generated,
        .n_cached = event->n_cached,
        .prompt_s = event->prompt_s,
        .answer_s = event->answer_s,
        .n_top = event->n_top,
        .text_size = event->text_size,
        .bytes = bytes,
        .top = (const struct token_logprob *)(const void *)top,
        .text = text,
    };
    return copy;
}
