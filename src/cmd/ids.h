/* cmd/ids.h - token ids on the command line, for commands that drive the forward pass by hand (`logits`, `experts`). */
#ifndef MOEBIUS_CMD_IDS_H
#define MOEBIUS_CMD_IDS_H

#include "text/tokenizer.h"

/* --ids: a list as in 1,2,3, or a file ("-" is stdin) with a JSON array. All of them in the vocabulary, and one at least. */
int ids_read(const char *source, int vocab, struct token_list *ids, struct mo_error *error);

#endif
