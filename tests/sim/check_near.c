#include "check_near.h"

enum { MOST = 4096 };

/* Sequences that look at each page. */
static void count_lookers(const struct sched *sched, uint8_t lookers[MOST]) {
    memset(lookers, 0, MOST);
    for (int i = 0; i < sched->n_running + sched->n_held; i++) {
        const struct kv_seq *kv = i < sched->n_running ? &sched->running[i]->kv : &sched->held[i - sched->n_running];
        for (int p = kv->first_near; p < kv->n_pages; p++) lookers[kv->pages[p]]++;
    }
}

int near_faults(const struct sched *sched, int n_near) {
    const struct near_parts *near = &sched->kv.near;
    uint8_t taken[MOST] = {0}, lookers[MOST];
    int wrong = 0, n_idle = 0, n_listed = 0, n_placed = 0;
    if (!near->place) return 0;
    count_lookers(sched, lookers);
    for (int i = 0; i < sched->kv.n_pages; i++) {
        int place = near->place[i];
        wrong += near->pages[i].users != lookers[i] || (lookers[i] > 0 && place < 0);
        if (place < 0) continue;
        n_placed++;
        n_idle += lookers[i] == 0;
        wrong += taken[place]++ > 0;
    }
    for (int32_t i = near->first; i >= 0 && n_listed <= sched->kv.n_pages; i = near->pages[i].next) n_listed++;
    return wrong + (n_idle != near->n_idle) + (n_listed != n_idle) + (n_placed + near->n_unused != n_near);
}

void near_lose_all(struct sched *sched, struct fake_backend *fake) {
    struct near_parts *near = &sched->kv.near;
    while (near->n_idle > 0) {
        int place = near->place[near->first];
        near_lose(near);
        memset(fake->near_past + (size_t)place * KV_PAGE_TOKENS, 0xff, KV_PAGE_TOKENS * sizeof *fake->near_past);
        fake->summed[place] = 0;
    }
}
