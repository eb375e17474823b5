/* backend/cpu/engram.h - V4.1's n-gram memory: before some layers, rows of a table that the last tokens look up
 * (model/engram.h) are multiplied into a key for each stream and one value; a stream takes as much of the value as it goes with
 * its key. Nothing happens in models without. Includes: cpu.h. */
#ifndef MOEBIUS_BACKEND_CPU_ENGRAM_H
#define MOEBIUS_BACKEND_CPU_ENGRAM_H

#include "backend/cpu/cpu.h"

/* A step begins: finds the rows of its tokens in all tables, and has them read. */
void engram_begin(struct cpu *cpu);
/* A layer begins: adds to cpu->x. Stage memory is emptied. */
void engram_add(struct cpu *cpu, int layer);

#endif
