#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "cmd/cmd.h"
#include "ranks/ranks.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} commands[] = {
    {"run", cmd_run, "complete a prompt, fill a hole, or chat"},
    {"serve", cmd_serve, "an OpenAI-compatible server"},
    {"run-batch", cmd_run_batch, "a file of requests to a file of answers"},
    {"pull", cmd_pull, "a model from the Hugging Face hub into its cache"},
    {"list", cmd_list, "which models that cache has"},
    {"rm", cmd_rm, "a model out of that cache"},
    {"info", cmd_info, "what a model is: sizes, formats, cache, licence, hash"},
    {"tokenize", cmd_tokenize, "text to token ids, JSON lines"},
    {"detokenize", cmd_detokenize, "token ids to text, JSON lines"},
    {"render", cmd_render, "a chat request to the exact prompt text"},
    {"plan", cmd_plan, "what fits and how fast it would be, before anything is downloaded"},
    {"top", cmd_top, "what a running server does, in a terminal"},
    {"doctor", cmd_doctor, "what this machine has, measured, with advice"},
    {"bench", cmd_bench, "how fast a model runs here, beside what the machine can do"},
    {"check", cmd_check, "does this processor compute what it should, and how fast"},
    {"eval", cmd_eval, "how good a model is: bits per byte, lines filled in, functions that parse"},
    {"experts", cmd_experts, "which experts a text uses, and what a cache of them would find"},
    {"quantize", cmd_quantize, "a model with fewer bits a weight, in one file"},
    {"synth", cmd_synth, "a model of a published shape with random weights, for measuring"},
    {"logits", cmd_logits, "raw logits, hidden states and expert choices, for checking"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_help(FILE *out) {
    fprintf(
        out,
        "Moebius " MOEBIUS_VERSION
        " runs DeepSeek's mixture-of-experts models (V2-Lite, Coder-V2-Lite, V2, V3, R1, V3.2, V4, V4.1).\n"
        "\n"
        "Usage: moebius COMMAND MODEL [flags]\n"
        "\n"
        "MODEL is a folder with config.json, *.safetensors and tokenizer.json as published on Hugging Face,\n"
        "or one file of `moebius quantize`, or a GGUF file (of shards the first), or org/name at the Hugging Face\n"
        "hub (of GGUF files org/name:Q4_K_M): in its cache (HF_HUB_CACHE, HF_HOME, ~/.cache/huggingface), or fetched\n"
        "into it now. Weights are read as they are: F32, F16, BF16, FP8, FP4, INT4 of\n"
        "AWQ, GPTQ and compressed-tensors, our own INT8 and INT4, and of GGUF Q8_0, Q2_K to Q6_K, Q4_0 to Q5_1,\n"
        "IQ1 to IQ4, TQ and MXFP4.\n"
        "\n"
        "Commands:\n");
    for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].about);
    fprintf(out, "\n"
                 "Try:\n"
                 "  moebius pull org/name                               get a model from the Hugging Face hub\n"
                 "  moebius run MODEL -p 'def quicksort(a):' -n 100     continue a text\n"
                 "  moebius run MODEL --chat                            talk to it\n"
                 "  moebius run MODEL --prefix a.py --suffix b.py       fill the middle\n"
                 "  moebius serve MODEL                                 serve it to editors and programs\n"
                 "  moebius info MODEL                                  look before you load\n"
                 "  moebius COMMAND --help                              every flag of a command\n");
}

/* A full disk or a closed pipe shows up when the last bytes are written. */
static int finish_output(int status) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    fprintf(stderr, "moebius: cannot write to standard output: %s\n", strerror(errno));
    return status ? status : 1;
}

/* Else the first files that are opened take these numbers, and get what is meant for people. What cannot be written to stays so. */
static void fill_standard_streams(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0) continue;
        if (open("/dev/null", O_RDONLY) != fd) return;
    }
}

int main(int argc, char **argv) {
    fill_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error of write(), not the end of the program */
    signal(SIGXFSZ, SIG_IGN); /* and so is a file that may not grow, a server's log too */
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return finish_output(0);
    }
    if (!strcmp(argv[1], "--version")) {
        puts("moebius " MOEBIUS_VERSION);
        return finish_output(0);
    }
    if (!strcmp(argv[1], "ls")) argv[1] = "list";
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name)) continue;
        int status = finish_output(commands[i].run(argc - 1, argv + 1));
        ranks_end();
        return status;
    }
    fprintf(stderr, "moebius: unknown command \"%s\" (moebius --help lists them)\n", argv[1]);
    return 2;
}
