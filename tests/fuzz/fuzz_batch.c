/* tests/fuzz/fuzz_batch.c - a file of requests, and what a run that was ended has left of its answers: up to the first
 * NUL the one, behind it the other. Whatever is in them, every line that is not blank is a request or has an error that can
 * be sent, both passes see the same, and what is kept are whole lines. */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/utf8.h"
#include "cmd/run_batch/output.h"
#include "require.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int file_of(const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    require(fd >= 0 && write(fd, data, size) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0);
    return fd;
}

static void check_request(const struct batch_request *r) {
    if (!r->code) {
        require(r->custom_id && *r->custom_id && r->url && *r->url && r->method && json_is_object(r->body));
        return;
    }
    size_t size = strlen(r->message);
    require(*r->code && size > 0 && utf8_valid_prefix((const uint8_t *)r->message, size) == size);
}

/* The second pass; returns how many requests there are. */
static int check_again(struct batch_input *input) {
    struct batch_request request;
    int n = 0, n_bad = 0, got, line = 0;
    while ((got = batch_input_next(input, &request, NULL)) == 1) {
        require(request.index == n && n < input->n && request.line > line);
        require(memcmp(&request.id, &input->entries[n].id, sizeof request.id) == 0);
        check_request(&request);
        n_bad += request.code != NULL;
        line = request.line;
        n++;
        batch_request_free(&request);
    }
    require(got == 0 && n_bad == input->n_bad);
    return n;
}

static void check_kept(const struct batch_output *output, const struct batch_input *input,
                       const struct batch_kept *kept) {
    int n = 0;
    char last;
    for (int i = 0; i < input->n; i++) {
        const struct batch_entry *entry = &input->entries[i];
        if (entry->at < 0) continue;
        n++;
        require(entry->size > 1 && entry->at + entry->size <= output->size);
        require(pread(output->fd, &last, 1, entry->at + entry->size - 1) == 1 && last == '\n');
    }
    require(n == kept->n && kept->n_errors <= n);
    require(lseek(output->fd, 0, SEEK_END) == output->size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    size_t n = cut ? (size_t)(cut - data) : size, rest = cut ? size - n - 1 : 0;
    struct batch_input input = {.path = "requests"};
    struct batch_output output = {.fd = file_of(cut ? cut + 1 : data, rest), .size = (int64_t)rest, .partial = "kept"};
    struct batch_kept kept;
    struct mo_error error = {0};
    input.lines = (struct batch_lines){.fd = file_of(data, n), .path = "requests", .max_bytes = 1 << 16};
    int code = batch_input_scan(&input, &error);
    require(code == 0 || (code == MO_E_INVALID && error.message[0]));
    if (!code) {
        require(input.n > input.n_bad && batch_input_bind(&input, "model", 5, &error) == 0);
        require(batch_output_resume(&output, &input, &kept, &error) == 0);
        check_kept(&output, &input, &kept);
        require(check_again(&input) == input.n);
    }
    batch_input_close(&input);
    close(output.fd);
    return 0;
}
