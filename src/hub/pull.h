/* hub/pull.h - a repository's files into the cache: the listing, then the wanted files by several threads, each with a connection
 * of its own. Every byte is hashed on its way (on going on: what is there, too), and a file gets its name in the cache only when
 * its hash is what the listing says. Includes: base, hub. */
#ifndef MOEBIUS_HUB_PULL_H
#define MOEBIUS_HUB_PULL_H

#include <stdatomic.h>
#include "hub/cache.h"
#include "hub/http.h"
#include "hub/list.h"

struct hub_pull {
    struct hub_site site;
    const char *model, *revision;
    int connections, retries;
    struct hub_cache cache;
    struct hub_listing listing;
    /* Lines for people: called from any thread. */
    void (*note)(void *context, const char *line);
    /* How far it is: called by hub_pull_files' thread a few times a second. */
    void (*tick)(void *context, const struct hub_pull *pull);
    void *context;
    /* What happens, for tick */
    atomic_llong n_there;    /* bytes of wanted files that are on the disk */
    atomic_llong n_received; /* bytes that came through the network */
    atomic_int n_files_done;
    atomic_bool stop; /* set by anybody: what runs ends soon, what is there stays */
    bool has_changed; /* after a failure: the repository is not what was listed; list again */
};

/* Asks for the listing, with retries. */
int hub_pull_list(struct hub_pull *pull, struct mo_error *error);
/* The wanted files, those that are not there yet: all, or first all but weights. */
enum hub_part { HUB_ALL, HUB_BESIDE_WEIGHTS };
int hub_pull_files(struct hub_pull *pull, enum hub_part part, struct mo_error *error);

#endif
