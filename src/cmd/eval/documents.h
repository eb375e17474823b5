/* cmd/eval/documents.h - the text that a model has not seen: every *.py file below a folder is one document. */
#ifndef MOEBIUS_CMD_EVAL_DOCUMENTS_H
#define MOEBIUS_CMD_EVAL_DOCUMENTS_H

#include <stddef.h>
#include "base/error.h"

struct eval_document {
    char *name; /* its path, as messages say it */
    char *text; /* [size] valid UTF-8 */
    size_t size;
};

struct eval_documents {
    struct eval_document *items; /* [n], in order of their names; none is empty */
    int n, capacity;
};

/* Hidden folders are left out, and so are links to folders. A folder without a document is an error. */
int eval_documents_read(struct eval_documents *documents, const char *folder, struct mo_error *error);
void eval_documents_free(struct eval_documents *documents); /* accepts a zeroed one */

#endif
