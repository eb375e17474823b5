#include "engine/fold.h"

#include "base/log.h"
#include "text/fold.h"

/* Ids behind the tokenizer's last are nobody's: no text has them, and they count as what is before a text. */
static int fold(const struct engine *engine, int32_t *folded, struct mo_error *error) {
    const struct engram_model *engram = &engine->model.hybrid.engram;
    const int n = tokenizer_size(engine->tokenizer);
    int count, code = fold_tokens(engine->tokenizer, folded, &count, error);
    if (code) return code;
    if (count != engram->folded_vocab) {
        return mo_error_set(
            error, MO_E_CORRUPT,
            "%s: tokenizer.json has %d different spellings, config.json an engram_compressed_vocab_size of "
            "%d: what n-grams remember could not be found",
            engine->path, count, engram->folded_vocab);
    }
    if (engram->pad >= n) {
        return mo_error_set(error, MO_E_CORRUPT,
                            "%s: engram_pad_token_id: expected one of tokenizer.json's %d ids, found %d", engine->path,
                            n, engram->pad);
    }
    for (int id = n; id < engine->model.vocab; id++) folded[id] = folded[engram->pad];
    return 0;
}

int engine_fold_tokens(struct engine *engine, struct mo_error *error) {
    const struct model *m = &engine->model;
    const struct engram_model *engram = &m->hybrid.engram;
    if (!engram->n_layers) return 0;
    int32_t *folded = arena_alloc_array(engine->weights.arena, (size_t)m->vocab, sizeof *folded);
    if (!folded) return mo_error_set(error, MO_E_NO_MEMORY, "no memory for the spellings of %d tokens", m->vocab);
    engine->weights.folded = folded;
    if (engine->tokenizer) return fold(engine, folded, error);
    if (!m->synthetic) {
        return mo_error_set(error, MO_E_NOT_FOUND,
                            "%s: expected a tokenizer.json: what n-grams remember is found by how tokens are spelt",
                            engine->path);
    }
    log_warn("%s has no tokenizer.json: its n-gram memory is looked up by token ids modulo %d, not by spellings",
             engine->path, engram->folded_vocab);
    for (int id = 0; id < m->vocab; id++) folded[id] = id % engram->folded_vocab;
    return 0;
}
