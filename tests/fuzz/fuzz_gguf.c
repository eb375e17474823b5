/* tests/fuzz/fuzz_gguf.c - a GGUF file is refused with a message, or all that it lists lies inside it, and its values make documents
 * that the other readers can take. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "model/gguf/gguf.h"
#include "model/model.h"
#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(int code, const struct mo_error *error) {
    if (code != 0 && (error->code != code || error->message[0] == 0)) abort();
}

static void check_tensor(const struct gguf_tensor *tensor, const uint8_t *data, size_t size) {
    if (!tensor->name[0] || tensor->n_dims < 1 || tensor->n_dims > TENSOR_MAX_DIMS || tensor->bytes > size) abort();
    if (tensor->data < data || tensor->data + tensor->bytes > data + size || !gguf_type_of(tensor->type)) abort();
    volatile uint8_t sink = tensor->data[0];
    sink = (uint8_t)(sink ^ tensor->data[tensor->bytes - 1]);
}

static void check_value(const struct gguf_value *value, const uint8_t *data, size_t size) {
    if (value->data < data || value->data + value->bytes > data + size) abort();
    if (value->type != GGUF_ARRAY || value->element != GGUF_STRING) return;
    size_t at = 0;
    for (uint64_t i = 0; i < value->count; i++) {
        struct gguf_text text = gguf_next_text(value, &at);
        if ((const uint8_t *)text.data + text.size > data + size) abort();
    }
    if (at != value->bytes) abort();
}

/* A document's text, or NULL where there is none. */
static char *text_of(const struct gguf *gguf, int (*make)(const struct gguf *, json_t **, struct mo_error *),
                     size_t *size) {
    struct mo_error error = {0};
    json_t *root = NULL;
    int code = make(gguf, &root, &error);
    check_error(code, &error);
    if (code) return NULL;
    char *text = json_dumps(root, JSON_COMPACT);
    if (!text) abort();
    json_decref(root);
    *size = strlen(text);
    return text;
}

/* What the values become is read as a model's own files are. */
static void read_documents(const struct gguf *gguf) {
    struct mo_error error = {0};
    struct model model;
    struct tokenizer *tokenizer = NULL;
    size_t size, config_size = 0;
    char *text = text_of(gguf, gguf_config, &size);
    if (text) check_error(model_parse(&model, text, size, "fuzz", &error), &error);
    free(text);
    free(text_of(gguf, gguf_generation_config, &size));
    char *config = text_of(gguf, gguf_tokenizer_config, &config_size);
    text = text_of(gguf, gguf_tokenizer, &size);
    if (text) check_error(tokenizer_parse(&tokenizer, text, size, config, config_size, "fuzz", &error), &error);
    tokenizer_free(tokenizer);
    free(config);
    free(text);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static void list(const struct gguf *gguf, struct arena *arena) {
    struct shard shard = {.path = "fuzz.gguf"};
    struct checkpoint checkpoint = {.arena = arena, .path = "fuzz.gguf", .gguf = gguf, .shards = &shard, .n_shards = 1};
    struct mo_error error = {0};
    struct tensor *tensors;
    int n, code = gguf_list_tensors(&checkpoint, &tensors, &n, &error);
    check_error(code, &error);
    for (int i = 0; i < n && !code; i++) {
        if (!tensors[i].name || !tensors[i].bytes) abort();
        volatile uint8_t sink = ((const uint8_t *)tensors[i].data)[tensors[i].bytes - 1];
        (void)sink;
    }
    free(tensors);
    static struct pool *pool;
    if (!pool && pool_create(&pool, 1, &error)) abort();
    check_error(gguf_verify(&checkpoint, pool, &error), &error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct arena *arena = arena_create();
    struct gguf_header header;
    struct mo_error error = {0};
    if (!arena) abort();
    log_set_level(LOG_QUIET); /* it would warn of most */
    int code = gguf_parse(data, size, "fuzz.gguf", 0, arena, &header, &error);
    check_error(code, &error);
    if (!code) {
        struct gguf gguf = {.path = "fuzz.gguf",
                            .values = header.values,
                            .n_values = header.n_values,
                            .tensors = header.tensors,
                            .n_tensors = header.n_tensors};
        if (header.header_bytes > size) abort();
        for (int i = 0; i < header.n_tensors; i++) check_tensor(&header.tensors[i], data, size);
        for (int i = 0; i < header.n_values; i++) check_value(&header.values[i], data, size);
        qsort(gguf.tensors, (size_t)gguf.n_tensors, sizeof *gguf.tensors, by_name);
        read_documents(&gguf);
        list(&gguf, arena);
    }
    arena_destroy(arena);
    return 0;
}
