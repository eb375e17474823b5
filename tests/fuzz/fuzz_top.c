/* tests/fuzz/fuzz_top.c - two answers of a server, up to the first NUL the earlier one. Whatever is in them: percentiles rise,
 * a screen stays within its columns and rows, is UTF-8 and steers no terminal, and there is JSON. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/utf8.h"
#include "require.h"
#include "cmd/top/json.h"
#include "cmd/top/screen.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_sample(const struct top_sample *sample) {
    require(sample->n_malformed >= 0 && strlen(sample->model) < sizeof sample->model);
    for (int i = 0; i < TOP_TIMES; i++) {
        const struct top_histogram *h = &sample->time[i];
        require(h->n >= 0 && h->n <= TOP_BUCKETS_MAX);
        for (int k = 1; k < h->n; k++) require(h->bound[k - 1] < h->bound[k]);
    }
}

static void check_quantiles(const struct top_sample *from, const struct top_sample *to) {
    static const double QUANTILES[] = {0, 0.1, 0.5, 0.9, 0.99, 1};
    for (enum top_time time = 0; time < TOP_TIMES; time++) {
        double least = -HUGE_VAL;
        for (size_t i = 0; i < sizeof QUANTILES / sizeof *QUANTILES; i++) {
            struct top_percentile p = top_quantile(from, to, time, QUANTILES[i]);
            if (isnan(p.seconds)) continue;
            require(p.seconds >= least - 1e-9 * fabs(least));
            least = p.seconds;
        }
    }
}

static void check_screen(const struct top_view *view) {
    struct buffer out = {0};
    top_screen_draw(&out, view);
    int rows = 0, cols = 0;
    require(!out.failed && utf8_valid_prefix((uint8_t *)out.data, out.size) == out.size);
    for (size_t i = 0; i < out.size; i++) {
        unsigned char c = (unsigned char)out.data[i];
        require(c == '\n' || (c >= 32 && c != 127));
        require(view->is_utf8 || c < 128);
        rows += c == '\n';
        cols = c == '\n' ? 0 : cols + ((c & 0xc0) != 0x80);
        require(cols <= view->cols);
    }
    require(view->rows == 0 || rows <= view->rows);
    buffer_free(&out);
}

static void check_json(const struct top_view *view) {
    json_t *root = top_json(view);
    char *text = json_dumps(root, 0);
    require(text != NULL);
    free(text);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *text = (const char *)data, *cut = size ? memchr(text, 0, size) : NULL;
    size_t n = cut ? (size_t)(cut - text) : size;
    struct top_history history;
    struct top_sample first, second;
    require(top_history_open(&history, 1, NULL) == 0);
    top_sample_read(&first, text, n);
    top_sample_read(&second, cut ? cut + 1 : "", cut ? size - n - 1 : 0);
    first.time_s = 1;
    second.time_s = 2;
    check_sample(&first);
    check_sample(&second);
    top_history_add(&history, &first);
    top_history_add(&history, &second);
    require(history.n == 2 || history.n_restarts == 1);
    check_quantiles(&first, &second);
    struct top_view view = {.history = &history, .state = TOP_READY, .url = "u", .trouble = "", .interval_s = 1};
    for (int i = 0; i < 4; i++) {
        view.cols = i % 2 ? 100 : 30;
        view.rows = i % 2 ? 0 : 12;
        view.is_utf8 = i / 2;
        view.is_live = i % 2;
        check_screen(&view);
    }
    check_json(&view);
    top_history_close(&history);
    return 0;
}
