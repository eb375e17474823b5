/* sched/sched.h - continuous batching: many sequences, one batch a step.
 *
 * sched_submit and sched_cancel may be called by any thread: they put a note into an inbox. Everything else
 * belongs to the engine thread, which calls sched_step in a loop and is the only one that touches sequences,
 * pages and backend.
 *
 * A step fills one batch: first one row for every sequence that decodes, then prompt chunks of the oldest
 * sequences within the token budget (a waiting prompt always gets a share, so nobody starves); runs
 * forward(); samples; and tells each request's owner by callback. On exhaustion of pages the youngest
 * sequence goes back to the waiting queue with its tokens kept (what is not in the cache any more is computed again). Time
 * and randomness come from outside, so that tests can simulate.
 *
 * With prefix_caching a sequence begins with the full pages that hold its first tokens, whoever computed them: a page stays
 * findable until it is needed for something else.
 *
 * With a disk (cache/disk.h) computed pages are copied there, and a sequence whose beginning it has waits for it while others
 * compute, if reading is quicker than computing.
 *
 * With max_drafts, a sequence that decodes also computes the tokens that it guesses to come (draft.h), and keeps those that
 * are what it chooses: several tokens a step, the same answer.
 *
 * Where the backend picks tokens by itself and runs ahead, nothing is guessed, and every sequence's next token is such a pick,
 * the next step is started before this one's tokens are read. A sequence that ends with this token has a row too many in it: nobody looks at
 * that one, and its pages become free when the step has ended. Whatever else happens (an arrival that can be let in, a
 * cancellation, no free page, a failure) waits until no step is ahead.
 * Includes: base, cache, model, text, grammar, backend, forward. */
#ifndef MOEBIUS_SCHED_SCHED_H
#define MOEBIUS_SCHED_SCHED_H

#include "backend/backend.h"
#include "cache/disk.h"
#include "grammar/grammar.h"
#include "sched/sample.h"
#include "text/tokenizer.h"

struct sched;

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_ERROR };

enum { SCHED_MAX_LOGPROBS = 20 };

/* Something happened to a request. Every pointer is valid during the callback only. */
struct sched_event {
    uint64_t id;
    void *context; /* the request's */

    /* A prompt token scored (request.prompt_logprobs), in order; `token` is the prompt's. The first has no
     * logprob: NAN. */
    bool is_prompt;
    int32_t token;                   /* -1: none (a flush of held-back text, an end without a token) */
    float logprob;                   /* of `token`, if logprobs were asked for */
    const struct token_logprob *top; /* [n_top] */
    int n_top;

    const char *text; /* [text_size] text that is now certain: whole code points, stop strings cut out */
    size_t text_size;

    enum finish_reason finish;    /* not NONE: the last event of this request; its pages are free, or will be after the
                                     step that is ahead */
    const char *stop_string;      /* FINISH_STOP by a stop string, else NULL */
    int32_t stop_token;           /* FINISH_STOP by a token (eos or stop_tokens), else -1 */
    const struct mo_error *error; /* FINISH_ERROR */

    int n_prompt, n_generated, n_cached; /* tokens so far; cached: prompt tokens not computed again */
    double prompt_s, answer_s; /* from being let in to the first token, and from there to the latest; 0 before */
};
typedef void sched_callback(const struct sched_event *event);

/* Copied by sched_submit, which keeps a reference of its own to the grammar. Zero-initialise, then
 * sampling_init(&request.sampling). */
struct sched_request {
    const int32_t *prompt; /* [n_prompt] ids in the vocabulary, n_prompt >= 1 */
    int n_prompt;
    int max_tokens; /* >= 0; 0 scores the prompt only. Cut down to what max_model_len leaves: then
                       FINISH_LENGTH */
    int min_tokens; /* eos and stop_tokens cannot be chosen before that many */
    bool ignore_eos;
    struct sampling sampling;
    uint32_t choice;            /* index among the n choices of one API request */
    const int32_t *stop_tokens; /* [n_stop_tokens] besides the model's eos */
    int n_stop_tokens;
    const char *const *stop; /* [n_stop] strings, found across token borders */
    int n_stop;
    /* What the answer must look like; NULL: anything. What would stop it can only be chosen where it may end, and it ends by
     * itself (FINISH_STOP) where nothing can follow. */
    struct grammar *grammar;
    int32_t grammar_after; /* with a grammar: it begins behind the first generated token like this; -1: at once */
    int min_indent; /* > 0: a line after the first that begins with fewer blanks or tabs ends the answer before it, and ... */
    double line_limit_s; /* > 0: ... so does this time after the first token, once a line has ended: FINISH_LENGTH */
    bool include_stop;   /* keep the stop string, or the text of the stop token, in the text */
    bool keep_special;   /* special tokens show up in the text */
    int n_logprobs;      /* -1: none; 0 .. SCHED_MAX_LOGPROBS: the token's, and the n best */
    bool prompt_logprobs;
    bool leaves_no_file; /* its pages stay in memory */
    uint64_t cache_salt; /* 0, or 2^63 and above: pages of the cache are shared only among requests with the same one */
    sched_callback *callback; /* on the engine thread; must not block */
    void *context;
};

struct sched_options {
    struct backend *backend;
    const struct model *model;
    const struct tokenizer *tokenizer; /* NULL: events carry no text, stop strings are refused */
    const int32_t *eos;                /* [n_eos] */
    int n_eos;
    int max_model_len;          /* tokens a sequence may have, prompt and answer together */
    int max_num_seqs;           /* sequences running at once; more wait */
    int max_num_batched_tokens; /* rows a step, >= max_num_seqs: the backend's max_rows */
    int max_logits;             /* logit rows a step, >= max_num_seqs: the backend's max_logits */
    int n_pages;
    int n_near;          /* V4: near parts of pages (near.h), n_pages at most; 0: n_pages */
    bool prefix_caching; /* sequences share the pages of what they have in common from the start */
    struct disk *disk;   /* NULL: none. Wants prefix_caching, and a backend that copies pages; outlives the scheduler */
    int max_drafts; /* 0 .. DRAFT_MAX: tokens to guess a sequence and step, where rows and logits are left over; 0 for V4 */
    double (*clock)(void *context); /* seconds, monotonic; NULL: the system's */
    void *clock_context;
};

int sched_create(struct sched **sched, const struct sched_options *options, struct mo_error *error);
void sched_destroy(struct sched *sched); /* cancels what is left; accepts NULL */

/* Any thread. MO_E_LIMIT if the prompt leaves no room below max_model_len (the message has the numbers) or
 * could never fit the pages; MO_E_INVALID for bad fields. No callback is called from here. */
int sched_submit(struct sched *sched, const struct sched_request *request, uint64_t *id, struct mo_error *error);
/* Any thread. The request ends with FINISH_CANCELLED at the next step that is planned; an unknown or finished id is
 * ignored. */
void sched_cancel(struct sched *sched, uint64_t id);

/* Engine thread: takes notes from the inbox and runs one step. Returns whether there was anything to do. */
bool sched_step(struct sched *sched);
/* Engine thread, or when it has ended: leaves what the disk does not have yet to the disk's thread, for up to limit_s. */
void sched_save(struct sched *sched, double limit_s);
/* Engine thread: sleeps until there is something to do or sched_wake is called (any thread). */
void sched_wait(struct sched *sched);
void sched_wake(struct sched *sched);

/* Buckets of a histogram as /metrics prints it. */
enum { SCHED_BUCKETS = 24 };
struct sched_histogram {
    uint64_t count[SCHED_BUCKETS]; /* count[i]: values <= bucket[i], not cumulative; the last is the rest */
    uint64_t total;
    double sum;
};
extern const double sched_bucket_s[SCHED_BUCKETS - 1], sched_bucket_n[SCHED_BUCKETS - 1]; /* of seconds, of tokens */

/* Any thread: a consistent copy. */
struct sched_stats {
    int n_running, n_waiting;
    int pages_total, pages_free;
    uint64_t prompt_tokens, generated_tokens, steps, preemptions;
    uint64_t prefix_queried_tokens, prefix_found_tokens; /* of prompts: looked for in the cache, and found */
    uint64_t disk_queried_tokens,
        disk_found_tokens;         /* of prompts, not in memory: the latter also count as found above */
    uint64_t disk_forgotten_pages; /* gone from memory before the disk had room for them */
    bool has_disk;
    struct disk_stats disk;
    uint64_t drafts, draft_tokens, accepted_tokens; /* rows of guesses, the guesses, and those that were right */
    uint64_t finished[FINISH_ERROR + 1];            /* by enum finish_reason */
    double step_s, forward_s; /* time inside sched_step, and of it starting steps and waiting for them */
    double prompt_s;          /* from being let in to the first token, of all that came so far */
    struct sched_histogram first_token_s, inter_token_s, request_s;
    /* Parts of request_s: until let in, until the first token, until the last; and the latter two. */
    struct sched_histogram queue_s, prefill_s, decode_s, inference_s;
    struct sched_histogram prompt_n, answer_n, max_n, step_n; /* tokens: a request's, the most it may get, a step's */
};
void sched_stats_get(struct sched *sched, struct sched_stats *stats);

#endif
