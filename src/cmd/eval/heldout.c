#include "cmd/eval/heldout.h"

#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "cmd/eval/answers.h"
#include "cmd/eval/cases.h"
#include "cmd/eval/python.h"
#include "text/fim.h"

enum {
    SPARE_LINE_TOKENS = 8, /* a line may be written with more tokens than the tokenizer would take, and needs an end */
    FUNCTION_TOKENS = 192,
    MIN_FUNCTION_LINES = 2, /* that are not blank */
};

/* ---- prediction ---- */

struct tally {
    const struct engine *engine;
    struct eval_sums *sums;
};

static int add_row(void *context, const float *logits, int32_t next, struct mo_error *error) {
    const struct tally *tally = context;
    (void)error;
    eval_sums_add(tally->sums, tally->engine, logits, next);
    return 0;
}

static int score_document(struct eval_scorer *scorer, const struct eval_document *document, struct eval_result *result,
                          struct mo_error *error) {
    struct token_list ids = {0};
    struct tally tally = {.engine = scorer->engine, .sums = &result->text};
    int code = tokenizer_encode(scorer->engine->tokenizer, document->text, document->size, false, &ids, error);
    if (code) mo_error_prefix(error, "%s", document->name);
    int n = ids.n < (size_t)scorer->window ? (int)ids.n : scorer->window;
    if (!code) code = eval_score(scorer, ids.ids, n, add_row, &tally, error);
    token_list_free(&ids);
    return code;
}

static int score_documents(struct engine *engine, const struct eval_documents *documents, struct eval_result *result,
                           struct mo_error *error) {
    struct eval_scorer scorer;
    struct progress progress;
    int code = eval_scorer_open(&scorer, engine, 0, error);
    progress_begin(&progress, "predicting the text", "documents", 1, documents->n);
    for (int i = 0; i < documents->n && !code; i++) {
        code = score_document(&scorer, &documents->items[i], result, error);
        progress_update(&progress, i + 1);
    }
    progress_end(&progress);
    result->window = scorer.window;
    result->n_documents = documents->n;
    eval_scorer_close(&scorer);
    if (!code && result->text.tokens == 0) code = mo_error_set(error, MO_E_INVALID, "the documents are too short");
    return code;
}

/* ---- answers ---- */

struct task {
    struct engine *engine;
    struct eval_cases cases;
    struct eval_answer *answers;    /* [cases.n], of which the first n_answers were asked */
    const struct eval_case **asked; /* [cases.n] */
    bool *is_right;                 /* [cases.n] */
    int n_answers;
};

static int task_open(struct task *task, struct engine *engine, const struct eval_documents *documents,
                     enum eval_kind kind, int count, uint64_t seed, struct mo_error *error) {
    *task = (struct task){.engine = engine};
    int code = eval_cases_draw(&task->cases, documents, kind, count, seed, error);
    if (code) return code;
    task->answers = calloc((size_t)task->cases.n + 1, sizeof *task->answers);
    task->asked = calloc((size_t)task->cases.n + 1, sizeof *task->asked);
    task->is_right = calloc((size_t)task->cases.n + 1, sizeof *task->is_right);
    if (task->answers && task->asked && task->is_right) return 0;
    return mo_error_set(error, MO_E_NO_MEMORY, "no memory for %d answers", task->cases.n);
}

static void task_close(struct task *task) {
    eval_answers_free(task->answers, task->n_answers);
    free(task->asked);
    free(task->is_right);
    eval_cases_free(&task->cases);
}

/* A prompt with room for its answer; what cannot fit the context is not tried. */
static int add_question(struct task *task, const struct eval_case *one, enum eval_kind kind,
                        const struct eval_answer *answer, struct mo_error *error) {
    struct eval_answer *next = &task->answers[task->n_answers];
    int room = task->engine->options.max_model_len - answer->max_tokens;
    *next = *answer;
    int code = eval_case_prompt(one, kind, task->engine->tokenizer, room, &next->prompt, error);
    task->asked[task->n_answers] = one;
    if (code || next->prompt.n == 0) {
        token_list_free(&next->prompt);
        return code;
    }
    task->n_answers++;
    return 0;
}

static int line_number(const struct eval_case *one) {
    int n = 1;
    for (size_t i = 0; i < one->begin; i++) n += one->document->text[i] == '\n';
    return n;
}

/* What was asked and answered, for whoever wants to see it. */
static int note_answers(const struct task *task, const char *kind, json_t *notes, struct mo_error *error) {
    for (int i = 0; i < task->n_answers && notes; i++) {
        const struct eval_answer *answer = &task->answers[i];
        const struct eval_case *one = task->asked[i];
        json_t *note = json_pack("{ss so si si ss% ss% sb sb}", "kind", kind, "file", json_lossy(one->document->name),
                                 "line", line_number(one), "prompt_tokens", (int)answer->prompt.n, "asked",
                                 one->document->text + one->begin, one->end - one->begin, "answer",
                                 answer->text.data ? answer->text.data : "", answer->text.size, "ended",
                                 answer->is_ended, "right", task->is_right[i]);
        if (json_array_append_new(notes, note)) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the answers");
    }
    return 0;
}

static void count_right(const struct task *task, struct eval_share *share) {
    share->tried = task->n_answers;
    for (int i = 0; i < task->n_answers; i++) share->right += task->is_right[i];
}

/* ---- a masked line ---- */

static int ask_lines(struct task *task, struct mo_error *error) {
    int code = 0;
    for (int i = 0; i < task->cases.n && !code; i++) {
        const struct eval_case *one = &task->cases.items[i];
        struct token_list line = {0};
        code = tokenizer_encode(task->engine->tokenizer, one->document->text + one->begin, one->end - one->begin, false,
                                &line, error);
        const struct eval_answer answer = {.max_tokens = (int)line.n + SPARE_LINE_TOKENS, .stop = "\n"};
        if (!code) code = add_question(task, one, EVAL_LINE, &answer, error);
        token_list_free(&line);
    }
    return code ? code : eval_answers_run(task->engine, task->answers, task->n_answers, "filling in lines", error);
}

static bool is_exact(const struct eval_answer *answer, const struct eval_case *one) {
    return answer->is_ended && answer->text.size == one->end - one->begin &&
           !memcmp(answer->text.data, one->document->text + one->begin, answer->text.size);
}

static int fill_lines(struct engine *engine, const struct eval_plan *plan, const struct eval_documents *documents,
                      struct eval_result *result, struct mo_error *error) {
    struct eval_share *share = &result->lines;
    struct task task;
    if (plan->n_lines == 0) {
        strcpy(share->reason, "--fim 0");
        return 0;
    }
    if (!fim_supported(engine->tokenizer)) {
        strcpy(share->reason, "the tokenizer lacks the tokens for it");
        return 0;
    }
    int code = task_open(&task, engine, documents, EVAL_LINE, plan->n_lines, plan->seed, error);
    if (!code) code = ask_lines(&task, error);
    for (int i = 0; i < task.n_answers; i++) task.is_right[i] = is_exact(&task.answers[i], task.asked[i]);
    if (!code) code = note_answers(&task, "line", result->answers, error);
    count_right(&task, share);
    if (share->tried == 0) strcpy(share->reason, "the text has no line to mask");
    task_close(&task);
    return code;
}

/* ---- a function ---- */

static int def_indent(const struct eval_case *one) {
    return eval_indent(one->document->text + one->begin, one->end - one->begin);
}

static size_t function_end(const struct eval_answer *answer, bool *is_closed) {
    return eval_function_end(answer->text.data, answer->text.size, def_indent(answer->context), answer->is_ended,
                             is_closed);
}

static bool is_function_done(const struct eval_answer *answer) {
    bool is_closed;
    function_end(answer, &is_closed);
    return is_closed;
}

/* The def line and what belongs to it, as a program: below `if`, where an indented def may stand. */
static json_t *function_source(const struct eval_case *one, const struct eval_answer *answer, size_t size) {
    static const char outer[] = "if True:\n";
    size_t n_outer = def_indent(one) > 0 ? sizeof outer - 1 : 0, n_def = one->end + 1 - one->begin;
    char *source = malloc(n_outer + n_def + size);
    if (!source) return NULL;
    memcpy(source, outer, n_outer);
    memcpy(source + n_outer, one->document->text + one->begin, n_def);
    if (size) memcpy(source + n_outer + n_def, answer->text.data, size);
    json_t *string = json_stringn(source, n_outer + n_def + size);
    free(source);
    return string;
}

static int ask_functions(struct task *task, struct mo_error *error) {
    int code = 0;
    for (int i = 0; i < task->cases.n && !code; i++) {
        const struct eval_case *one = &task->cases.items[i];
        const struct eval_answer answer = {
            .max_tokens = FUNCTION_TOKENS, .is_enough = is_function_done, .context = one};
        code = add_question(task, one, EVAL_DEF, &answer, error);
    }
    return code ? code : eval_answers_run(task->engine, task->answers, task->n_answers, "writing functions", error);
}

/* Those that are long enough, as sources for Python; is_right marks them. */
static json_t *collect_sources(struct task *task) {
    json_t *sources = json_array();
    for (int i = 0; i < task->n_answers; i++) {
        bool is_closed;
        const struct eval_answer *answer = &task->answers[i];
        size_t size = function_end(answer, &is_closed);
        task->is_right[i] = eval_count_lines(answer->text.data, size) >= MIN_FUNCTION_LINES;
        if (!task->is_right[i]) continue;
        if (json_array_append_new(sources, function_source(task->asked[i], answer, size))) {
            json_decref(sources);
            return NULL;
        }
    }
    return sources;
}

static int judge_functions(struct task *task, struct eval_python *python, struct eval_share *share,
                           struct mo_error *error) {
    json_t *sources = collect_sources(task);
    bool *is_python = calloc(json_array_size(sources) + 1, sizeof *is_python);
    int code = sources && is_python ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for the functions"), n = 0;
    if (!code && eval_python_parse(python, sources, is_python)) {
        for (int i = 0; i < task->n_answers; i++) task->is_right[i] = task->is_right[i] && is_python[n++];
        count_right(task, share);
        if (share->tried == 0) strcpy(share->reason, "the text has no def line");
    } else if (!code) {
        strcpy(share->reason, python->reason);
    }
    free(is_python);
    json_decref(sources);
    return code;
}

static int write_functions(struct engine *engine, const struct eval_plan *plan, const struct eval_documents *documents,
                           struct eval_result *result, struct mo_error *error) {
    struct eval_share *share = &result->functions;
    struct eval_python python;
    struct task task;
    if (plan->n_functions == 0) {
        strcpy(share->reason, "--parseable 0");
        return 0;
    }
    if (!eval_python_start(&python)) {
        strcpy(share->reason, python.reason);
        return 0;
    }
    strcpy(result->python, python.version);
    int code = task_open(&task, engine, documents, EVAL_DEF, plan->n_functions, plan->seed, error);
    if (!code) code = ask_functions(&task, error);
    if (!code) code = judge_functions(&task, &python, share, error);
    if (!code && share->tried) code = note_answers(&task, "function", result->answers, error);
    task_close(&task);
    eval_python_stop(&python);
    return code;
}

int eval_heldout(struct engine *engine, const struct eval_plan *plan, const struct eval_documents *documents,
                 struct eval_result *result, struct mo_error *error) {
    int code = score_documents(engine, documents, result, error);
    if (!code) code = fill_lines(engine, plan, documents, result, error);
    if (!code) code = write_functions(engine, plan, documents, result, error);
    return code;
}
