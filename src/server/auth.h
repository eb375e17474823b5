/* server/auth.h - API keys. Only digests are kept, and comparing takes the same time whatever the guess.
 * Includes: base. */
#ifndef MOEBIUS_SERVER_AUTH_H
#define MOEBIUS_SERVER_AUTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { AUTH_KEYS_MAX = 64, AUTH_DIGEST_BYTES = 32 };

struct auth {
    uint8_t digests[AUTH_KEYS_MAX][AUTH_DIGEST_BYTES];
    int n; /* 0: everybody may */
};

/* False if the table is full or the key is empty. */
bool auth_add(struct auth *auth, const char *key, size_t size);
/* `header` is the request's Authorization, or NULL. */
bool auth_allows(const struct auth *auth, const char *header);
/* `key` alone, as other headers have it, or NULL. */
bool auth_allows_key(const struct auth *auth, const char *key);

#endif
