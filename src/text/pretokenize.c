#include "text/pretokenize.h"

#include <stdlib.h>
#include <string.h>

/* What ByteLevel with use_regex splits by: GPT-2's expression. */
static const char GPT2_PATTERN[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct reader {
    struct pretokenizer *out;
    const char *where;
    struct mo_error *error;
    bool byte_level; /* seen */
    int depth;       /* of sequences in sequences */
};

static int step_add(struct reader *reader, const char *pattern, size_t size, bool literal, enum split_behavior behavior,
                    bool invert) {
    struct pretokenizer *out = reader->out;
    if (out->n_steps == PRETOKENIZE_STEPS_MAX) {
        return mo_error_set(reader->error, MO_E_LIMIT, "%s: pre_tokenizer: more than %d steps", reader->where,
                            PRETOKENIZE_STEPS_MAX);
    }
    struct pretokenize_step *step = &out->steps[out->n_steps];
    *step = (struct pretokenize_step){NULL, behavior, invert};
    if (pattern) {
        int code = regex_create(&step->regex, pattern, size, literal, reader->error);
        if (code) {
            mo_error_prefix(reader->error, "%s: pre_tokenizer: step %d", reader->where, out->n_steps);
            return code;
        }
    }
    out->n_steps++;
    return 0;
}

static int behavior_parse(struct reader *reader, const json_t *object, enum split_behavior *out) {
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name;
    int code = json_get_string(object, "behavior", JSON_REQUIRED_KEY, reader->where, &name, reader->error);
    if (code) return code;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum split_behavior)i;
            return 0;
        }
    }
    return mo_error_set(reader->error, MO_E_UNSUPPORTED,
                        "%s: pre_tokenizer: Split: behavior \"%.100s\" is not supported", reader->where, name);
}

static int split_parse(struct reader *reader, const json_t *object) {
    enum split_behavior behavior = SPLIT_ISOLATED;
    bool invert = false;
    int code = behavior_parse(reader, object, &behavior);
    if (code) return code;
    code = json_get_bool(object, "invert", JSON_REQUIRED_KEY, reader->where, &invert, reader->error);
    if (code) return code;
    const json_t *pattern = json_object_get(object, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
    const json_t *value = regex ? regex : string;
    if (!json_is_string(value) || json_object_size(pattern) != 1) {
        return mo_error_set(reader->error, MO_E_INVALID,
                            "%s: pre_tokenizer: Split: expected \"pattern\" to be {\"Regex\": string} or "
                            "{\"String\": string}",
                            reader->where);
    }
    return step_add(reader, json_string_value(value), json_string_length(value), !regex, behavior, invert);
}

static int digits_parse(struct reader *reader, const json_t *object) {
    static const char pattern[] = "\\p{N}"; /* numeric: Nd, Nl and No */
    bool individual = false;
    int code = json_get_bool(object, "individual_digits", JSON_REQUIRED_KEY, reader->where, &individual, reader->error);
    if (code) return code;
    return step_add(reader, pattern, sizeof pattern - 1, false, individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, false);
}

static int byte_level_parse(struct reader *reader, const json_t *object) {
    bool use_regex = true;
    int code = json_get_bool(object, "add_prefix_space", JSON_REQUIRED_KEY, reader->where,
                             &reader->out->add_prefix_space, reader->error);
    if (code) return code;
    code = json_get_bool(object, "use_regex", JSON_OPTIONAL_KEY, reader->where, &use_regex, reader->error);
    if (code) return code;
    reader->byte_level = true;
    return step_add(reader, use_regex ? GPT2_PATTERN : NULL, sizeof GPT2_PATTERN - 1, false, SPLIT_ISOLATED, false);
}

static int step_parse(struct reader *reader, const json_t *object);

static int sequence_parse(struct reader *reader, const json_t *object) {
    const json_t *list = json_object_get(object, "pretokenizers"), *item;
    size_t i;
    if (!json_is_array(list)) {
        return mo_error_set(reader->error, MO_E_INVALID,
                            "%s: pre_tokenizer: Sequence: expected \"pretokenizers\" to be an array", reader->where);
    }
    if (++reader->depth > 4) {
        return mo_error_set(reader->error, MO_E_LIMIT, "%s: pre_tokenizer: sequences nested too deeply", reader->where);
    }
    json_array_foreach(list, i, item) {
        int code = step_parse(reader, item);
        if (code) return code;
    }
    reader->depth--;
    return 0;
}

static int step_parse(struct reader *reader, const json_t *object) {
    if (!json_is_object(object)) {
        return mo_error_set(reader->error, MO_E_INVALID, "%s: pre_tokenizer: expected an object with a \"type\"",
                            reader->where);
    }
    const char *type;
    int code = json_get_string(object, "type", JSON_REQUIRED_KEY, reader->where, &type, reader->error);
    if (code) return code;
    if (strcmp(type, "Sequence") == 0) return sequence_parse(reader, object);
    if (reader->byte_level) {
        return mo_error_set(reader->error, MO_E_UNSUPPORTED,
                            "%s: pre_tokenizer: %.100s after ByteLevel is not supported: ByteLevel must be last",
                            reader->where, type);
    }
    if (strcmp(type, "Split") == 0) return split_parse(reader, object);
    if (strcmp(type, "Digits") == 0) return digits_parse(reader, object);
    if (strcmp(type, "ByteLevel") == 0) return byte_level_parse(reader, object);
    return mo_error_set(reader->error, MO_E_UNSUPPORTED,
                        "%s: pre_tokenizer: a step of type \"%.100s\" is not supported (Sequence, Split, Digits "
                        "and ByteLevel are)",
                        reader->where, type);
}

int pretokenizer_parse(struct pretokenizer *pretokenizer, const json_t *value, const char *where,
                       struct mo_error *error) {
    *pretokenizer = (struct pretokenizer){0};
    struct reader reader = {.out = pretokenizer, .where = where, .error = error};
    int code = step_parse(&reader, value);
    if (!code && !reader.byte_level) {
        code = mo_error_set(error, MO_E_UNSUPPORTED,
                            "%s: pre_tokenizer: expected ByteLevel as the last step, found none", where);
    }
    if (code) pretokenizer_free(pretokenizer);
    return code;
}

void pretokenizer_free(struct pretokenizer *pretokenizer) {
    for (int i = 0; i < pretokenizer->n_steps; i++) regex_destroy(pretokenizer->steps[i].regex);
    *pretokenizer = (struct pretokenizer){0};
}

struct run {
    const struct pretokenizer *pretokenizer;
    struct regex_scratch *scratch;
    pretokenize_sink *sink;
    void *context;
    struct mo_error *error;
};

static int run_step(const struct run *run, int index, const uint8_t *text, size_t n);

/* One step at work on one text: matches and gaps come in order and go on to the next step. `held` waits for
 * what comes after it, where the behaviour joins neighbours. */
struct splitter {
    const struct run *run;
    const uint8_t *text;
    int next; /* the step that gets the pieces */
    enum split_behavior behavior;
    bool invert;
    bool holds, last_matched;
    size_t held_begin, held_end;
};

static int pass_on(struct splitter *s, size_t begin, size_t end) {
    return begin == end ? 0 : run_step(s->run, s->next, s->text + begin, end - begin);
}

static int flush(struct splitter *s) {
    if (!s->holds) return 0;
    s->holds = false;
    return pass_on(s, s->held_begin, s->held_end);
}

static int part_add(struct splitter *s, size_t begin, size_t end, bool matched) {
    matched ^= s->invert;
    if (s->behavior == SPLIT_ISOLATED) return pass_on(s, begin, end);
    if (s->behavior == SPLIT_REMOVED) return matched ? 0 : pass_on(s, begin, end);
    bool join = s->behavior == SPLIT_CONTIGUOUS             ? matched == s->last_matched
                : s->behavior == SPLIT_MERGED_WITH_PREVIOUS ? matched && !s->last_matched
                                                            : !matched && s->last_matched;
    s->last_matched = matched;
    if (join && s->holds) {
        s->held_end = end;
        return 0;
    }
    int code = flush(s);
    s->holds = true;
    s->held_begin = begin;
    s->held_end = end;
    return code;
}

static int split(const struct run *run, int index, const uint8_t *text, size_t n) {
    const struct pretokenize_step *step = &run->pretokenizer->steps[index];
    struct splitter s = {
        .run = run, .text = text, .next = index + 1, .behavior = step->behavior, .invert = step->invert};
    size_t at = 0, not_empty_at = SIZE_MAX, begin, end;
    int found;
    while ((found = regex_find(step->regex, run->scratch, text, n, at, not_empty_at, &begin, &end, run->error)) > 0) {
        int code = begin > at ? part_add(&s, at, begin, false) : 0;
        if (!code) code = part_add(&s, begin, end, true);
        if (code) return code;
        at = not_empty_at = end;
    }
    if (found < 0) return found;
    int code = at < n ? part_add(&s, at, n, false) : 0;
    return code ? code : flush(&s);
}

/* ByteLevel with add_prefix_space: the piece is copied behind a space. */
static int split_prefixed(const struct run *run, int index, const uint8_t *text, size_t n) {
    uint8_t *copy = malloc(n + 1);
    if (!copy) return mo_error_set(run->error, MO_E_NO_MEMORY, "out of memory for a piece of %zu bytes", n);
    copy[0] = ' ';
    memcpy(copy + 1, text, n);
    int code = run->pretokenizer->steps[index].regex ? split(run, index, copy, n + 1)
                                                     : run->sink(run->context, copy, n + 1, run->error);
    free(copy);
    return code;
}

static int run_step(const struct run *run, int index, const uint8_t *text, size_t n) {
    const struct pretokenizer *pretokenizer = run->pretokenizer;
    if (index == pretokenizer->n_steps) return run->sink(run->context, text, n, run->error);
    bool last = index == pretokenizer->n_steps - 1;
    if (last && pretokenizer->add_prefix_space && text[0] != ' ') return split_prefixed(run, index, text, n);
    if (!pretokenizer->steps[index].regex) return run_step(run, index + 1, text, n);
    return split(run, index, text, n);
}

int pretokenizer_run(const struct pretokenizer *pretokenizer, struct regex_scratch *scratch, const uint8_t *text,
                     size_t n, pretokenize_sink *sink, void *context, struct mo_error *error) {
    const struct run run = {pretokenizer, scratch, sink, context, error};
    return n ? run_step(&run, 0, text, n) : 0;
}
