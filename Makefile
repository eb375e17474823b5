# Moebius. `make` builds build/moebius; `make demo` and `make test` also install what they need; `make help` lists all.
# Variables: CC, BUILD (output folder), WERROR=1, CFLAGS, CFLAGS_EXTRA, LDFLAGS_EXTRA.

ifeq ($(origin CC),default)
CC      := gcc
endif
BUILD   ?= build
VERSION := 0.1.0
PKGS    := jansson libpcre2-8 libcrypto libedit libmicrohttpd libxxhash libcurl libutf8proc
VENV    := build/venv

WARN    := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes
ifeq ($(WERROR),1)
WARN    += -Werror
endif
CFLAGS  ?= -O2 -g
BASE    := -std=gnu11 $(WARN) -Isrc -D_GNU_SOURCE -DMOEBIUS_VERSION='"$(VERSION)"' -pthread -fno-math-errno -ffp-contract=off
BASE    += $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LIBS    := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -pthread

MAIN    := src/main.c
SRC     := $(filter-out $(MAIN) src/ranks/mpi/%,$(sort $(wildcard src/*.c src/*/*.c src/*/*/*.c src/*/*/*/*.c)))
OBJ     := $(SRC:%.c=$(BUILD)/obj/%.o)

# Only the kernels of an instruction set are compiled for it: one binary runs everywhere.
ISA_avx2        := -mavx2 -mfma -mf16c -mbmi2
ISA_avx_vnni    := $(ISA_avx2) -mavxvnni
ISA_avx512      := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
ISA_avx512_bf16 := $(ISA_avx512) -mavx512bf16 -mavx512vbmi
ISA_amx         := $(ISA_avx512) -mamx-tile -mamx-int8
ISA_amx_bf16    := $(ISA_amx) -mamx-bf16
# Never sanitized: clang takes ten minutes for their unrolled loops, and `moebius check` watches their bounds with guard pages.
# What a debugger knows of their variables is a third of their time in gcc.
KERNEL_FLAGS := -O3 -g1 -fno-sanitize=all
isa = $(ISA_$(patsubst kern_%,%,$(basename $(notdir $(1)))))

# The one part that needs an MPI, and belongs to the one it was compiled with; the program looks for it only where it is started as one
# of several processes. MPI=0, or no mpicc: it is left out.
MPI     ?= 1
MPICC   ?= $(shell command -v mpicc 2>/dev/null)
comma   := ,
PLUGIN  := $(if $(filter-out 0,$(MPI)),$(if $(MPICC),$(BUILD)/moebius-mpi.so))

.PHONY: all lib help setup libraries demo test test-builds test-venv test-build test-build-sanitized test-programs debug fuzz fuzz-programs format clean
all: $(BUILD)/moebius $(PLUGIN)
	@$(if $(PLUGIN),:,echo "moebius-mpi.so is left out ($(if $(MPICC),MPI=0,no mpicc)): one process$(comma) one machine")
lib: $(BUILD)/libmoebius.a

help:
	@echo "make          build/moebius"
	@echo "make setup    install what is missing (apt-get)"
	@echo "make demo     set up, build, run a small model"
	@echo "make test     set up, build, run every test; the last line counts them"
	@echo "make install  program, manual, completion, service (PREFIX=/usr/local, DESTDIR=); make uninstall"
	@echo "make deb      the same as a package for Debian"
	@echo "make debug    build/debug/moebius with the address and undefined-behaviour sanitizers"
	@echo "make cuda-shim-test   the GPU's kernels on the CPU"
	@echo "make cuda-race-test   the same, looking for data races; six minutes"
	@echo "make cuda-ptx-test    the same, as nvcc compiled them to PTX; a quarter of an hour"
	@echo "make cuda-gate        registers, memory and instructions of the GPU's kernels, as tables (CHECK=1, cuda-gate-full)"
	@echo "make gpu-test         on a machine with a GPU: proves and measures all of it, ten minutes, one JSON"
	@echo "make gpu-bundle       the same as a folder to carry to one (gpu-bundle-check tries it without)"
	@echo "make fuzz     each fuzz target for FUZZ_SECONDS (60) with libFuzzer"
	@echo "make format   clang-format over src and tests"

setup:
	@tools/setup.sh build test

# A missing library is one line to run, not a page of compiler errors.
libraries:
	@tools/setup.sh --check build

demo:
	@tools/setup.sh build
	@+$(MAKE) --no-print-directory -s -j$(shell nproc)
	@BUILD=$(BUILD) tools/demo.sh

$(BUILD)/moebius: $(BUILD)/obj/src/main.o $(BUILD)/libmoebius.a
	$(CC) $(CFLAGS) $(LDFLAGS_EXTRA) -o $@ $^ $(LIBS)

$(BUILD)/moebius-mpi.so: src/ranks/mpi/transport_mpi.c src/ranks/transport.h
	@mkdir -p $(@D)
	OMPI_CC=$(CC) MPICH_CC=$(CC) $(MPICC) -std=gnu11 $(WARN) -Isrc -D_GNU_SOURCE -O2 -g -fPIC -shared -o $@ $<

$(BUILD)/libmoebius.a: $(OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/obj/src/backend/cpu/x86/%.o: src/backend/cpu/x86/%.c | libraries
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(KERNEL_FLAGS) $(CFLAGS_EXTRA) $(call isa,$<) -MMD -MP -c -o $@ $<

# The matrix unit's kernels once more, over its instructions in plain C.
$(BUILD)/obj/tiles/%.o: %.c | libraries
	@mkdir -p $(@D)
	$(CC) $(BASE) -DMOEBIUS_TILES_IN_C $(CFLAGS) $(KERNEL_FLAGS) $(CFLAGS_EXTRA) $(call isa,$<) -MMD -MP -c -o $@ $<

$(BUILD)/obj/%.o: %.c | libraries
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(CFLAGS_EXTRA) -MMD -MP -c -o $@ $<

$(BUILD)/obj/src/server/web.o: $(wildcard src/server/web/*) # .incbin, which -MMD does not see

# --- tests: tests/run.py runs them; here they are only built ---------------------------------------------------------
# A program for each tests/unit/test_*.c, sim/*.c and fuzz/fuzz_*.c (linked with the other files of its folder), and moebius
# once more for a processor whose matrix unit is plain C: what is linked first takes the library's place; and with wrong kernels.

objects  = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
UNIT    := $(wildcard tests/unit/test_*.c)
SIM     := $(wildcard tests/sim/sim_*.c)
FUZZ    := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_MAIN ?= $(call objects,tests/fuzz/driver.c)
programs = $(patsubst %.c,$(BUILD)/%,$(1))
TESTS   := $(call programs,$(UNIT) $(SIM)) $(BUILD)/tests/moebius_tiles $(BUILD)/tests/moebius_broken
TILES   := $(addprefix src/,base/cpu.c backend/cpu/x86/kern_amx.c backend/cpu/x86/kern_amx_bf16.c)

test-programs: $(BUILD)/moebius $(PLUGIN) $(TESTS) shim $(if $(findstring -fsanitize,$(CFLAGS)),,race ptx)
fuzz-programs: $(call programs,$(FUZZ))

helpers  = $(call objects,$(filter-out $(2),$(wildcard tests/$(1)/*.c))) $(BUILD)/libmoebius.a
$(call programs,$(UNIT)): $(BUILD)/%: $(BUILD)/obj/%.o $(call helpers,unit,$(UNIT))
$(call programs,$(SIM)): $(BUILD)/%: $(BUILD)/obj/%.o $(call helpers,sim,$(SIM))
$(call programs,$(FUZZ)): $(BUILD)/%: $(BUILD)/obj/%.o $(FUZZ_MAIN) $(BUILD)/libmoebius.a
$(BUILD)/tests/moebius_tiles: $(BUILD)/obj/src/main.o $(TILES:%.c=$(BUILD)/obj/tiles/%.o) $(BUILD)/libmoebius.a
$(BUILD)/tests/moebius_broken: LDFLAGS_EXTRA += -Wl,--wrap=kern_init
$(BUILD)/tests/moebius_broken: $(BUILD)/obj/src/main.o $(BUILD)/obj/tests/broken/kern_init.o $(BUILD)/libmoebius.a
$(TESTS) $(call programs,$(FUZZ)):
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS_EXTRA) $(if $(filter %/fuzz,$(@D)),$(FUZZ_LINK)) -o $@ $^ $(LIBS) -lcmocka

SANITIZE := CUDA=0 CFLAGS="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

debug:
	@+$(MAKE) BUILD=build/debug $(SANITIZE) CFLAGS_EXTRA=-g

# gcc builds what is tested; clang builds it once more with sanitizers, so both compilers see every file.
test:
	@tools/setup.sh build test
	@+$(MAKE) --no-print-directory -s -j$(shell nproc) test-builds CUDA_ARCHS="$(CUDA_ARCHS)" CUDA_PTX="$(CUDA_PTX)"
	@BUILD=$(BUILD) $(VENV)/bin/python tests/run.py

# All at once, so that no processor waits for the last of a part.
test-builds: test-venv test-build test-build-sanitized
test-venv: $(VENV)/ready
test-build:
	@+$(MAKE) --no-print-directory -s test-programs
test-build-sanitized:
	@+$(MAKE) --no-print-directory -s test-programs fuzz-programs CC=clang BUILD=$(BUILD)/sanitize $(SANITIZE)

$(VENV)/ready: tests/requirements.txt
	rm -rf $(VENV)
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

FUZZ_SECONDS ?= 60
fuzz:
	@tools/setup.sh build test
	@+$(MAKE) --no-print-directory -s -j$(shell nproc) fuzz-programs CC=clang BUILD=$(BUILD)/fuzz FUZZ_MAIN= \
		FUZZ_LINK=-fsanitize=fuzzer $(SANITIZE) CFLAGS_EXTRA=-fsanitize=fuzzer-no-link
	@+$(MAKE) --no-print-directory -s $(VENV)/ready
	@$(VENV)/bin/python tests/fuzz/seeds.py $(BUILD)/seeds
	@set -e; for target in $(notdir $(FUZZ:.c=)); do \
		echo "== $$target, $(FUZZ_SECONDS) s"; mkdir -p $(BUILD)/corpus/$$target; \
		$(BUILD)/fuzz/tests/fuzz/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=10 -print_final_stats=1 \
			-artifact_prefix=$(BUILD)/$$target- $(BUILD)/corpus/$$target $(BUILD)/seeds/$$target; \
	done

format:
	clang-format -i $(wildcard src/*.[ch] src/*/*.[ch] src/*/*/*.[ch] src/*/*/*/*.[ch] tests/*/*.[ch])

clean:
	rm -rf $(BUILD)

include src/backend/cuda/cuda.mk
include packaging/install.mk

.SECONDARY:
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
