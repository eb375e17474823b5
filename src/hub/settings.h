/* hub/settings.h - what the environment says about the hub, by the names that Hugging Face's own programs use: HF_ENDPOINT, and the
 * token from HF_TOKEN or from the file that `huggingface-cli login` writes. Includes: base, model/locate.h, hub/http.h. */
#ifndef MOEBIUS_HUB_SETTINGS_H
#define MOEBIUS_HUB_SETTINGS_H

#include "hub/http.h"

struct hub_settings {
    char endpoint[500];
    char token[1000]; /* "": none */
    char token_place[3100];
};

/* `token`: what the command line says instead (--hf-token); NULL: nothing. */
int hub_settings_read(struct hub_settings *settings, const char *token, struct mo_error *error);
/* HF_HUB_OFFLINE, if it says that nothing is to be downloaded; else NULL. */
const char *hub_offline(void);

#endif
