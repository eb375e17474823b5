/* The format of V3.2 and V3.2-Speciale. Their release has a Python module in the place of a template: an answer is opened behind
 * each question and each set of results, with a thought or without, thoughts stay from the last question on, and the developer is
 * somebody who asks. Source: encoding/encoding_dsv32.py of deepseek-ai/DeepSeek-V3.2 on Hugging Face, and its test vectors. What the
 * module refuses in a chat that ends in an answer (one without its thoughts) is taken for an answer that thought nothing. */
#include <string.h>
#include "text/calls.h"
#include "text/chat_priv.h"

#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define END_OF_SENTENCE "<｜end▁of▁sentence｜>"

enum {
    QUESTIONS = CHAT_USER | CHAT_DEVELOPER,
    PLACES_OF_TOOLS = CHAT_SYSTEM | CHAT_DEVELOPER,
    ROLES = CHAT_SYSTEM | CHAT_USER | CHAT_ASSISTANT | CHAT_TOOL | CHAT_DEVELOPER,
};

/* A conversation and what holds for all of it. */
struct talk {
    struct chat_job *job;
    bool thinks;
    size_t n;        /* messages */
    size_t question; /* the last question; n: there is none */
};

static void open_answer(struct talk *talk, bool is_current) {
    chat_own(talk->job, talk->thinks && is_current ? THINK_BEGIN : THINK_END);
}

static void put_question(struct talk *talk, const struct chat_message *message) {
    struct chat_job *job = talk->job;
    bool is_developer = message->role == CHAT_DEVELOPER;
    struct chat_string content = chat_content(job, message);
    if (is_developer && content.size == 0) chat_refuse(job, message, "the developer's \"content\" is empty");
    chat_own(job, USER);
    if (is_developer && message->index == 0) chat_put_requirements(job, job->kwargs, CHAT_CALLS_DSML);
    if (is_developer) chat_own(job, "\n\n# The user's message is: ");
    chat_put(job, content);
    chat_own(job, ASSISTANT);
    open_answer(talk, message->index == talk->question);
}

/* --- answers ------------------------------------------------------------------------------------- */

static void put_answer(struct talk *talk, const struct chat_message *message) {
    struct chat_job *job = talk->job;
    bool is_current = talk->question == talk->n || message->index > talk->question;
    if (talk->thinks && is_current) {
        chat_put_json(job, chat_thought(message));
        chat_own(job, THINK_END);
    }
    chat_put_content_if_any(job, message);
    chat_put_calls(job, message, CHAT_CALLS_DSML);
    chat_own(job, END_OF_SENTENCE);
}

/* --- results ------------------------------------------------------------------------------------- */

static const char *role_at(const struct talk *talk, size_t index) {
    const char *role = json_string_value(json_object_get(json_array_get(talk->job->messages, index), "role"));
    return role ? role : "";
}

static void put_result(struct talk *talk, const struct chat_message *message) {
    struct chat_job *job = talk->job;
    bool is_first = message->index == 0 || strcmp(role_at(talk, message->index - 1), "tool") != 0;
    const json_t *before = is_first && message->index ? json_array_get(job->messages, message->index - 1) : NULL;
    if (is_first && !chat_truth(json_object_get(before, "tool_calls"))) {
        chat_refuse(job, message, "a tool's result must come behind the message that called it");
    }
    chat_own(job, is_first ? "\n\n<function_results>\n<result>" : "\n<result>");
    chat_put(job, chat_content(job, message));
    chat_own(job, "</result>");
    if (!strcmp(role_at(talk, message->index + 1), "tool")) return;
    chat_own(job, "\n</function_results>\n\n");
    open_answer(talk, talk->question == talk->n || message->index > talk->question);
}

/* --- the whole ----------------------------------------------------------------------------------- */

static void put_message(struct talk *talk, size_t index) {
    struct chat_message message = chat_message_at(talk->job, index, ROLES);
    if ((int)message.role & QUESTIONS) {
        put_question(talk, &message);
    } else if (message.role == CHAT_ASSISTANT) {
        put_answer(talk, &message);
    } else if (message.role == CHAT_TOOL) {
        put_result(talk, &message);
    } else if (message.role == CHAT_SYSTEM) {
        chat_put_content_if_any(talk->job, &message);
        if (index == 0) chat_put_requirements(talk->job, talk->job->kwargs, CHAT_CALLS_DSML);
    }
}

void chat_render_v3_2(struct chat_job *job) {
    struct talk talk = {job, chat_truth(json_object_get(job->kwargs, "thinking")), json_array_size(job->messages), 0};
    int first = 0, last = 0;
    talk.question = talk.n;
    for (size_t i = 0; i < talk.n && !job->code; i++) {
        last = (int)chat_message_at(job, i, ROLES).role;
        if (i == 0) first = last;
        if (last & QUESTIONS) talk.question = i;
    }
    chat_own(job, job->bos);
    if (!(first & PLACES_OF_TOOLS)) chat_put_requirements(job, job->kwargs, CHAT_CALLS_DSML);
    for (size_t i = 0; i < talk.n && !job->code; i++) put_message(&talk, i);
    bool is_open = last & (QUESTIONS | CHAT_TOOL);
    if (!job->add_generation_prompt || is_open) return;
    chat_own(job, ASSISTANT);
    open_answer(&talk, true);
}
