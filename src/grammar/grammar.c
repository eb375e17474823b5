#include "grammar/grammar.h"

#include <stdatomic.h>
#include <stdlib.h>
#include "base/json.h"
#include "grammar/front.h"
#include "grammar/mask.h"

struct grammar {
    atomic_int references;
    struct nodes nodes;
    const struct vocabulary *vocabulary;
    struct automaton automaton;
    struct masks masks;
    uint32_t generation; /* of the states; begins with 1 */
};

static int32_t parse_choice(struct nodes *nodes, const char *text, size_t size) {
    json_t *root;
    if (json_parse(text, size, "choice", &root, nodes->error)) {
        nodes->code = MO_E_INVALID;
        return NODES_EMPTY;
    }
    int32_t any = NODES_NEVER;
    if (!json_is_array(root) || json_array_size(root) == 0) {
        nodes_fail(nodes, MO_E_INVALID, "expected a list of strings that is not empty");
    }
    for (size_t i = json_array_size(root); i-- > 0;) {
        const json_t *item = json_array_get(root, i);
        if (!json_is_string(item) || json_string_length(item) == 0) {
            nodes_fail(nodes, MO_E_INVALID, "expected strings that are not empty, found something else at %zu", i);
        } else {
            any = nodes_alt(nodes, nodes_literal(nodes, json_string_value(item), json_string_length(item)), any);
        }
    }
    json_decref(root);
    return any;
}

static int32_t parse(struct nodes *nodes, enum grammar_kind kind, const char *text, size_t size,
                     const struct vocabulary *vocabulary) {
    struct json_parts parts = {0};
    switch (kind) {
    case GRAMMAR_JSON_SCHEMA:
        return schema_parse(nodes, text, size);
    case GRAMMAR_JSON_OBJECT:
        return json_any_object(nodes, &parts);
    case GRAMMAR_REGEX:
        return regex_parse(nodes, text, size, REGEX_PLAIN, false);
    case GRAMMAR_CHOICE:
        return parse_choice(nodes, text, size);
    case GRAMMAR_GBNF:
        return gbnf_parse(nodes, text, size);
    case GRAMMAR_CALLS:
        return calls_parse(nodes, text, size, vocabulary);
    }
    return NODES_NEVER;
}

/* Masks first: they know their vocabulary even where there is no memory for the rest, and are asked for their size then. */
static int states_init(struct grammar *grammar, struct mo_error *error) {
    int code = masks_init(&grammar->masks, grammar->vocabulary, error);
    if (!code) code = automaton_init(&grammar->automaton, &grammar->nodes, error);
    grammar->generation++;
    return code;
}

static void states_free(struct grammar *grammar) {
    automaton_free(&grammar->automaton);
    masks_free(&grammar->masks);
}

int grammar_compile(struct grammar **out, enum grammar_kind kind, const char *text, size_t size,
                    const struct vocabulary *vocabulary, struct mo_error *error) {
    if (size > GRAMMAR_TEXT_MAX) {
        return mo_error_set(error, MO_E_INVALID, "it is too large: %zu bytes, at most %d", size, GRAMMAR_TEXT_MAX);
    }
    struct grammar *grammar = calloc(1, sizeof *grammar);
    if (!grammar) return mo_error_set(error, MO_E_NO_MEMORY, "out of memory for a grammar");
    atomic_init(&grammar->references, 1);
    grammar->vocabulary = vocabulary;
    int code = nodes_init(&grammar->nodes, error);
    if (!code) code = nodes_finish(&grammar->nodes, parse(&grammar->nodes, kind, text, size, vocabulary));
    if (!code) code = states_init(grammar, error);
    const uint64_t *mask; /* made here and not by the engine thread; shows as well whether the beginning is too much */
    if (!code) code = masks_get(&grammar->masks, &grammar->automaton, AUTOMATON_START, &mask, error);
    struct grammar_cursor begin = {.state = AUTOMATON_START};
    if (!code && grammar_must_end(grammar, &begin)) {
        code = mo_error_set(error, MO_E_INVALID, "only the empty text satisfies it");
    }
    grammar->nodes.error = NULL;
    if (code) {
        if (code == MO_E_LIMIT && error) error->code = MO_E_INVALID;
        grammar_release(grammar);
        return code == MO_E_LIMIT ? MO_E_INVALID : code;
    }
    *out = grammar;
    return 0;
}

struct grammar *grammar_keep(struct grammar *grammar) {
    if (grammar) atomic_fetch_add(&grammar->references, 1);
    return grammar;
}

void grammar_release(struct grammar *grammar) {
    if (!grammar || atomic_fetch_sub(&grammar->references, 1) > 1) return;
    states_free(grammar);
    nodes_free(&grammar->nodes);
    free(grammar);
}

/* --- engine thread ------------------------------------------------------------------------------- */

static int take_token(struct grammar *grammar, struct grammar_cursor *cursor, int32_t token, struct mo_error *error) {
    size_t size;
    const char *bytes = vocabulary_bytes(grammar->vocabulary, token, &size);
    int32_t state = cursor->state;
    automaton_begin(&grammar->automaton, false);
    for (size_t i = 0; i < size && state >= 0; i++)
        state = automaton_step(&grammar->automaton, state, (uint8_t)bytes[i]);
    int code = automaton_check(&grammar->automaton, error);
    if (!code && (state < 0 || size == 0)) {
        code = mo_error_set(error, MO_E_INTERNAL, "token %d is not what the grammar allows", token);
    }
    if (code) return code;
    cursor->state = state;
    cursor->n_taken++;
    return 0;
}

static size_t states_bytes(const struct grammar *grammar) {
    return automaton_bytes(&grammar->automaton) + masks_bytes(&grammar->masks);
}

static int states_renew(struct grammar *grammar, struct mo_error *error) {
    states_free(grammar);
    int code = states_init(grammar, error);
    if (code) grammar->automaton.no_memory = true; /* tried again by the next one */
    return code;
}

int grammar_follow(struct grammar *grammar, struct grammar_cursor *cursor, const int32_t *tokens, int n_tokens,
                   struct mo_error *error) {
    int code = 0;
    bool is_full = states_bytes(grammar) > GRAMMAR_STATES_MAX;
    if (is_full || grammar->automaton.no_memory) code = states_renew(grammar, error);
    if (cursor->generation != grammar->generation) {
        *cursor = (struct grammar_cursor){grammar->generation, AUTOMATON_START, 0};
    }
    while (!code && cursor->n_taken < n_tokens) {
        code = take_token(grammar, cursor, tokens[cursor->n_taken], error);
        if (!code && is_full &&
            states_bytes(grammar) > GRAMMAR_STATES_MAX) { /* by this text alone: it would never end */
            code = mo_error_set(error, MO_E_LIMIT, "the answer is too long for what its grammar counts or nests");
        }
    }
    return code;
}

int grammar_mask(struct grammar *grammar, const struct grammar_cursor *cursor, const uint64_t **mask,
                 struct mo_error *error) {
    return masks_get(&grammar->masks, &grammar->automaton, cursor->state, mask, error);
}

void grammar_trim(struct grammar *grammar) {
    bool is_idle = atomic_load(&grammar->references) == 1;
    if (is_idle && states_bytes(grammar) > GRAMMAR_STATES_IDLE) states_renew(grammar, NULL);
}

bool grammar_may_end(const struct grammar *grammar, const struct grammar_cursor *cursor) {
    return grammar->automaton.states[cursor->state].may_end;
}

bool grammar_must_end(const struct grammar *grammar, const struct grammar_cursor *cursor) {
    const struct state *state = &grammar->automaton.states[cursor->state];
    return state->may_end && state->n == 1;
}
