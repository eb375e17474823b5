#include "server/tls.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

enum { PEM_BYTES_MAX = 1 << 20 };

static void wipe(char **text) {
    if (*text) OPENSSL_cleanse(*text, strlen(*text));
    free(*text);
    *text = NULL;
}

/* --- the certificate ----------------------------------------------------------------------------- */

/* Those above the first: all must be whole. NULL, or why not. */
static const char *check_chain(BIO *text) {
    X509 *above;
    while ((above = PEM_read_bio_X509(text, NULL, NULL, NULL))) X509_free(above);
    bool is_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
    return is_end ? NULL : "a certificate behind the first is damaged";
}

static X509 *parse_certificate(const char *pem, const char *path, struct mo_error *error) {
    BIO *text = BIO_new_mem_buf(pem, -1);
    X509 *certificate = text ? PEM_read_bio_X509(text, NULL, NULL, NULL) : NULL;
    const char *reason = certificate ? check_chain(text) : "expected a certificate in PEM, found none that is whole";
    BIO_free(text);
    ERR_clear_error();
    if (!reason) return certificate;
    mo_error_set(error, MO_E_CORRUPT, "--ssl-certfile %s: %s", path, reason);
    X509_free(certificate);
    return NULL;
}

/* --- the key ------------------------------------------------------------------------------------- */

struct password {
    const char *text;
    bool is_asked;
};

/* The library's callback; without it, it would ask on the terminal. */
static int give_password(char *out, int size, int writes, void *context) {
    struct password *password = context;
    (void)writes;
    password->is_asked = true;
    size_t n = password->text ? strlen(password->text) : 0;
    if (n == 0 || n > (size_t)size) return -1;
    memcpy(out, password->text, n);
    return (int)n;
}

static EVP_PKEY *parse_key(const char *pem, const struct tls_files *files, struct mo_error *error) {
    struct password password = {.text = files->password};
    BIO *text = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = text ? PEM_read_bio_PrivateKey(text, NULL, give_password, &password) : NULL;
    BIO_free(text);
    ERR_clear_error();
    if (key) return key;
    const char *reason = !password.is_asked ? "expected a private key in PEM, found none that is whole"
                         : files->password  ? "the password does not decrypt it"
                                            : "it is encrypted: give --ssl-keyfile-password or MOEBIUS_SSL_PASSWORD";
    mo_error_set(error, MO_E_CORRUPT, "--ssl-keyfile %s: %s", files->key, reason);
    return NULL;
}

/* As PEM that is not encrypted, which every TLS library reads alike; NULL without memory. */
static char *print_key(const EVP_PKEY *key) {
    BIO *text = BIO_new(BIO_s_secmem());
    char *data = NULL, *pem = NULL;
    if (text && PEM_write_bio_PrivateKey(text, key, NULL, NULL, 0, NULL, NULL)) {
        long size = BIO_get_mem_data(text, &data);
        if (size > 0) pem = strndup(data, (size_t)size);
    }
    BIO_free(text);
    return pem;
}

/* --- both ---------------------------------------------------------------------------------------- */

static int match(struct tls *tls, X509 *certificate, EVP_PKEY *key, const struct tls_files *files,
                 struct mo_error *error) {
    bool fits = X509_check_private_key(certificate, key) == 1;
    ERR_clear_error();
    if (!fits) {
        return mo_error_set(error, MO_E_CORRUPT, "--ssl-keyfile %s: this is not the key of the certificate in %s",
                            files->key, files->certificate);
    }
    tls->is_over = X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0;
    tls->key = print_key(key);
    return tls->key ? 0 : mo_error_set(error, MO_E_NO_MEMORY, "no memory for the key");
}

static int read_pem(char **pem, const char *flag, const char *path, struct mo_error *error) {
    size_t size;
    int code = file_read(path, PEM_BYTES_MAX, pem, &size, error);
    return code ? mo_error_prefix(error, "%s", flag) : 0;
}

int tls_read(struct tls *tls, const struct tls_files *files, struct mo_error *error) {
    char *pem = NULL;
    *tls = (struct tls){0};
    int code = read_pem(&tls->certificate, "--ssl-certfile", files->certificate, error);
    if (!code) code = read_pem(&pem, "--ssl-keyfile", files->key, error);
    X509 *certificate = code ? NULL : parse_certificate(tls->certificate, files->certificate, error);
    EVP_PKEY *key = certificate ? parse_key(pem, files, error) : NULL;
    if (!code) code = key ? match(tls, certificate, key, files, error) : MO_E_CORRUPT;
    EVP_PKEY_free(key);
    X509_free(certificate);
    wipe(&pem);
    if (code) tls_free(tls);
    return code;
}

void tls_free(struct tls *tls) {
    free(tls->certificate);
    wipe(&tls->key);
    *tls = (struct tls){0};
}
