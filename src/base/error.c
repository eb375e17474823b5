#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/utf8.h"

int mo_error_set(struct mo_error *error, int code, const char *format, ...) {
    if (!error) return code;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    utf8_clean(error->message); /* names of files and tensors are anybody's bytes */
    error->code = code;
    return code;
}

int mo_error_prefix(struct mo_error *error, const char *format, ...) {
    if (!error) return MO_E_INTERNAL;
    char message[sizeof error->message];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    size_t n = strlen(message);
    strncat(message, ": ", sizeof message - 1 - n);
    n = strlen(message);
    strncat(message, error->message, sizeof message - 1 - n);
    utf8_clean(message);
    memcpy(error->message, message, sizeof message);
    return error->code;
}
