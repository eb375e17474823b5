#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <string.h>
#include <strings.h>

bool auth_add(struct auth *auth, const char *key, size_t size) {
    if (size == 0 || auth->n == AUTH_KEYS_MAX) return false;
    SHA256((const unsigned char *)key, size, auth->digests[auth->n++]);
    return true;
}

bool auth_allows_key(const struct auth *auth, const char *key) {
    if (auth->n == 0) return true;
    if (!key) return false;
    uint8_t digest[AUTH_DIGEST_BYTES];
    SHA256((const unsigned char *)key, strlen(key), digest);
    int n_equal = 0; /* every key is compared, so that time does not tell which one was near */
    for (int i = 0; i < auth->n; i++) n_equal += CRYPTO_memcmp(digest, auth->digests[i], sizeof digest) == 0;
    return n_equal > 0;
}

bool auth_allows(const struct auth *auth, const char *header) {
    static const char SCHEME[] = "Bearer ";
    if (auth->n == 0) return true;
    if (!header || strncasecmp(header, SCHEME, sizeof SCHEME - 1) != 0) return false;
    const char *key = header + sizeof SCHEME - 1;
    return auth_allows_key(auth, key + strspn(key, " "));
}
