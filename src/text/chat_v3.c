/* The templates of V3, R1 and their updates. They differ in small ways that look like accidents and matter
 * all the same, since the models were trained on them: each function follows its original line by line, with
 * the names of its flags. The end of sentence stands in these templates as text, not as eos_token. */
#include <string.h>
#include "text/calls.h"
#include "text/chat_priv.h"

#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define END_OF_SENTENCE "<｜end▁of▁sentence｜>"
#define OUTPUTS_BEGIN "<｜tool▁outputs▁begin｜>"
#define OUTPUTS_END "<｜tool▁outputs▁end｜>"
#define OUTPUT_BEGIN "<｜tool▁output▁begin｜>"
#define OUTPUT_END "<｜tool▁output▁end｜>"

enum { ROLES = CHAT_SYSTEM | CHAT_USER | CHAT_ASSISTANT | CHAT_TOOL };

static const char END_OF_THOUGHT[] = THINK_END;

/* BOS, then all system messages, wherever they stand, then the functions. */
static void system_render(struct chat_job *job, enum chat_calls form) {
    bool first = true;
    chat_own(job, job->bos);
    for (size_t i = 0; i < json_array_size(job->messages) && !job->code; i++) {
        struct chat_message message = chat_message_at(job, i, ROLES);
        if (message.role != CHAT_SYSTEM) continue;
        if (!first) chat_own(job, "\n\n");
        chat_put(job, chat_content(job, &message));
        first = false;
    }
    if (!chat_has_tools(job)) return;
    chat_own(job, "\n\n");
    chat_put_tools(job, form);
}

/* The message's tool calls as an array, NULL if the key is absent; `null_is_absent` as the template has it.
 */
static const json_t *tool_calls(struct chat_job *job, const struct chat_message *message, bool null_is_absent) {
    const json_t *calls = json_object_get(message->json, "tool_calls");
    if (!calls || (null_is_absent && json_is_null(calls))) return NULL;
    if (json_is_array(calls)) return calls;
    chat_refuse(job, message, "expected \"tool_calls\" to be an array");
    return NULL;
}

static void put_member(struct chat_job *job, const struct chat_message *message, const json_t *object, const char *key,
                       const char *otherwise) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) {
        chat_refuse(job, message, otherwise);
        return;
    }
    chat_put_json(job, value);
}

static void put_name(struct chat_job *job, const struct chat_message *message, const json_t *call) {
    put_member(job, message, json_object_get(call, "function"), "name",
               "expected the \"function.name\" of every tool call to be a string");
}

static void put_arguments(struct chat_job *job, const struct chat_message *message, const json_t *call) {
    put_member(job, message, json_object_get(call, "function"), "arguments",
               "expected the \"function.arguments\" of every tool call to be a string of JSON");
}

/* One call with its arguments in a fenced block: V3, R1. */
static void put_call(struct chat_job *job, const struct chat_message *message, const json_t *call) {
    chat_own(job, CALL_BEGIN);
    put_member(job, message, call, "type", "expected the \"type\" of every tool call to be a string");
    chat_own(job, CALL_SEPARATOR);
    put_name(job, message, call);
    chat_own(job, FENCED_OPEN);
    put_arguments(job, message, call);
    chat_own(job, FENCED_CLOSE CALL_END);
}

static void put_wrapped(struct chat_job *job, const char *before, struct chat_string content, const char *after) {
    chat_own(job, before);
    chat_put(job, content);
    chat_own(job, after);
}

/* content.split('</think>')[-1] */
static struct chat_string after_last_thought(struct chat_string content) {
    const char *rest;
    while (content.size && (rest = memmem(content.text, content.size, END_OF_THOUGHT, strlen(END_OF_THOUGHT)))) {
        rest += strlen(END_OF_THOUGHT);
        content.size -= (size_t)(rest - content.text);
        content.text = rest;
    }
    return content;
}

/* content.split('</think>', 1)[1] */
static struct chat_string after_first_thought(struct chat_string content) {
    const char *rest = NULL;
    if (content.size) rest = memmem(content.text, content.size, END_OF_THOUGHT, strlen(END_OF_THOUGHT));
    if (!rest) return content;
    rest += strlen(END_OF_THOUGHT);
    return (struct chat_string){rest, content.size - (size_t)(rest - content.text)};
}

struct state {
    bool is_first; /* a tool call has been written (the originals' name) */
    bool is_tool;  /* the last message was a tool's */
    bool is_output_first;
    bool is_last_user;
    bool is_only_sys; /* V3.1-Terminus: nobody but the system has spoken */
    bool is_prefix;   /* V3.1-Terminus: some answer is to be continued */
};

static void put_output(struct chat_job *job, struct state *ns, const struct chat_message *message,
                       const char *before_next) {
    ns->is_last_user = false;
    ns->is_tool = true;
    chat_own(job, ns->is_output_first ? OUTPUTS_BEGIN : before_next);
    put_wrapped(job, OUTPUT_BEGIN, chat_content(job, message), OUTPUT_END);
    ns->is_output_first = false;
}

/* The first V3 closes its calls only inside the branch for the second and later ones. */
static void v3_calls(struct chat_job *job, struct state *ns, const struct chat_message *message) {
    const json_t *calls = tool_calls(job, message, false);
    ns->is_tool = false;
    for (size_t i = 0; i < json_array_size(calls); i++) {
        bool first = !ns->is_first;
        chat_own(job, first ? ASSISTANT CALLS_BEGIN : "\n");
        put_call(job, message, json_array_get(calls, i));
        if (!first) chat_own(job, CALLS_END END_OF_SENTENCE);
        ns->is_first = true;
    }
}

static void v3_message(struct chat_job *job, struct state *ns, const struct chat_message *message) {
    if (message->role == CHAT_USER) {
        ns->is_tool = false;
        put_wrapped(job, USER, chat_content(job, message), "");
    } else if (message->role == CHAT_ASSISTANT && chat_content_is_null(message)) {
        v3_calls(job, ns, message);
    } else if (message->role == CHAT_ASSISTANT) {
        put_wrapped(job, ns->is_tool ? OUTPUTS_END : ASSISTANT, chat_content(job, message), END_OF_SENTENCE);
        ns->is_tool = false;
    } else if (message->role == CHAT_TOOL) {
        put_output(job, ns, message, "\n");
    }
}

void chat_render_v3(struct chat_job *job) {
    struct state ns = {.is_output_first = true};
    system_render(job, CHAT_CALLS_FENCED);
    for (size_t i = 0; i < json_array_size(job->messages) && !job->code; i++) {
        struct chat_message message = chat_message_at(job, i, ROLES);
        v3_message(job, &ns, &message);
    }
    if (ns.is_tool) chat_own(job, OUTPUTS_END);
    if (job->add_generation_prompt && !ns.is_tool) chat_own(job, ASSISTANT);
}

static void r1_calls(struct chat_job *job, struct state *ns, const struct chat_message *message, const json_t *calls) {
    ns->is_tool = false;
    for (size_t i = 0; i < json_array_size(calls); i++) {
        if (ns->is_first) {
            chat_own(job, "\n");
        } else {
            chat_own(job, ASSISTANT);
            if (!chat_content_is_null(message)) chat_put(job, chat_content(job, message));
            chat_own(job, CALLS_BEGIN);
        }
        put_call(job, message, json_array_get(calls, i));
        ns->is_first = true;
    }
    chat_own(job, CALLS_END END_OF_SENTENCE);
}

static void r1_answer(struct chat_job *job, struct state *ns, const struct chat_message *message) {
    struct chat_string content = chat_content(job, message);
    if (ns->is_tool) {
        put_wrapped(job, OUTPUTS_END, content, END_OF_SENTENCE);
    } else {
        put_wrapped(job, ASSISTANT, after_last_thought(content), END_OF_SENTENCE);
    }
    ns->is_tool = false;
}

static void r1_message(struct chat_job *job, struct state *ns, const struct chat_message *message) {
    if (message->role == CHAT_USER) {
        ns->is_tool = false;
        put_wrapped(job, USER, chat_content(job, message), "");
    } else if (message->role == CHAT_ASSISTANT) {
        const json_t *calls = tool_calls(job, message, false);
        if (calls) {
            r1_calls(job, ns, message, calls);
        } else {
            r1_answer(job, ns, message);
        }
    } else if (message->role == CHAT_TOOL) {
        put_output(job, ns, message, "");
    }
}

void chat_render_r1(struct chat_job *job) {
    struct state ns = {.is_output_first = true};
    system_render(job, CHAT_CALLS_FENCED);
    for (size_t i = 0; i < json_array_size(job->messages) && !job->code; i++) {
        struct chat_message message = chat_message_at(job, i, ROLES);
        r1_message(job, &ns, &message);
    }
    if (ns.is_tool) chat_own(job, OUTPUTS_END);
    if (job->add_generation_prompt && !ns.is_tool) chat_own(job, ASSISTANT "<think>\n");
}

/* V3-0324 and R1-0528: the content of a message with calls comes before them. */
static void update_calls(struct chat_job *job, struct state *ns, const struct chat_message *message,
                         const json_t *calls, bool has_content, struct chat_string content) {
    if (ns->is_tool) chat_own(job, OUTPUTS_END);
    ns->is_last_user = ns->is_first = ns->is_tool = false;
    ns->is_output_first = true;
    for (size_t i = 0; i < json_array_size(calls); i++) {
        if (ns->is_first) {
            chat_own(job, "\n");
        } else {
            if (has_content) chat_put(job, content);
            chat_own(job, CALLS_BEGIN);
        }
        put_call(job, message, json_array_get(calls, i));
        ns->is_first = true;
    }
    chat_own(job, CALLS_END END_OF_SENTENCE);
}

/* R1-0528 (`thoughts_cut`) drops the thoughts from earlier answers, and so cannot have null for a content. */
static void update_assistant(struct chat_job *job, struct state *ns, const struct chat_message *message,
                             bool thoughts_cut) {
    const json_t *calls = tool_calls(job, message, true);
    bool has_content = thoughts_cut || !calls || !chat_content_is_null(message);
    struct chat_string content = {0};
    if (has_content) content = chat_content(job, message);
    if (thoughts_cut) content = after_last_thought(content);
    if (calls) {
        update_calls(job, ns, message, calls, has_content, content);
        return;
    }
    ns->is_last_user = false;
    put_wrapped(job, ns->is_tool ? OUTPUTS_END : "", content, END_OF_SENTENCE);
    ns->is_tool = false;
}

static void update_render(struct chat_job *job, bool thoughts_cut) {
    struct state ns = {.is_output_first = true};
    system_render(job, CHAT_CALLS_FENCED);
    for (size_t i = 0; i < json_array_size(job->messages) && !job->code; i++) {
        struct chat_message message = chat_message_at(job, i, ROLES);
        if (message.role == CHAT_USER) {
            ns.is_tool = ns.is_first = false;
            ns.is_last_user = true;
            put_wrapped(job, USER, chat_content(job, &message), ASSISTANT);
        } else if (message.role == CHAT_ASSISTANT) {
            update_assistant(job, &ns, &message, thoughts_cut);
        } else if (message.role == CHAT_TOOL) {
            put_output(job, &ns, &message, "\n");
        }
    }
    if (ns.is_tool) chat_own(job, OUTPUTS_END);
    if (job->add_generation_prompt && !ns.is_last_user && !ns.is_tool) chat_own(job, ASSISTANT);
}

void chat_render_v3_0324(struct chat_job *job) {
    update_render(job, false);
}

void chat_render_r1_0528(struct chat_job *job) {
    update_render(job, true);
}

static void v3_1_calls(struct chat_job *job, struct state *ns, const struct chat_message *message,
                       const json_t *calls) {
    if (ns->is_last_user || ns->is_only_sys) chat_own(job, ASSISTANT "</think>");
    ns->is_last_user = ns->is_tool = false;
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i);
        if (i == 0 && !chat_content_is_null(message)) chat_put(job, chat_content(job, message));
        chat_own(job, i == 0 ? CALLS_BEGIN CALL_BEGIN : CALL_BEGIN);
        put_name(job, message, call);
        chat_own(job, CALL_SEPARATOR);
        put_arguments(job, message, call);
        chat_own(job, CALL_END);
    }
    chat_own(job, CALLS_END END_OF_SENTENCE);
}

static void v3_1_answer(struct chat_job *job, struct state *ns, const struct chat_message *message, bool thinking) {
    struct chat_string content = chat_content(job, message);
    bool is_prefix = chat_truth(json_object_get(message->json, "prefix"));
    if (ns->is_last_user) chat_own(job, thinking && is_prefix ? ASSISTANT "<think>" : ASSISTANT "</think>");
    ns->is_prefix = ns->is_prefix || is_prefix;
    chat_put(job, ns->is_tool ? content : after_first_thought(content));
    chat_own(job, END_OF_SENTENCE);
    ns->is_last_user = ns->is_tool = false;
}

static void v3_1_message(struct chat_job *job, struct state *ns, const struct chat_message *message, bool thinking) {
    if (message->role == CHAT_USER) {
        ns->is_tool = false;
        ns->is_last_user = true;
        put_wrapped(job, USER, chat_content(job, message), "");
    } else if (message->role == CHAT_ASSISTANT) {
        const json_t *calls = tool_calls(job, message, true);
        if (calls) {
            v3_1_calls(job, ns, message, calls);
        } else {
            v3_1_answer(job, ns, message, thinking);
        }
    } else if (message->role == CHAT_TOOL) {
        ns->is_last_user = false;
        ns->is_tool = true;
        put_wrapped(job, OUTPUT_BEGIN, chat_content(job, message), OUTPUT_END);
    }
}

/* V3.1-Terminus, and V3.2-Exp: an answer is opened after the system's words alone, too. */
static void v3_1_render(struct chat_job *job, bool is_terminus) {
    bool thinking = chat_truth(json_object_get(job->kwargs, "thinking"));
    struct state ns = {0};
    system_render(job, CHAT_CALLS_BARE);
    for (size_t i = 0; i < json_array_size(job->messages) && is_terminus && !job->code; i++) {
        ns.is_only_sys = ns.is_only_sys || chat_message_at(job, i, ROLES).role == CHAT_SYSTEM;
    }
    for (size_t i = 0; i < json_array_size(job->messages) && !job->code; i++) {
        struct chat_message message = chat_message_at(job, i, ROLES);
        v3_1_message(job, &ns, &message, thinking);
        if (message.role != CHAT_SYSTEM) ns.is_only_sys = false;
    }
    bool opens = ns.is_last_user || (is_terminus && (ns.is_only_sys || !ns.is_prefix));
    if (job->add_generation_prompt && opens && !ns.is_tool) {
        chat_own(job, thinking ? ASSISTANT "<think>" : ASSISTANT "</think>");
    }
}

void chat_render_v3_1(struct chat_job *job) {
    v3_1_render(job, false);
}

void chat_render_v3_1_terminus(struct chat_job *job) {
    v3_1_render(job, true);
}
