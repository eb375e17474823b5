#include "plan/ranks.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum { PIECE_PAIRS = 1024, HEAD_BYTES = 64 }; /* as engine/ranks.c and ranks/wire.h have them */

void plan_ranks_deal(const struct plan_input *in, bool on_card, int *sizes) {
    int count = in->machine.nodes, experts = in->arch.experts, left = experts;
    double routed = in->weights.bytes[PLAN_ROUTED], each = plan_usable_ram(&in->machine, &in->wish);
    double first = fmax(each - (on_card ? 0 : plan_weights_total(&in->weights) - routed), 0);
    double room = first + each * (count - 1);
    assert(count >= 1 && count <= PLAN_MAX_RANKS);
    bool alike = room < routed ? first > 0 : first >= routed / count && each >= routed / count;
    double share = alike || !(room > 0) ? 1.0 / count : first / room;
    for (int r = 0; r < count; r++) { /* what the last have to many or too few, the first take or give */
        double of_left = r == 0 ? share : 1.0 / (count - r);
        sizes[r] = (int)ceil(left * of_left - 0.5);
        left -= sizes[r];
    }
}

/* ---- how uneven chance is ---- */

struct chance {
    const int *sizes;
    int count, experts, met;
    double *log_factorial; /* [experts + 1] */
    double *now, *then;    /* [met + 1] by experts met so far */
};

static double log_choose(const struct chance *c, int n, int k) {
    return c->log_factorial[n] - c->log_factorial[k] - c->log_factorial[n - k];
}

/* The chance that no machine has more than `most` of them: machine after machine draws from those that are left. */
static double chance_of(const struct chance *c, int most) {
    int behind = c->experts;
    for (int j = 0; j <= c->met; j++) c->now[j] = j == 0;
    for (int r = 0; r < c->count; r++) {
        int size = c->sizes[r], limit = most < size ? most : size;
        for (int j = 0; j <= c->met; j++) c->then[j] = 0;
        for (int j = 0; j <= c->met; j++) {
            int left = c->met - j;
            if (!(c->now[j] > 0) || left > behind) continue;
            for (int x = 0; x <= limit && x <= left; x++) {
                if (left - x > behind - size) continue;
                c->then[j + x] += c->now[j] * exp(log_choose(c, size, x) + log_choose(c, behind - size, left - x) -
                                                  log_choose(c, behind, left));
            }
        }
        for (int j = 0; j <= c->met; j++) c->now[j] = c->then[j];
        behind -= size;
    }
    return c->now[c->met];
}

static double busiest_of(struct chance *c) {
    int most = (c->met + c->count - 1) / c->count; /* somebody has so many */
    double sum = most, left = 1;
    for (; most < c->met && left > 1e-9; most++) {
        left = 1 - chance_of(c, most);
        sum += fmax(left, 0);
    }
    return sum;
}

double plan_ranks_busiest(const int *sizes, int count, double met) {
    int experts = 0;
    for (int r = 0; r < count; r++) experts += sizes[r];
    double low = floor(met), part = met - low, both[2];
    struct chance c = {.sizes = sizes, .count = count, .experts = experts};
    double *memory = calloc(3 * ((size_t)experts + 1), sizeof *memory);
    if (!memory) return met / count; /* of no use to say so: a few experts more or less */
    c.log_factorial = memory;
    c.now = memory + experts + 1;
    c.then = c.now + experts + 1;
    for (int i = 1; i <= experts; i++) c.log_factorial[i] = c.log_factorial[i - 1] + log(i);
    for (int i = 0; i < 2; i++) {
        c.met = (int)low + i;
        both[i] = c.met <= experts ? busiest_of(&c) : both[0];
    }
    free(memory);
    return both[0] + part * (both[1] - both[0]);
}

/* ---- messages ---- */

/* The chance that a token wants none of `size` experts. */
static double none_of(const struct plan_arch *arch, int size) {
    double chance = 1;
    for (int i = 0; i < arch->top_k; i++) chance *= fmax(arch->experts - size - i, 0) / (arch->experts - i);
    return chance;
}

void plan_ranks_exchange(const struct plan_arch *arch, const int *sizes, int count, int rows, struct plan_exchange *e) {
    double row = 4.0 * arch->hidden;
    *e = (struct plan_exchange){.pieces = ceil((double)rows * arch->top_k / PIECE_PAIRS)};
    for (int r = 1; r < count; r++) {
        double none = none_of(arch, sizes[r]), used = 1 - pow(none, rows);
        double pairs = (double)rows * arch->top_k * sizes[r] / arch->experts;
        double lists = ceil(8 * pairs / used / HEAD_BYTES / e->pieces) * HEAD_BYTES;
        if (!(used > 0)) continue;
        e->sent_bytes += e->pieces * used * (HEAD_BYTES + lists) + rows * (1 - none) * row;
        e->received_bytes += e->pieces * used * HEAD_BYTES + pairs * row;
    }
}

double plan_ranks_message_bytes(const struct plan_arch *arch) {
    return 3.0 * PIECE_PAIRS * (8 + 4.0 * arch->hidden);
}
