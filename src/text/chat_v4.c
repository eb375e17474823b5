/* The format of V4, and of V4-Flash-0731, whose efforts have other texts. There is no tool's turn: results are blocks of the user's,
 * with the questions beside them. Thoughts stay from the last of these turns on, and all of them where there are functions.
 * Source: encoding/encoding_dsv4.py of deepseek-ai/DeepSeek-V4-Flash on Hugging Face, its README and its test vectors, and
 * DeepSeek's package deepseek-recipe 0.2.0.
 *
 * As in the package, and not in the module, the system's messages all stand first, and an answer is opened behind the reminders
 * that follow a question: in the module a system's message between others leaves an answer without its mark, and a reminder stands
 * inside of one. As in the module, and not in the package: developers, tasks (the module loses that of a question which joins
 * another), a line for no arguments, an answer that needs no question before it, and results that are one turn with the questions
 * between them. */
#include <stdlib.h>
#include <string.h>
#include "text/calls.h"
#include "text/chat_priv.h"

#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define REMINDER "<｜latest_reminder｜>"
#define END_OF_SENTENCE "<｜end▁of▁sentence｜>"

enum {
    TURN = CHAT_USER | CHAT_TOOL, /* what the user's turn is made of */
    QUESTIONS = TURN | CHAT_DEVELOPER,
    ROLES = QUESTIONS | CHAT_SYSTEM | CHAT_ASSISTANT | CHAT_REMINDER,
};

/* A conversation and what holds for all of it. */
struct talk {
    struct chat_job *job;
    bool thinks;
    bool keeps;          /* the thoughts of earlier turns */
    size_t n;            /* messages */
    size_t n_asked;      /* up to the last question, with it: 0 if there is none */
    json_t *ranks;       /* of the last answer's calls, where it has any: {"id": which of them}; NULL: none yet */
    const json_t *task;  /* the task of the message before, or NULL */
    bool developer_says; /* what is wanted */
    bool is_open;        /* what comes next is the answer's */
};

static struct chat_message message_at(struct talk *talk, size_t index) {
    return chat_message_at(talk->job, index, ROLES);
}

/* --- efforts ------------------------------------------------------------------------------------- */

static const char ABSOLUTE_MAXIMUM[] =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";
static const char BEYOND_MAXIMUM[] =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the "
    "problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying "
    "cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain "
    "that no assumption remains unchecked and no error remains undiscovered.\n\n";

/* What is said for an effort. V4 has two, high and max, 0731 has low, high and max; OpenAI's others go where DeepSeek's API sends
 * them for the model. */
static const struct {
    const char *word, *v4, *v4_0731;
} EFFORTS[] = {
    {"none", "", ""},
    {"minimal", "", ""},
    {"low", "", ""},
    {"medium", "", ABSOLUTE_MAXIMUM},
    {"high", "", ABSOLUTE_MAXIMUM},
    {"xhigh", ABSOLUTE_MAXIMUM, ABSOLUTE_MAXIMUM},
    {"max", ABSOLUTE_MAXIMUM, BEYOND_MAXIMUM},
    {"ultra", ABSOLUTE_MAXIMUM, BEYOND_MAXIMUM},
};

static void put_effort(struct talk *talk, bool is_0731) {
    const json_t *effort = json_object_get(talk->job->kwargs, "reasoning_effort");
    const char *word = json_string_value(effort);
    if (!effort || json_is_null(effort)) return;
    for (size_t i = 0; word && i < sizeof EFFORTS / sizeof *EFFORTS; i++) {
        if (strcmp(word, EFFORTS[i].word) != 0) continue;
        if (talk->thinks) chat_own(talk->job, is_0731 ? EFFORTS[i].v4_0731 : EFFORTS[i].v4);
        return;
    }
    chat_refuse_variable(talk->job, "\"reasoning_effort\": expected \"none\", \"minimal\", \"low\", \"medium\", "
                                    "\"high\", \"xhigh\", \"max\" or \"ultra\"");
}

/* --- results in the order of their calls --------------------------------------------------------- */

struct result {
    size_t rank, index;
};

static int compare_results(const void *a, const void *b) {
    const struct result *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* Of calls with the same id the last counts. */
static void rank_calls(struct talk *talk, const json_t *calls) {
    json_decref(talk->ranks);
    talk->ranks = json_object();
    if (!talk->ranks) chat_no_memory(talk->job);
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const char *id = json_string_value(json_object_get(json_array_get(calls, i), "id"));
        if (!id || !json_object_set_new(talk->ranks, id, json_integer((json_int_t)i))) continue;
        chat_no_memory(talk->job);
    }
}

/* The results among the messages from `begin` to `end`: results [end - begin]. One that no call is known of goes first. */
static void sort_results(struct talk *talk, size_t begin, size_t end, struct result *results) {
    size_t n = 0;
    for (size_t i = begin; i < end; i++) {
        struct chat_message message = message_at(talk, i);
        if (message.role != CHAT_TOOL) continue;
        const char *id = json_string_value(json_object_get(message.json, "tool_call_id"));
        const json_t *rank = id ? json_object_get(talk->ranks, id) : NULL;
        results[n++] = (struct result){rank ? (size_t)json_integer_value(rank) : 0, i};
    }
    qsort(results, n, sizeof *results, compare_results);
}

/* --- the user's turn ----------------------------------------------------------------------------- */

/* One block of it. */
static void put_block(struct talk *talk, const struct chat_message *message) {
    bool is_result = message->role == CHAT_TOOL;
    if (is_result) chat_own(talk->job, "<tool_result>");
    chat_put(talk->job, chat_content(talk->job, message));
    if (is_result) chat_own(talk->job, "</tool_result>");
}

/* Where the turn that begins there ends, and its last message, or the one with a task. Behind a task no question joins. */
static size_t find_end(struct talk *talk, size_t begin, struct chat_message *last) {
    size_t end = begin;
    bool has_task = false;
    for (; end < talk->n; end++) {
        struct chat_message message = message_at(talk, end);
        if (message.role == CHAT_SYSTEM) continue;
        if (!((int)message.role & TURN) || (has_task && message.role == CHAT_USER)) break;
        if (!has_task) *last = message;
        has_task = has_task || chat_truth(json_object_get(message.json, "task"));
    }
    return end;
}

static void put_blocks(struct talk *talk, size_t begin, size_t end) {
    struct result *results = calloc(end - begin, sizeof *results);
    size_t n = 0;
    if (results) {
        sort_results(talk, begin, end, results);
    } else {
        chat_no_memory(talk->job);
    }
    for (size_t i = begin; i < end && !talk->job->code; i++) {
        struct chat_message message = message_at(talk, i);
        if (message.role == CHAT_SYSTEM) continue;
        if (message.role == CHAT_TOOL) message = message_at(talk, results[n++].index);
        if (i > begin) chat_own(talk->job, "\n\n");
        put_block(talk, &message);
    }
    free(results);
}

/* --- what follows a message ---------------------------------------------------------------------- */

/* The system speaks before all others. A developer's earlier questions go with the thoughts of their answers. */
static bool is_left_out(struct talk *talk, size_t index) {
    enum chat_role role = message_at(talk, index).role;
    bool is_earlier = talk->thinks && !talk->keeps && index + 1 < talk->n_asked;
    return role == CHAT_SYSTEM || (role == CHAT_DEVELOPER && is_earlier);
}

/* The first message from there on that has a place there. */
static size_t skip(struct talk *talk, size_t next) {
    while (next < talk->n && is_left_out(talk, next)) next++;
    return next;
}

static bool is_role(struct talk *talk, size_t index, enum chat_role role) {
    return index < talk->n && message_at(talk, index).role == role;
}

static void open_answer(struct talk *talk, bool is_current) {
    chat_own(talk->job, talk->thinks && is_current ? ASSISTANT THINK_BEGIN : ASSISTANT THINK_END);
    talk->is_open = true;
}

/* A short question about the message, to be answered without a thought. */
static void put_task(struct talk *talk, const struct chat_message *message, const json_t *task) {
    static const char *const TASKS[][2] = {
        {"action", "<｜action｜>"}, {"query", "<｜query｜>"}, {"authority", "<｜authority｜>"},
        {"domain", "<｜domain｜>"}, {"title", "<｜title｜>"}, {"read_url", "<｜read_url｜>"},
    };
    const char *name = json_string_value(task);
    for (size_t i = 0; name && i < sizeof TASKS / sizeof *TASKS; i++) {
        if (strcmp(name, TASKS[i][0]) != 0) continue;
        if (i == 0) open_answer(talk, true);
        chat_own(talk->job, TASKS[i][1]);
        talk->is_open = true;
        return;
    }
    chat_refuse(talk->job, message, "expected \"task\" to be action, query, authority, domain, title or read_url");
}

static void put_reminder(struct talk *talk, size_t index) {
    struct chat_message message = message_at(talk, index);
    chat_own(talk->job, REMINDER);
    chat_put(talk->job, chat_content(talk->job, &message));
}

/* Behind messages that end before `next`, of which this is the last. Returns where the conversation goes on. */
static size_t finish(struct talk *talk, const struct chat_message *last, size_t next) {
    const json_t *task = json_object_get(last->json, "task");
    bool is_question = (int)last->role & QUESTIONS, is_current = talk->keeps || next >= talk->n_asked;
    talk->task = chat_truth(task) ? task : NULL;
    for (next = skip(talk, next); is_question && is_role(talk, next, CHAT_REMINDER); next = skip(talk, next + 1)) {
        put_reminder(talk, next);
    }
    bool is_answered_next = next == talk->n || is_role(talk, next, CHAT_ASSISTANT);
    if (is_answered_next && talk->task) {
        put_task(talk, last, task);
    } else if (is_answered_next && is_question) {
        open_answer(talk, is_current);
    }
    return next;
}

/* --- the whole ----------------------------------------------------------------------------------- */

static void put_answer(struct talk *talk, const struct chat_message *message) {
    struct chat_job *job = talk->job;
    const json_t *calls = json_object_get(message->json, "tool_calls");
    if (talk->thinks && !talk->task && (talk->keeps || message->index >= talk->n_asked)) {
        chat_put_json(job, chat_thought(message));
        chat_own(job, THINK_END);
    }
    chat_put_content_if_any(job, message);
    chat_put_calls(job, message, CHAT_CALLS_DSML_V4);
    chat_own(job, END_OF_SENTENCE);
    if (chat_truth(calls)) rank_calls(talk, calls);
}

/* What a message wants by itself, or the conversation as a whole. */
static void put_requirements(struct talk *talk, const json_t *from) {
    chat_put_requirements(talk->job, from, CHAT_CALLS_DSML_V4);
}

static void put_developer(struct talk *talk, const struct chat_message *message) {
    struct chat_string content = chat_content(talk->job, message);
    if (content.size == 0) chat_refuse(talk->job, message, "the developer's \"content\" is empty");
    chat_own(talk->job, USER);
    chat_put(talk->job, content);
    put_requirements(talk, message->json);
    if (message->index == 0 && talk->developer_says) put_requirements(talk, talk->job->kwargs);
}

/* The message, or the user's turn that begins with it. Returns where the conversation goes on. */
static size_t put_message(struct talk *talk, size_t index) {
    struct chat_message message = message_at(talk, index);
    size_t end = index + 1;
    talk->is_open = false;
    if ((int)message.role & TURN) {
        end = find_end(talk, index, &message);
        chat_own(talk->job, USER);
        put_blocks(talk, index, end);
    } else if (message.role == CHAT_ASSISTANT) {
        put_answer(talk, &message);
    } else if (message.role == CHAT_DEVELOPER) {
        put_developer(talk, &message);
    } else {
        put_reminder(talk, index);
    }
    return finish(talk, &message, end);
}

/* All that the system says, wherever, and what is wanted, unless a developer begins, who says that. */
static void put_system(struct talk *talk) {
    bool has_system = false, has_said = false;
    for (size_t i = 0; i < talk->n && !talk->job->code; i++) {
        struct chat_message message = message_at(talk, i);
        if (message.role != CHAT_SYSTEM) continue;
        bool says = json_string_length(json_object_get(message.json, "content")) > 0;
        if (has_said && says) chat_own(talk->job, "\n\n");
        chat_put_content_if_any(talk->job, &message);
        put_requirements(talk, message.json);
        has_system = true;
        has_said = has_said || says;
    }
    talk->developer_says = !has_system && is_role(talk, 0, CHAT_DEVELOPER) && !is_left_out(talk, 0);
    if (!talk->developer_says) put_requirements(talk, talk->job->kwargs);
}

static void render(struct chat_job *job, bool is_0731) {
    const json_t *drop = json_object_get(job->kwargs, "drop_thinking");
    struct talk talk = {.job = job,
                        .thinks = chat_truth(json_object_get(job->kwargs, "thinking")),
                        .keeps = chat_has_tools(job) || (drop && !chat_truth(drop)),
                        .n = json_array_size(job->messages)};
    for (size_t i = 0; i < talk.n && !job->code; i++) {
        struct chat_message message = message_at(&talk, i);
        if ((int)message.role & QUESTIONS) talk.n_asked = i + 1;
        talk.keeps = talk.keeps || json_array_size(json_object_get(message.json, "tools")) > 0;
    }
    chat_own(job, job->bos);
    put_effort(&talk, is_0731);
    put_system(&talk);
    for (size_t i = skip(&talk, 0); i < talk.n && !job->code;) i = put_message(&talk, i);
    if (job->add_generation_prompt && !talk.is_open) open_answer(&talk, true);
    json_decref(talk.ranks);
}

void chat_render_v4(struct chat_job *job) {
    render(job, false);
}

void chat_render_v4_0731(struct chat_job *job) {
    render(job, true);
}
