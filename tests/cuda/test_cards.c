/* Two cards of one process, the shim's or real ones: what split.c relies on, and what it must not rely on. Every test is a process of
 * its own, since a card that has been misused is lost to it. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "backend/cuda/cuda.h"

enum { WIDTH = 256, GOOD = 0, BAD = 1, NO_SECOND_CARD = 77 };

static struct cuda cards[2];

static void use(int i) {
    if (cards[i].driver.context_use(cards[i].card.context)) _exit(BAD);
}

static void open_cards(void) {
    struct mo_error error = {0};
    for (int i = 0; i < 2; i++) {
        struct cuda *card = &cards[i];
        int code = cuda_driver_open(&card->driver, &error);
        if (!code) code = cuda_card_open(&card->driver, i, &card->card, &error);
        if (code == MO_E_NOT_FOUND && i == 1) _exit(NO_SECOND_CARD);
        if (!code) code = cuda_check(&card->driver, card->driver.stream_create(&card->stream, 1), &error, "no stream");
        if (!code) code = cuda_load_kernels(card, &error);
        if (code) fprintf(stderr, "%s\n", error.message);
        if (code) _exit(BAD);
    }
}

/* How `body` ends in a process of its own: its status, or BAD if a signal ends it. */
static int end_of(int (*body)(void)) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0});
        signal(SIGSEGV, SIG_DFL); /* cmocka's would go on with the tests */
        open_cards();
        _exit(body());
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : BAD;
    if (code == NO_SECOND_CARD) printf("left out: this machine has no second card\n");
    if (code == NO_SECOND_CARD) skip();
    return code;
}

static cuda_address ones_on(int i) {
    static float ones[WIDTH];
    cuda_address at = 0;
    for (int k = 0; k < WIDTH; k++) ones[k] = 1;
    use(i);
    int result = cards[i].driver.memory_take(&at, sizeof ones);
    if (!result) result = cards[i].driver.copy_in(at, ones, sizeof ones, cards[i].stream);
    if (!result) result = cards[i].driver.stream_wait(cards[i].stream);
    if (result) _exit(BAD);
    return at;
}

/* The second card adds what lies on card `where` to ones of its own. */
static int add_from(int where) {
    float sum[WIDTH] = {0};
    struct cuda *card = &cards[1];
    cuda_address y = ones_on(where), x = ones_on(1);
    struct add_params p = {.x = (float *)(uintptr_t)x, .y = (const float *)(uintptr_t)y, .hidden = WIDTH};
    cuda_launch(card, KERNEL_ADD_ROWS, 1, 0, &p);
    int result = card->failure.code;
    if (!result) result = card->driver.copy_out(sum, x, sizeof sum, card->stream);
    if (!result) result = card->driver.stream_wait(card->stream);
    for (int i = 0; i < WIDTH && !result; i++) result = sum[i] < 2 || sum[i] > 2;
    return result ? BAD : GOOD;
}

static int add_own(void) {
    return add_from(1);
}
static int add_others(void) {
    return add_from(0);
}

static void test_memory(void **unused) {
    (void)unused;
    assert_int_equal(end_of(add_own), GOOD);
    assert_int_equal(end_of(add_others), BAD); /* nobody has enabled peer access */
}

/* From card 0 to card 1 as split.c does it: whoever receives waits for who has sent. */
static int hand_over(void) {
    const struct cuda_driver *d = &cards[0].driver;
    struct cuda_event *written = NULL;
    float *passage = NULL, got[WIDTH] = {0};
    struct mo_error error;
    cuda_address from = ones_on(0), to = ones_on(1);
    use(0);
    int result = cuda_take_pinned(&cards[0], sizeof got, "passage", &passage, &error);
    if (result) return BAD;
    memset(passage, 0, sizeof got);
    result = d->event_create(&written, 2);
    if (!result) result = d->copy_out(passage, from, sizeof got, cards[0].stream);
    if (!result) result = d->event_record(written, cards[0].stream);
    use(1);
    if (!result) result = d->stream_after(cards[1].stream, written, 0);
    if (!result) result = d->copy_in(to, passage, sizeof got, cards[1].stream);
    if (!result) result = d->copy_out(got, to, sizeof got, cards[1].stream);
    if (!result) result = d->stream_wait(cards[1].stream);
    for (int i = 0; i < WIDTH && !result; i++) result = got[i] < 1 || got[i] > 1;
    return result ? BAD : GOOD;
}

static void test_order(void **unused) {
    (void)unused;
    assert_int_equal(end_of(hand_over), GOOD);
}

/* A kernel of one card in the stream of another. */
static int mix_handles(void) {
    cuda_address x = ones_on(1);
    struct add_params p = {.x = (float *)(uintptr_t)x, .y = (const float *)(uintptr_t)x, .hidden = WIDTH};
    use(0);
    cards[0].kernels[KERNEL_ADD_ROWS] = cards[1].kernels[KERNEL_ADD_ROWS];
    cuda_launch(&cards[0], KERNEL_ADD_ROWS, 1, 0, &p);
    return cards[0].failure.code ? BAD : GOOD;
}

static void test_handles(void **unused) {
    (void)unused;
    assert_int_equal(end_of(mix_handles), BAD);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_handles),
    };
    setenv("MOEBIUS_FAKE_CUDA", "devices=2", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
