#include "sched/draft.h"

/* How many tokens up to and with `at` are the same as at the end, at most DRAFT_MATCH_MAX. */
static int match_length(const int32_t *tokens, int n_tokens, int at) {
    int n = 0;
    while (n < DRAFT_MATCH_MAX && n <= at && tokens[at - n] == tokens[n_tokens - 1 - n]) n++;
    return n;
}

int draft_find(const int32_t *tokens, int n_tokens, int32_t *draft, int most) {
    int longest = DRAFT_MATCH_MIN - 1, from = 0;
    for (int at = n_tokens - 2; at >= 0 && longest < DRAFT_MATCH_MAX; at--) {
        if (tokens[at] != tokens[n_tokens - 1]) continue;
        int length = match_length(tokens, n_tokens, at);
        if (length > longest) longest = length, from = at + 1;
    }
    if (!from) return 0;
    for (int i = 0; i < most; i++) { /* past the end the guesses themselves are copied: it repeats itself */
        int at = from + i;
        draft[i] = at < n_tokens ? tokens[at] : draft[at - n_tokens];
    }
    return most;
}

int draft_adapt(int n, int n_right, int most) {
    int next = n_right == n ? 2 * n : n_right + 1;
    return next < most ? next : most;
}
