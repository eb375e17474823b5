#include "server/request_id.h"

#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include "base/text.h"

void request_id_set(char id[REQUEST_ID_MAX + 1], const char *given) {
    static const char FRONT[] = "req_";
    size_t n = given ? strlen(given) : 0, n_good = 0;
    while (n_good < n && given[n_good] > ' ' && given[n_good] <= '~') n_good++;
    if (n > 0 && n <= REQUEST_ID_MAX && n_good == n) {
        memcpy(id, given, n + 1);
        return;
    }
    uint64_t random[2] = {0};
    if (getrandom(random, sizeof random, 0) < 0) random[0] = (uint64_t)(uintptr_t)id; /* ids need not be secret */
    memcpy(id, FRONT, sizeof FRONT);
    text_print_hex(random, sizeof random, id + sizeof FRONT - 1);
}
