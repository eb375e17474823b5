/* sim_sched [STEPS] [SEED]: drives the scheduler over a fake backend with random requests, cancellations,
 * failures and too few pages, under a clock of its own. In most epochs the backend picks tokens by itself and takes a
 * step before the last one's tokens are read. After each step it checks what must always hold; each
 * answer is compared, token by token, with what the request gives when it runs alone. Many prompts begin like others, or like
 * what others got for an answer, and find their pages in the cache. In half of the epochs there is a disk below it, which goes
 * on from epoch to epoch, works now and then, and whose files are damaged. The same seed gives the same run. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include "base/log.h"
#include "broken_disk.h"
#include "check_near.h"
#include "fake_backend.h"
#include "sched/sched_state.h"

enum { TEXTS = 3 }; /* that prompts of an epoch begin with: the same but for their first tokens */
enum { MAX_PROMPT = 400, MAX_ANSWER = 300, MAX_TEXT = 8 * MAX_ANSWER, MAX_LIVE = 64, EPOCH_STEPS = 4000 };

/* What the simulation knows of one request. */
struct client {
    bool live, cancelled;
    uint64_t id;
    struct sched_request request;
    int32_t prompt[MAX_PROMPT], answer[MAX_ANSWER];
    int n_answer, n_scored, n_total, n_cached;
    uint64_t hash; /* of prompt and answer so far */
    uint64_t prompt_hash;
    char text[MAX_TEXT];
    size_t text_size;
    struct logit_bias bias[4];
    int32_t stop_tokens[2];
    const char *stop[3];
    int32_t *generated; /* [FAKE_VOCAB] */
    uint8_t in_prompt[FAKE_VOCAB];
    uint64_t deadline_step;
};

static struct {
    uint64_t random, passed, failed, steps, requests, errors, preemptions;
    uint64_t finished[FINISH_ERROR + 1];
    uint64_t tokens_checked, texts_checked, stop_strings, outdents;
    double now_s;
    struct fake_backend fake;
    struct model model;
    struct tokenizer *tokenizer;
    struct sched *sched;
    struct sched_options options;
    struct client clients[MAX_LIVE];
    struct sample_scratch scratch;
    bool step_failed, long_answers, plain_requests, alike_prompts;
    int step_errors;
    uint64_t n_ahead, n_picked, held, found, guessed, right;
    int32_t texts[TEXTS][MAX_PROMPT];
    struct broken_disk broken;
    uint64_t load_steps, disk_found;
    /* of this epoch */
    uint64_t ended[FINISH_ERROR + 1], answered, tokens, submitted;
} sim;

__attribute__((format(printf, 2, 3))) static bool check(bool good, const char *format, ...) {
    if (good) {
        sim.passed++;
        return true;
    }
    if (sim.failed++ < 20) {
        va_list arguments;
        va_start(arguments, format);
        fprintf(stderr, "step %" PRIu64 ": ", sim.steps);
        vfprintf(stderr, format, arguments);
        fputc('\n', stderr);
        va_end(arguments);
    }
    return false;
}

static int below(int n) {
    return (int)((fake_mix(sim.random++) >> 33) % (uint64_t)n);
}

static bool chance(int percent) {
    return below(100) < percent;
}

static float between(float low, float high) {
    return low + (high - low) * (float)below(1 << 20) / (1 << 20);
}

static double sim_clock(void *context) {
    return *(double *)context;
}

/* ---- the answer that a request gives alone ---- */

static bool is_stop_token(const struct client *client, int32_t token) {
    if (token == FAKE_EOS && !client->request.ignore_eos) return true;
    for (int i = 0; i < client->request.n_stop_tokens; i++) {
        if (token == client->stop_tokens[i]) return true;
    }
    return false;
}

static int32_t token_at(const struct client *client, int i) {
    if (i < 0) return -1;
    return i < client->request.n_prompt ? client->prompt[i] : client->answer[i - client->request.n_prompt];
}

/* After `n` tokens, whose hash is given. */
static void expected_logits(const struct client *client, int n, uint64_t hash, float *logits) {
    int32_t previous = token_at(client, n - 2), last = token_at(client, n - 1);
    fake_logits(fake_context(sim.fake.forgetful, hash, previous, last), FAKE_VOCAB, logits);
}

static int32_t expected_token(struct client *client, float *logits) {
    struct sampling sampling = client->request.sampling;
    uint8_t latest[FAKE_VOCAB] = {0};
    int n = client->request.n_prompt + client->n_answer;
    bool is_part = sampling.repetition_last_n > 0;
    for (int i = n - sampling.repetition_last_n; is_part && i < n; i++) {
        if (i >= 0) latest[token_at(client, i)] = 1;
    }
    struct token_counts counts = {client->generated, is_part ? latest : client->in_prompt};
    float masked[FAKE_VOCAB];
    expected_logits(client, n, client->hash, logits);
    memcpy(masked, logits, sizeof masked);
    for (int i = 0; i < FAKE_VOCAB; i++) {
        if (client->n_answer < client->request.min_tokens && is_stop_token(client, i)) masked[i] = -INFINITY;
    }
    return sample_token(&sampling, masked, &counts, client->request.choice, (uint32_t)client->n_answer, &sim.scratch);
}

static void check_logprobs(const struct client *client, const struct sched_event *event, const float *logits) {
    struct token_logprob top[SCHED_MAX_LOGPROBS];
    int n_top = client->request.n_logprobs > 0 ? client->request.n_logprobs : 0;
    float logprob = sample_logprobs(logits, FAKE_VOCAB, event->token, n_top, top);
    check(event->logprob == logprob, "request %" PRIu64 ": logprob", event->id);
    bool same = event->n_top == n_top;
    for (int i = 0; same && i < n_top; i++) {
        same = event->top[i].token == top[i].token && event->top[i].logprob == top[i].logprob;
    }
    check(same, "request %" PRIu64 ": best logprobs", event->id);
}

/* The stop string that ends first in `text`; *cut: where the text is cut. */
static const char *find_stop(const struct client *client, const char *text, size_t size, size_t *cut) {
    for (size_t end = 1; end <= size; end++) {
        const char *found = NULL;
        for (int i = 0; i < client->request.n_stop; i++) {
            size_t length = strlen(client->stop[i]);
            if (length > end || memcmp(text + end - length, client->stop[i], length) != 0) continue;
            if (!found || length > strlen(found)) found = client->stop[i];
        }
        if (!found) continue;
        *cut = client->request.include_stop ? end : end - strlen(found);
        return found;
    }
    *cut = size;
    return NULL;
}

/* Where a line after the first begins with too few blanks: the place of its first other character, or size. */
static size_t find_outdent(const struct client *client, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (text[i] != '\n') continue;
        size_t n = 0;
        while (i + 1 + n < size && (text[i + 1 + n] == ' ' || text[i + 1 + n] == '\t')) n++;
        if (n < (size_t)client->request.min_indent && i + 1 + n < size) return i + 1 + n;
    }
    return size;
}

static void check_text(const struct client *client, const struct sched_event *event) {
    int n = client->n_answer;
    if (event->stop_token >= 0 && !client->request.include_stop) n--;
    char *text = NULL;
    size_t size = 0, cut = 0;
    struct mo_error error;
    bool skip = !client->request.keep_special;
    if (tokenizer_decode(sim.tokenizer, client->answer, (size_t)n, skip, &text, &size, &error)) abort();
    const char *found = find_stop(client, text, size, &cut);
    size_t outdent = find_outdent(client, text, cut);
    bool outdented = outdent < cut;
    cut = outdent;
    bool same = cut == client->text_size && memcmp(text, client->text, cut) == 0;
    check(same, "request %" PRIu64 ": text '%.*s', expected '%.*s'", event->id, (int)client->text_size, client->text,
          (int)cut, text);
    free(text);
    sim.texts_checked++;
    if (outdented) { /* perhaps while text was held back for a stop string, so later than it could be known */
        bool by_string = event->finish == FINISH_STOP && event->stop_token < 0;
        check(!by_string, "request %" PRIu64 ": stopped behind the end of its text", event->id);
        sim.outdents++;
        return;
    }
    if (event->finish == FINISH_STOP && event->stop_token < 0) {
        check(found && event->stop_string && strcmp(found, event->stop_string) == 0, "request %" PRIu64 ": stop string",
              event->id);
        sim.stop_strings++;
    }
    if (event->finish == FINISH_LENGTH) {
        check(!found, "request %" PRIu64 ": runs past a stop string", event->id);
        check(client->n_answer == client->n_total - client->request.n_prompt, "request %" PRIu64 ": ends early",
              event->id);
    }
    if (n > 0) { /* it did not run on after the stop string */
        if (tokenizer_decode(sim.tokenizer, client->answer, (size_t)n - 1, skip, &text, &size, &error)) abort();
        check(!find_stop(client, text, size, &cut), "request %" PRIu64 ": stopped late", event->id);
        free(text);
    }
}

/* ---- events ---- */

static void on_prompt_token(struct client *client, const struct sched_event *event) {
    int i = client->n_scored++;
    check(client->request.prompt_logprobs && i < client->request.n_prompt && client->n_answer == 0,
          "request %" PRIu64 ": unexpected prompt token", event->id);
    check(event->token == client->prompt[i], "request %" PRIu64 ": prompt token %d", event->id, i);
    check(event->finish == FINISH_NONE, "request %" PRIu64 ": ends with a prompt token", event->id);
    if (i == 0) {
        check(isnan(event->logprob), "request %" PRIu64 ": the first token has a logprob", event->id);
    } else {
        float logits[FAKE_VOCAB];
        expected_logits(client, i, client->prompt_hash, logits);
        check_logprobs(client, event, logits);
    }
    client->prompt_hash = fake_hash_add(client->prompt_hash, event->token);
}

static void on_token(struct client *client, const struct sched_event *event) {
    float logits[FAKE_VOCAB];
    int32_t expected = expected_token(client, logits);
    check(event->token == expected, "request %" PRIu64 ": token %d is %d, alone it is %d", event->id, client->n_answer,
          event->token, expected);
    if (client->request.n_logprobs >= 0) check_logprobs(client, event, logits);
    bool scored = !client->request.prompt_logprobs || client->n_scored == client->request.n_prompt;
    check(scored, "request %" PRIu64 ": a token before the prompt is scored", event->id);
    if (!check(client->n_answer < MAX_ANSWER, "request %" PRIu64 ": too many tokens", event->id)) return;
    client->answer[client->n_answer++] = event->token;
    client->generated[event->token]++;
    client->hash = fake_hash_add(client->hash, event->token);
    sim.tokens_checked++;
    sim.tokens++;
}

/* Which end the tokens so far call for. */
static void check_end(const struct client *client, const struct sched_event *event) {
    const struct sched_request *request = &client->request;
    int32_t last = client->n_answer > 0 ? client->answer[client->n_answer - 1] : -1;
    bool stopped = last >= 0 && client->n_answer > request->min_tokens && is_stop_token(client, last);
    bool full = client->n_answer == client->n_total - request->n_prompt;
    enum finish_reason finish = event->finish;
    bool good = finish == FINISH_NONE ? event->is_prompt || (!stopped && !full) : true;
    if (finish == FINISH_STOP) good = event->stop_token >= 0 ? stopped && event->stop_token == last : !stopped;
    if (finish == FINISH_LENGTH) good = (full || request->min_indent > 0) && !stopped; /* check_text knows more */
    if (finish == FINISH_CANCELLED) good = client->cancelled;
    if (finish == FINISH_ERROR) good = sim.step_failed && event->error && event->error->code == MO_E_NUMERIC;
    check(good, "request %" PRIu64 ": finish %d after %d tokens", event->id, finish, client->n_answer);
}

static void on_end(struct client *client, const struct sched_event *event) {
    check_text(client, event);
    if (event->finish == FINISH_LENGTH && client->request.prompt_logprobs) {
        check(client->n_scored == client->request.n_prompt, "request %" PRIu64 ": prompt half scored", event->id);
    }
    check(sim.steps <= client->deadline_step, "request %" PRIu64 ": starved, %" PRIu64 " steps late", event->id,
          sim.steps - client->deadline_step);
    sim.ended[event->finish]++;
    sim.step_errors += event->finish == FINISH_ERROR;
    if (client->n_answer > 0) sim.answered++;
    free(client->generated);
    client->live = false;
}

/* What was found in the cache: whole pages, and never the last token. */
static void check_cached(struct client *client, const struct sched_event *event) {
    int n = event->n_cached;
    bool good = n >= 0 && n % KV_PAGE_TOKENS == 0 && n < event->n_prompt;
    if (!sim.options.prefix_caching || client->request.prompt_logprobs) good = n == 0;
    bool first = client->n_answer + client->n_scored <= 1;
    check(good && (first || n == client->n_cached), "request %" PRIu64 ": %d of %d tokens cached", event->id, n,
          event->n_prompt);
    client->n_cached = n;
}

static void on_event(const struct sched_event *event) {
    struct client *client = event->context;
    if (!check(client->live && client->id == event->id, "request %" PRIu64 ": event after its end", event->id)) return;
    if (event->is_prompt)
        on_prompt_token(client, event);
    else if (event->token >= 0)
        on_token(client, event);
    check(event->n_prompt == client->request.n_prompt && event->n_generated == client->n_answer,
          "request %" PRIu64 ": counts", event->id);
    if (client->text_size + event->text_size <= MAX_TEXT) {
        memcpy(client->text + client->text_size, event->text, event->text_size);
        client->text_size += event->text_size;
    }
    check_cached(client, event);
    check_end(client, event);
    if (event->finish != FINISH_NONE)
        on_end(client, event);
    else if (event->token >= 0 && below(2000) == 0) { /* from inside a callback */
        client->cancelled = true;
        sched_cancel(sim.sched, client->id);
    }
}

/* ---- requests ---- */

static void fill_sampling(struct client *client) {
    struct sampling *sampling = &client->request.sampling;
    sampling_init(sampling);
    sampling->temperature = chance(30) ? 0 : between(0.3f, 2);
    if (chance(30)) sampling->top_p = between(0.2f, 1);
    if (chance(30)) sampling->top_k = 1 + below(20);
    if (chance(20)) sampling->min_p = between(0, 0.3f);
    if (chance(15)) sampling->repetition_penalty = between(0.8f, 1.5f);
    if (chance(30)) sampling->repetition_last_n = 1 + below(20);
    if (chance(15)) sampling->presence_penalty = between(-1, 1);
    if (chance(15)) sampling->frequency_penalty = between(-1, 1);
    sampling->seed = fake_mix(sim.random++);
    sampling->bias = client->bias;
    sampling->n_bias = chance(30) ? below(5) : 0;
    for (int i = 0; i < sampling->n_bias; i++) {
        client->bias[i] = (struct logit_bias){below(FAKE_VOCAB), between(-5, 5)};
    }
    if (chance(80)) { /* else the answers would be short */
        sampling->bias = client->bias;
        sampling->n_bias = 1;
        client->bias[0] = (struct logit_bias){FAKE_EOS, -100};
    }
}

/* As most requests are: nothing but the logits chooses their tokens. */
static void make_plain(struct client *client) {
    struct sched_request *request = &client->request;
    struct sampling *sampling = &request->sampling;
    request->n_logprobs = -1;
    request->prompt_logprobs = false;
    request->min_tokens = 0;
    request->ignore_eos = chance(70); /* else the answers would be short */
    sampling->n_bias = 0;
    sampling->repetition_penalty = 1;
    sampling->presence_penalty = sampling->frequency_penalty = 0;
}

/* The prompt begins as another text, or as another request and its answer. */
static void copy_beginning(struct client *client, int n) {
    const struct client *other = &sim.clients[below(MAX_LIVE)];
    if (other == client || chance(50)) {
        memcpy(client->prompt, sim.texts[below(TEXTS)], (size_t)n * sizeof *client->prompt);
        return;
    }
    for (int i = 0; i < n && i < other->request.n_prompt + other->n_answer; i++) {
        int in_answer = i - other->request.n_prompt;
        client->prompt[i] = in_answer < 0 ? other->prompt[i] : other->answer[in_answer];
    }
}

static void fill_request(struct client *client) {
    static const char *const stops[] = {"abcab", "ab",   "aaab", "xyzx", "\xe4\xb8\xad",
                                        "dabc",  "\n\n", "12",   "bca ", "\xe4\xb8\xadx"};
    struct sched_request *request = &client->request;
    int longest = sim.options.max_model_len < MAX_PROMPT ? sim.options.max_model_len : MAX_PROMPT;
    request->n_prompt = 1 + below(chance(60) ? (longest < 40 ? longest : 40) : longest);
    bool shares = chance(sim.alike_prompts ? 90 : 30);
    if (shares) request->n_prompt = 1 + below(longest);
    for (int i = 0; i < request->n_prompt; i++) client->prompt[i] = below(FAKE_VOCAB);
    if (shares) copy_beginning(client, below(request->n_prompt + 1));
    request->prompt = client->prompt;
    request->max_tokens = chance(5) ? 0 : 1 + below(chance(50) ? 20 : MAX_ANSWER);
    request->min_tokens = chance(20) ? below(30) : 0;
    request->ignore_eos = chance(30);
    request->choice = (uint32_t)below(3);
    request->stop_tokens = client->stop_tokens;
    request->n_stop_tokens = chance(15) ? 1 + below(2) : 0;
    for (int i = 0; i < request->n_stop_tokens; i++) client->stop_tokens[i] = below(FAKE_VOCAB);
    request->stop = client->stop;
    request->n_stop = chance(40) ? 1 + below(3) : 0;
    for (int i = 0; i < request->n_stop; i++) client->stop[i] = stops[below(sizeof stops / sizeof *stops)];
    request->include_stop = chance(30);
    request->min_indent = chance(10) ? 1 + below(2) : 0;
    request->keep_special = chance(30);
    request->n_logprobs = chance(20) ? below(SCHED_MAX_LOGPROBS + 1) : -1;
    request->prompt_logprobs = chance(15);
    request->cache_salt = chance(10) ? PREFIX_SALTED | (uint64_t)below(2) : 0;
    if (sim.long_answers && chance(90)) { /* sequences that grow together run out of pages */
        request->n_prompt = 1 + below(20);
        request->max_tokens = 150 + below(MAX_ANSWER - 150);
        request->n_stop = request->n_stop_tokens = 0;
        request->ignore_eos = true;
    }
    request->callback = on_event;
    request->context = client;
    fill_sampling(client);
    if (sim.plain_requests && chance(97)) make_plain(client);
}

static void expect_refused(const struct sched_request *request, int code) {
    int room = sim.options.max_model_len - request->n_prompt - (request->max_tokens > 0);
    int total = request->n_prompt + request->max_tokens;
    if (total > sim.options.max_model_len) total = sim.options.max_model_len;
    int rows = request->max_tokens > 0 ? total - 1 : total;
    bool fits = room >= 0 && rows <= sim.options.n_pages * KV_PAGE_TOKENS;
    check(code == (fits ? 0 : MO_E_LIMIT), "submit of %d + %d tokens: %d", request->n_prompt, request->max_tokens,
          code);
}

/* The oldest request computes a row in each step and is never preempted, so a request ends, at the latest,
 * when all rows of all that live and its own are done one by one, and a row too many of each. */
static uint64_t steps_for_live(void) {
    uint64_t steps = 2;
    for (int i = 0; i < MAX_LIVE; i++) {
        if (sim.clients[i].live) steps += (uint64_t)sim.clients[i].n_total + 1;
    }
    return steps;
}

static void submit(void) {
    struct client *client = NULL;
    for (int i = 0; i < MAX_LIVE && !client; i++) {
        if (!sim.clients[i].live) client = &sim.clients[i];
    }
    if (!client) return;
    memset(client, 0, sizeof *client);
    fill_request(client);
    client->generated = calloc(FAKE_VOCAB, sizeof *client->generated);
    if (!client->generated) abort();
    struct mo_error error;
    int code = sched_submit(sim.sched, &client->request, &client->id, &error);
    expect_refused(&client->request, code);
    if (code) {
        free(client->generated);
        return;
    }
    client->live = true;
    client->n_total = client->request.n_prompt + client->request.max_tokens;
    if (client->n_total > sim.options.max_model_len) client->n_total = sim.options.max_model_len;
    for (int i = 0; i < client->request.n_prompt; i++) {
        client->hash = fake_hash_add(client->hash, client->prompt[i]);
        client->in_prompt[client->prompt[i]] = 1;
    }
    client->deadline_step = sim.steps + steps_for_live();
    sim.submitted++;
}

static void cancel_one(void) {
    struct client *client = &sim.clients[below(MAX_LIVE)];
    if (!client->live) {
        sched_cancel(sim.sched, client->id); /* ended, or never was: ignored */
        return;
    }
    client->cancelled = true;
    sched_cancel(sim.sched, client->id);
    if (chance(20)) sched_cancel(sim.sched, client->id);
}

/* ---- what must hold after each step ---- */

static void count_pages(const struct seq *seq, uint8_t *owners) {
    for (int i = 0; i < seq->kv.n_pages; i++) owners[seq->kv.pages[i]]++;
    int n_full = sim.options.prefix_caching ? seq->n_computed / KV_PAGE_TOKENS : 0;
    check(seq->kv.n_known == n_full, "request %" PRIu64 ": %d of %d full pages are known", seq->id, seq->kv.n_known,
          n_full);
    bool covered = seq->kv.n_pages >= kv_pages_for(seq->n_computed) && seq->kv.n_pages <= seq->kv.capacity;
    check(covered, "request %" PRIu64 ": %d pages for %d rows", seq->id, seq->kv.n_pages, seq->n_computed);
    check(seq->n_computed < seq->n_tokens, "request %" PRIu64 ": nothing left to compute", seq->id);
}

/* The pages of a step at work still have an owner. */
static void check_pages_at_work(const uint8_t *owners) {
    const struct batch *batch = &sim.sched->now->batch;
    int wrong = 0;
    for (int i = 0; sim.sched->started && i < batch->n_seqs; i++) {
        int n_pages = kv_pages_for(batch->seqs[i].first_pos + batch->seqs[i].n_rows);
        for (int p = 0; p < n_pages; p++) wrong += owners[batch->seqs[i].pages[p]] == 0;
    }
    check(wrong == 0, "%d pages of a step at work have no owner", wrong);
}

/* Every page has the users it counts; the free ones have none, and stand in their list once. */
static void check_users(const struct kv_pages *kv, const uint8_t *owners) {
    int n_free = 0, n_unused = 0, wrong = 0;
    for (int i = 0; i < kv->n_pages; i++) {
        wrong += owners[i] != kv->pages[i].users;
        n_unused += owners[i] == 0;
        /* only what can be found may be shared, or could before it lost its near part */
        wrong += owners[i] > 1 && prefix_serial(&kv->tree, i) == 0 && near_has(&kv->near, i);
    }
    for (int32_t i = kv->first; i >= 0 && n_free <= kv->n_pages; i = kv->pages[i].next, n_free++) {
        wrong += kv->pages[i].users != 0;
    }
    check(wrong == 0, "%d pages with other users than they count", wrong);
    check(n_free == kv->n_free && n_unused == n_free, "%d pages unused, %d in the list, %d counted", n_unused, n_free,
          kv->n_free);
}

/* A page that can be found by its tokens holds them. */
static void check_tree(const struct kv_pages *kv) {
    int wrong = 0;
    for (int i = 0; i < kv->n_pages; i++) {
        size_t at = (size_t)i * KV_PAGE_TOKENS;
        uint64_t serial = prefix_serial(&kv->tree, i);
        if (serial == 0) continue;
        wrong += memcmp(kv->tree.tokens + at, sim.fake.pool + at, KV_PAGE_TOKENS * sizeof(int32_t)) != 0;
        wrong += prefix_find(&kv->tree, kv->tree.pages[i].parent, kv->tree.tokens + at) != i;
    }
    check(wrong == 0, "%d pages hold other tokens than they are known by", wrong);
}

static void check_pages(void) {
    static uint8_t owners[4096];
    const struct sched *sched = sim.sched;
    memset(owners, 0, (size_t)sched->kv.n_pages);
    for (int i = 0; i < sched->n_running; i++) count_pages(sched->running[i], owners);
    for (int i = 0; i < sched->n_held; i++) {
        for (int p = 0; p < sched->held[i].n_pages; p++) owners[sched->held[i].pages[p]]++;
    }
    sim.held += (uint64_t)sched->n_held;
    check(sched->started || sched->n_held == 0, "pages are held, and no step is at work");
    check_pages_at_work(owners);
    check_users(&sched->kv, owners);
    int near_wrong = near_faults(sched, sim.options.n_near);
    check(near_wrong == 0, "%d near parts are wrong", near_wrong);
    if (sched->kv.near.place && chance(10)) near_lose_all(sim.sched, &sim.fake);
    check_tree(&sched->kv);
    for (const struct seq *seq = sched->waiting.first; seq; seq = seq->next) {
        check(seq->kv.n_pages == 0 && seq->n_computed == 0, "request %" PRIu64 " waits with pages", seq->id);
    }
}

static void check_order(void) {
    const struct sched *sched = sim.sched;
    uint64_t last = 0;
    bool ordered = true;
    int n_waiting = 0, n_live = 0;
    for (int i = 0; i < sched->n_running; i++) {
        ordered = ordered && sched->running[i]->id > last;
        last = sched->running[i]->id;
    }
    for (const struct seq *seq = sched->waiting.first; seq; seq = seq->next, n_waiting++) {
        ordered = ordered && seq->id > last;
        last = seq->id;
    }
    check(ordered, "the queues are not in order of arrival");
    for (int i = 0; i < MAX_LIVE; i++) n_live += sim.clients[i].live;
    check(n_live == sched->n_running + n_waiting, "%d requests live, %d are known", n_live,
          sched->n_running + n_waiting);
    check(sched->n_running <= sim.options.max_num_seqs, "%d run", sched->n_running);
    struct sched_stats stats;
    sched_stats_get(sim.sched, &stats);
    bool same = stats.n_running == sched->n_running && stats.n_waiting == n_waiting &&
                stats.pages_free == sched->kv.n_free && stats.pages_total == sched->kv.n_pages;
    check(same, "statistics: %d running, %d waiting, %d pages free", stats.n_running, stats.n_waiting,
          stats.pages_free);
}

/* The id that must move on in the next step, and how far it is. */
static uint64_t oldest_live(void) {
    uint64_t id = 0;
    for (int i = 0; i < MAX_LIVE; i++) {
        const struct client *client = &sim.clients[i];
        if (client->live && !client->cancelled && (id == 0 || client->id < id)) id = client->id;
    }
    return id;
}

static int computed_rows(uint64_t id) {
    for (int i = 0; i < sim.sched->n_running; i++) {
        if (sim.sched->running[i]->id == id) return sim.sched->running[i]->n_computed;
    }
    return 0;
}

static bool is_loading(uint64_t id) {
    for (int i = 0; i < sim.sched->n_running; i++) {
        if (sim.sched->running[i]->id == id) return sim.sched->running[i]->load != NULL;
    }
    return false;
}

/* Waiting for the disk is nobody's fault. */
static void excuse_loads(void) {
    int n = 0;
    for (int i = 0; i < sim.sched->n_running; i++) n += sim.sched->running[i]->load != NULL;
    check(n == sim.sched->n_loads, "%d loads, %d counted", n, sim.sched->n_loads);
    sim.load_steps += n > 0;
    for (int i = 0; i < MAX_LIVE && n > 0; i++) sim.clients[i].deadline_step++;
}

static bool is_running(uint64_t id) {
    for (int i = 0; i < sim.sched->n_running; i++) {
        if (sim.sched->running[i]->id == id) return true;
    }
    return false;
}

static void step(void) {
    uint64_t oldest = oldest_live();
    int before = computed_rows(oldest);
    bool came_late =
        sim.sched->started && (!is_running(oldest) || is_loading(oldest)); /* the step was planned without it */
    sim.step_failed = sim.fake.fail_next = chance(1) && chance(5);
    sim.fake.fault_row = chance(50) ? below(3) : -1;
    sim.fake.late = chance(50);
    sim.errors += sim.step_failed;
    sim.step_errors = 0;
    sim.steps++;
    if (sim.options.disk) check(broken_disk_step(&sim.broken), "the disk is larger than it may be, or says");
    bool worked = sched_step(sim.sched);
    sim.now_s += between(0, 0.1f);
    check(worked || oldest == 0 || sim.sched->n_loads > 0, "no step although requests wait");
    excuse_loads();
    sim.fake.fail_next = false;
    check(sim.fake.n_faults == 0, "%d faults in batches", sim.fake.n_faults);
    if (sim.step_failed) {
        bool one_row = sim.fake.fault_row >= 0 && sim.fake.fault_row < sim.sched->now->batch.n_rows;
        check(sim.step_errors <= 1 || !one_row, "one bad row ended %d requests", sim.step_errors);
        for (int i = 0; i < MAX_LIVE; i++) sim.clients[i].deadline_step += sim.fake.sums_up ? KV_PAGE_TOKENS : 1;
    } else if (oldest != 0 && oldest_live() == oldest && !came_late && !is_loading(oldest)) {
        check(computed_rows(oldest) > before, "the oldest stands still");
    }
    check_pages();
    check_order();
    for (int i = 0; i < MAX_LIVE; i++) {
        const struct client *client = &sim.clients[i];
        if (client->live) check(sim.steps <= client->deadline_step, "request %" PRIu64 " starves", client->id);
    }
}

/* As many near parts as running sequences look at, and some more. */
static void limit_near(struct sched_options *o) {
    int n = (sim.fake.window / KV_PAGE_TOKENS + 4) * o->max_num_seqs + o->max_num_batched_tokens / KV_PAGE_TOKENS + 1;
    n += below(chance(50) ? 2 : 12);
    if (n < o->n_pages) o->n_near = sim.fake.n_near = n;
}

static void epoch_open(void) {
    struct mo_error error;
    static const int32_t eos[] = {FAKE_EOS, -1, FAKE_VOCAB}; /* the last two can never come */
    int seqs = 1 + below(chance(50) ? 4 : 24), rows = seqs + below(chance(50) ? 10 : 300);
    int logits = seqs + below(FAKE_MAX_LOGITS - seqs);
    const bool sums_up = chance(30);
    int pages = 3 + below(chance(50) ? 9 : 60) + (sums_up ? 6 * seqs : 0);
    fake_open(&sim.fake, FAKE_VOCAB, pages, rows, logits, seqs);
    sim.fake.base.picks = chance(75);
    sim.fake.base.runs_ahead = sim.fake.base.picks && chance(90);
    sim.fake.forgetful = chance(30);
    sim.alike_prompts = chance(40);
    sim.long_answers = !sim.alike_prompts && chance(60);
    sim.plain_requests = chance(70);
    sim.options = (struct sched_options){.backend = &sim.fake.base,
                                         .model = &sim.model,
                                         .tokenizer = sim.tokenizer,
                                         .eos = eos,
                                         .n_eos = 3,
                                         .max_model_len = 50 + below(600),
                                         .max_num_seqs = seqs,
                                         .max_num_batched_tokens = rows,
                                         .max_logits = logits,
                                         .n_pages = pages,
                                         .prefix_caching = chance(80),
                                         .max_drafts = !sums_up && chance(50) ? 1 + below(DRAFT_MAX) : 0,
                                         .clock = sim_clock,
                                         .clock_context = &sim.now_s};
    sim.fake.sums_up = sums_up;
    sim.fake.window = chance(30) ? 1 + below(160) : 64 * below(3) + 1 + below(3);
    sim.model.hybrid.window = sums_up ? sim.fake.window : 0;
    if (sim.fake.sums_up && chance(70)) limit_near(&sim.options);
    sim.options.disk = sim.options.prefix_caching && chance(50) ? broken_disk_take(&sim.broken) : NULL;
    sim.fake.fail_copies = chance(5);
    if (sched_create(&sim.sched, &sim.options, &error)) abort();
    for (int i = 0; i < MAX_PROMPT; i++) {
        sim.texts[0][i] = below(FAKE_VOCAB);
        for (int t = 1; t < TEXTS; t++) sim.texts[t][i] = i < 10 ? below(FAKE_VOCAB) : sim.texts[0][i];
    }
    memset(sim.ended, 0, sizeof sim.ended);
    memset(sim.clients, 0, sizeof sim.clients); /* ids start again */
    sim.answered = sim.tokens = sim.submitted = 0;
}

static void check_statistics(void) {
    struct sched_stats stats;
    sched_stats_get(sim.sched, &stats);
    uint64_t done = 0;
    bool same = true;
    for (int i = 0; i <= FINISH_ERROR; i++) {
        same = same && stats.finished[i] == sim.ended[i];
        done += stats.finished[i];
        sim.finished[i] += stats.finished[i];
    }
    check(same, "finished requests by reason");
    check(done == sim.submitted, "%" PRIu64 " requests ended of %" PRIu64, done, sim.submitted);
    check(stats.generated_tokens == sim.tokens && stats.first_token_s.total == sim.answered &&
              stats.inter_token_s.total == sim.tokens - sim.answered &&
              stats.request_s.total == sim.ended[FINISH_STOP] + sim.ended[FINISH_LENGTH],
          "totals of the histograms");
    check(stats.prefix_found_tokens <= stats.prefix_queried_tokens, "more found than looked for");
    check(stats.disk_found_tokens <= stats.disk_queried_tokens && stats.disk_found_tokens <= stats.prefix_found_tokens,
          "more found on disk than looked for");
    sim.found += stats.prefix_found_tokens;
    sim.disk_found += stats.disk_found_tokens;
    check(stats.accepted_tokens <= stats.draft_tokens && stats.drafts <= stats.draft_tokens, "more right than guessed");
    check(sim.options.max_drafts > 0 || stats.drafts == 0, "guessed unasked");
    sim.guessed += stats.draft_tokens;
    sim.right += stats.accepted_tokens;
    sim.preemptions += stats.preemptions;
    sim.requests += sim.submitted;
}

/* With nothing else to do, what the disk does not have goes there as soon as it can. */
static void save_all(void) {
    if (!sim.options.disk || sim.fake.fail_copies) return;
    for (int i = 0; i <= sim.options.n_pages; i++) {
        while (disk_work(sim.options.disk)) {
        }
        step();
    }
    check(sim.sched->unsaved_first < 0, "pages are left that nobody saves");
}

/* Some epochs end when everything is answered, some in the middle. */
static void epoch_close(void) {
    if (chance(70)) {
        while (oldest_live() != 0) step();
        for (int i = 0; i < 2; i++) step(); /* a step ahead, then what was cancelled meanwhile */
        save_all();
        check(!sched_step(sim.sched), "a step without work");
        check(sim.sched->kv.n_free == sim.options.n_pages, "%d pages lost", sim.options.n_pages - sim.sched->kv.n_free);
        check_statistics();
    } else {
        for (int i = 0; i < MAX_LIVE; i++) sim.clients[i].cancelled = true;
    }
    sched_destroy(sim.sched);
    for (int i = 0; i < MAX_LIVE; i++) check(!sim.clients[i].live, "a request survives sched_destroy");
    sim.n_ahead += sim.fake.n_ahead;
    sim.n_picked += sim.fake.n_picked;
    fake_close(&sim.fake);
}

static void run_epoch(uint64_t until_step) {
    epoch_open();
    int load = 1 + below(60);
    while (sim.steps < until_step) {
        if (below(500) == 0) load = 1 + below(chance(30) ? 100 : 30);
        if (chance(load)) submit();
        if (below(300) == 0) cancel_one();
        step();
    }
    epoch_close();
}

int main(int argc, char **argv) {
    uint64_t n_steps = argc > 1 ? strtoull(argv[1], NULL, 10) : 400000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    struct mo_error error = {0};
    sim.random = fake_mix(seed);
    sim.broken.below = below;
    log_set_level(LOG_ERROR); /* damaged files are told */
    sim.model = fake_model(FAKE_VOCAB);
    const char *json = FAKE_TOKENIZER_JSON;
    if (tokenizer_parse(&sim.tokenizer, json, strlen(json), NULL, 0, "the test's tokenizer", &error) ||
        sample_scratch_init(&sim.scratch, FAKE_VOCAB, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    while (sim.steps < n_steps) {
        uint64_t left = n_steps - sim.steps, length = 500 + (uint64_t)below(EPOCH_STEPS);
        run_epoch(sim.steps + (length < left ? length : left));
    }
    printf("seed %" PRIu64 ": %" PRIu64 " steps, %" PRIu64 " requests in drained epochs (%" PRIu64 " stop, %" PRIu64
           " length, %" PRIu64 " cancelled, %" PRIu64 " error)\n",
           seed, sim.steps, sim.requests, sim.finished[FINISH_STOP], sim.finished[FINISH_LENGTH],
           sim.finished[FINISH_CANCELLED], sim.finished[FINISH_ERROR]);
    printf("%" PRIu64 " tokens and %" PRIu64 " texts compared, %" PRIu64 " stop strings, %" PRIu64
           " preemptions, %" PRIu64 " failed passes\n",
           sim.tokens_checked, sim.texts_checked, sim.stop_strings, sim.preemptions, sim.errors);
    printf("%" PRIu64 " steps ahead, %" PRIu64 " picked tokens, %" PRIu64 " rows too many, %" PRIu64
           " prompt tokens found in the cache\n",
           sim.n_ahead, sim.n_picked, sim.held, sim.found);
    printf("%" PRIu64 " tokens guessed, %" PRIu64 " right\n", sim.guessed, sim.right);
    check(broken_disk_leave(&sim.broken), "a file is left that the disk does not know");
    printf("%" PRIu64 " prompt tokens found on disk, %" PRIu64 " steps with pages on their way, %" PRIu64
           " files damaged, %" PRIu64 " of them met, %" PRIu64 " files removed for others\n",
           sim.disk_found, sim.load_steps, sim.broken.n_damaged, sim.broken.n_refused, sim.broken.n_removed);
    if (n_steps >= 400000) { /* the run met what it is for */
        check(sim.right > 5000 && sim.guessed - sim.right > 5000, "too little was guessed");
        check(sim.n_ahead > n_steps / 16 && sim.held > 500, "too few steps ahead");
        check(sim.found > 5000, "too little was found in the cache");
        check(sim.disk_found > 2000 && sim.broken.n_refused > 10 && sim.broken.n_removed > 500,
              "too little was found on disk");
        check(sim.preemptions > 200 && sim.errors > 5 && sim.stop_strings > 100 && sim.outdents > 100,
              "too little happened");
    }
    printf("%" PRIu64 " passed, %" PRIu64 " failed\n", sim.passed, sim.failed);
    tokenizer_free(sim.tokenizer);
    sample_scratch_free(&sim.scratch);
    return sim.failed != 0;
}
