/* cmd/cmd.h - the subcommands. Each is one file, NAME.c, or a folder of that name; argv[0] is the subcommand's name; the
 * result is the exit status: 0 success, 1 failure, 2 wrong usage, 3 (`plan`) it does not fit. */
#ifndef MOEBIUS_CMD_CMD_H
#define MOEBIUS_CMD_CMD_H

int cmd_run(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_run_batch(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_logits(int argc, char **argv);
int cmd_pull(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_rm(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_experts(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_synth(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_detokenize(int argc, char **argv);
int cmd_render(int argc, char **argv);

#endif
