/* The template of Coder-V2 and V2: plain words for the roles, no tools. */
#include "text/chat_priv.h"

void chat_render_coder_v2(struct chat_job *job) {
    chat_own(job, job->bos);
    for (size_t i = 0; i < json_array_size(job->messages) && !job->code; i++) {
        struct chat_message message = chat_message_at(job, i, CHAT_SYSTEM | CHAT_USER | CHAT_ASSISTANT);
        if (!message.role) return;
        if (message.role == CHAT_USER) chat_own(job, "User: ");
        if (message.role == CHAT_ASSISTANT) chat_own(job, "Assistant: ");
        chat_put(job, chat_content(job, &message));
        chat_own(job, message.role == CHAT_ASSISTANT ? job->eos : "\n\n");
    }
    if (job->add_generation_prompt) chat_own(job, "Assistant:");
}
