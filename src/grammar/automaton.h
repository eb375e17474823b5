/* grammar/automaton.h - the states that a text can be in while it is read byte by byte, made when they are first met.
 *
 * A frame is a node that is still to be read, how often yet, and the frame that comes after it: so a chain of frames is a
 * stack, and recursion needs nothing more. A state is the set of frames of which one may be read next: more than one where
 * the grammar has a choice. Frames and states are kept once, so a state is known by its number, and what a byte leads to is
 * remembered beside it (in a row): read again, a byte costs one look into a table.
 *
 * Counters ("at most 500 characters") would make every position another state with another mask. What one token may be hardly
 * depends on a limit that is far away, so each frame and state has a "near" one, where more than AUTOMATON_NEAR rounds left are
 * cut to so many, and more that are needed count as never reached: masks belong to those. All that such a mask allows is right;
 * what it leaves out is tokens of more rounds at once than that. Engine thread only. Private to src/grammar. */
#ifndef MOEBIUS_GRAMMAR_AUTOMATON_H
#define MOEBIUS_GRAMMAR_AUTOMATON_H

#include "grammar/nodes.h"

enum {
    AUTOMATON_DEAD = -1, /* no text of the grammar goes on like that */
    AUTOMATON_UNKNOWN = -2,
    AUTOMATON_START = 0,
    AUTOMATON_NEAR = 24,
    /* One mask, and one token of a text, may cost this many steps of making states: some ten milliseconds, and one. No usual
     * grammar comes near them. */
    AUTOMATON_MASK_STEPS_MAX = 1 << 20,
    AUTOMATON_TOKEN_STEPS_MAX = 1 << 16,
};

enum {
    FRAME_END, /* the text may end */
    FRAME_OUT, /* in states that automaton_cut makes: what comes now is not known */
};

struct frame {
    int32_t node;
    int32_t need, left; /* REPEAT: rounds that must, and may (-1: any), still come; LITERAL: need is the bytes read */
    int32_t next;       /* the frame after it */
    int32_t near;
    int32_t depth;            /* frames behind it */
    int32_t chain;            /* in its bucket */
    uint32_t resumed, listed; /* the last set that it was followed for, and that it is in */
};

struct state {
    int32_t first, n; /* its frames: members [first, first + n), ascending */
    int32_t chain;
    int32_t near;         /* AUTOMATON_UNKNOWN until asked for */
    int32_t row;          /* of `rows`; -1: none yet */
    int32_t mask;         /* mask.c's; -1: none yet */
    struct byte_set live; /* bytes that do not lead to AUTOMATON_DEAD */
    bool may_end;
};

/* A node to follow: on the way from a byte to the frames behind it. */
struct step_item {
    int32_t node, need, left, next;
};

struct table {      /* of frames or states: heads of chains */
    int32_t *heads; /* [n_heads] a power of two */
    uint32_t n_heads;
};

struct automaton {
    const struct nodes *nodes;
    struct frame *frames;
    struct state *states;
    int32_t *members;
    int32_t (*rows)[256];
    int n_frames, n_states, n_members, n_rows;
    int frames_capacity, states_capacity, members_capacity, rows_capacity;
    struct table frame_table, state_table;

    struct step_item *work; /* [work_capacity] */
    int32_t *set;           /* [set_capacity] the set that is being made */
    int n_work, n_set, work_capacity, set_capacity;
    uint32_t set_number;
    int n_steps, steps_max; /* since automaton_begin */
    bool keeps_rows;        /* new steps are remembered */
    bool no_memory;
};

/* The state AUTOMATON_START is there afterwards. `nodes` are finished and outlive it. */
int automaton_init(struct automaton *automaton, const struct nodes *nodes, struct mo_error *error);
void automaton_free(struct automaton *automaton); /* accepts a zeroed one */
size_t automaton_bytes(const struct automaton *automaton);

/* A new count of steps, for automaton_check. For a mask, where bytes lead to is remembered; a single text may go through very
 * many states, each of them once. */
void automaton_begin(struct automaton *automaton, bool for_mask);
/* Whether all states since automaton_begin could be made: MO_E_LIMIT, MO_E_NO_MEMORY. */
int automaton_check(const struct automaton *automaton, struct mo_error *error);
/* The state after one more byte. Once automaton_check fails the answer means nothing. */
int32_t automaton_make_step(struct automaton *automaton, int32_t state, uint8_t byte); /* one that is not remembered */
static inline int32_t automaton_step(struct automaton *automaton, int32_t state, uint8_t byte) {
    int32_t row = automaton->states[state].row;
    int32_t known = row < 0 ? AUTOMATON_UNKNOWN : automaton->rows[row][byte];
    return known == AUTOMATON_UNKNOWN ? automaton_make_step(automaton, state, byte) : known;
}
/* The state that counts no further than AUTOMATON_NEAR. */
int32_t automaton_near(struct automaton *automaton, int32_t state);
/* The state with FRAME_OUT for all that its frames have in common behind them: the inside of a string is the same wherever
 * the string stands. Itself if they have nothing in common but the end, or if few bytes can follow. */
int32_t automaton_cut(struct automaton *automaton, int32_t state);
static inline bool automaton_is_out(const struct automaton *automaton, int32_t state) {
    return automaton->members[automaton->states[state].first] == FRAME_OUT;
}

#endif
