/* server/tls.h - what the server shows its clients by TLS: a certificate and its key, read and held against each other before anything
 * large is loaded. Pure but for files. Includes: base; libcrypto in tls.c only. */
#ifndef MOEBIUS_SERVER_TLS_H
#define MOEBIUS_SERVER_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"

/* As the command line names them; both files or neither. */
struct tls_files {
    const char *certificate, *key; /* PEM; the certificate's file may hold those above it, in order. NULL: no TLS */
    const char *password;          /* of the key, if it is encrypted; else NULL */
};

/* PEM, NUL-terminated; both NULL without TLS. */
struct tls {
    char *certificate, *key; /* the key is not encrypted any more */
    bool is_over;            /* the certificate's time: clients will refuse it */
};

static inline bool tls_is_wanted(const struct tls_files *files) {
    return files->certificate != NULL;
}

/* MO_E_IO: cannot be read; MO_E_CORRUPT: no PEM, a key that is another certificate's, or a wrong password. */
int tls_read(struct tls *tls, const struct tls_files *files, struct mo_error *error);
void tls_free(struct tls *tls); /* accepts a zeroed one; wipes the key */

#endif
