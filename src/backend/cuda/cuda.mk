# The GPU's kernels: one fatbin for each kernels/*.cu, embedded in the binary (image.c). Without nvcc, or with CUDA=0, the tree builds
# the same and `moebius` says that CUDA is not in it.
# Variables: CUDA=0; NVCC; CUDA_ARCHS, compute capabilities ("80 89"), and CUDA_PTX; of these, what nvcc does not know is left out.

CUDA       ?= 1
NVCC       ?= $(firstword $(wildcard $(shell command -v nvcc 2>/dev/null) $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc /opt/cuda/bin/nvcc))
CUDA_DIR   := src/backend/cuda
# No product and sum becomes one operation unless it is written so (fmaf): two kernels that inline the same lines have the same bits.
CUDA_LANGUAGE := -std=c++17 -O3 -fmad=false
CUDA_FLAGS := $(CUDA_LANGUAGE) -Xptxas -warn-spills,-warn-lmem-usage -Xfatbin -compress-all

CUDA_KERNELS := $(notdir $(basename $(wildcard $(CUDA_DIR)/kernels/*.cu)))
CUDA_HEADERS := $(wildcard $(CUDA_DIR)/kernels/*.cuh) $(wildcard $(CUDA_DIR)/params*.h)

CUDA_KNOWN := $(if $(filter 0,$(CUDA)),,$(if $(NVCC),$(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch 2>/dev/null))))

# `make test` on a fresh tree compiles for one card only, code and PTX by one run of nvcc's front end: a fifth of the time. What was
# compiled before, it keeps. What the other cards take stands in tables that it holds against the sources (cuda-gate, below).
CUDA_CARDS := 80 86 89 90 120
CUDA_BUILT := $(subst $(comma), ,$(file <$(BUILD)/cuda/targets))
CUDA_TESTED = $(or $(patsubst code=$(1)_%,%,$(filter code=$(1)_%,$(CUDA_BUILT))),$(lastword $(filter $(CUDA_KNOWN),$(CUDA_CARDS))))
ifeq ($(filter test,$(MAKECMDGOALS)),)
CUDA_ARCHS ?= $(CUDA_CARDS)
CUDA_PTX   ?= 90
else
CUDA_ARCHS ?= $(call CUDA_TESTED,sm)
CUDA_PTX   ?= $(call CUDA_TESTED,compute)
endif

ifneq ($(CUDA),0)
ifneq ($(NVCC),)
CUDA_USED   := $(filter $(CUDA_KNOWN),$(CUDA_ARCHS))
CUDA_VERSION := $(shell $(NVCC) --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\),.*/\1 \2/p' | awk '{print $$1 * 1000 + $$2 * 10}')
CUDA_IMAGES := $(CUDA_KERNELS:%=$(BUILD)/cuda/%.fatbin)
ifneq ($(filter-out $(CUDA_KNOWN),$(CUDA_ARCHS)),)
$(info CUDA: $(NVCC) does not know $(filter-out $(CUDA_KNOWN),$(CUDA_ARCHS)): left out)
endif
endif
endif

CUDA_TARGETS = $(foreach a,$(CUDA_USED),-gencode arch=compute_$(a),code=sm_$(a)) \
	$(foreach a,$(filter $(CUDA_KNOWN),$(CUDA_PTX)),-gencode arch=compute_$(a),code=compute_$(a))

$(BUILD)/cuda/%.fatbin: $(CUDA_DIR)/kernels/%.cu $(CUDA_HEADERS)
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) $(CUDA_TARGETS) -fatbin -o $@ $<

# What was built last: other targets make the kernels anew (looked at only where kernels are wanted, so that no other command of make
# changes it), other kernels (CUDA=0: none) the object that embeds them.
note_change = $(shell mkdir -p $(dir $(1)); echo '$(2)' | cmp -s - $(1) || echo '$(2)' >$(1))
.PHONY: look
$(BUILD)/cuda/targets: look
	@mkdir -p $(@D); echo '$(NVCC) $(CUDA_FLAGS) $(CUDA_TARGETS)' | cmp -s - $@ || echo '$(NVCC) $(CUDA_FLAGS) $(CUDA_TARGETS)' >$@
$(call note_change,$(BUILD)/cuda/images,$(CUDA_IMAGES))
$(CUDA_IMAGES): $(BUILD)/cuda/targets
$(BUILD)/obj/$(CUDA_DIR)/image.o: $(CUDA_IMAGES) $(BUILD)/cuda/images
$(BUILD)/obj/$(CUDA_DIR)/image.o: CFLAGS_EXTRA += $(if $(CUDA_IMAGES),-DMOEBIUS_CUDA_IMAGES='"$(abspath $(BUILD))/cuda"' -DMOEBIUS_CUDA_VERSION=$(CUDA_VERSION))

# --- the kernels on the CPU: tests/shim/libcuda.so.1 is a driver whose card is this machine -------------------------------
# The same sources, compiled as C. They are never sanitized: fibres change stacks under the sanitizer's feet. Two checks need no
# stack: a wide load or store from a place that is no multiple of its size, which ends a kernel on a card, and a shift by too much, which
# gives something else there, end the program here (illegal instruction).

SHIM      := $(BUILD)/tests/shim
BUNDLE    := $(BUILD)/gpu-bundle
SHIM_BASE := -std=gnu11 -D_GNU_SOURCE -O2 -g -fPIC -ffp-contract=off -fvisibility=hidden -Wall -Wextra -Itests/shim -MMD -MP
SHIM_TRAP := -fsanitize=alignment,shift -fsanitize-undefined-trap-on-error
SHIM_OBJ  := $(patsubst %,$(SHIM)/%.o,$(CUDA_KERNELS) fibre libcuda)

$(SHIM)/%.o: $(CUDA_DIR)/kernels/%.cu tests/shim/shim.h $(CUDA_HEADERS)
	@mkdir -p $(@D)
	$(CC) -x c $(SHIM_BASE) $(SHIM_TRAP) -include tests/shim/shim.h -c -o $@ $<
# What plays the matrix unit is a quarter of the time of all tests with a card; as vectors, its sums have the same bits.
$(SHIM)/fibre.o: SHIM_BASE += -O3
$(SHIM)/%.o: tests/shim/%.c
	@mkdir -p $(@D)
	$(CC) $(SHIM_BASE) $(WARN) -c -o $@ $<
$(SHIM)/libcuda.so.1: $(SHIM_OBJ)
	$(CC) -shared -Wl,-soname,libcuda.so.1 -o $@ $^ -lm
$(SHIM)/libnvidia-ml.so.1: $(SHIM)/nvml.o
	$(CC) -shared -Wl,-soname,libnvidia-ml.so.1 -o $@ $^
# Takes the place of image.o in the library: it stands before it.
$(SHIM)/image.o: SHIM_BASE += -Isrc
$(SHIM)/moebius: $(BUILD)/obj/src/main.o $(SHIM)/image.o $(BUILD)/libmoebius.a
	$(CC) $(CFLAGS) $(LDFLAGS_EXTRA) -o $@ $^ $(LIBS)
-include $(wildcard $(SHIM)/*.d)

# The same once more with a call before each access to memory: race.c sees which of them nothing puts in order. Programs take this
# libcuda.so.1 by LD_LIBRARY_PATH. Always by clang: gcc 12 leaves out some stores of structures that inlined functions return. What it
# makes of copies of structures is called by other names, not to be the C library's.
RACE_CC   ?= clang
RACE      := $(BUILD)/tests/race
RACE_BASE := $(SHIM_BASE) -DSHIM_RACES
RACE_OBJ  := $(patsubst %,$(RACE)/%.o,$(CUDA_KERNELS) planted fibre libcuda race race_hooks race_order race_report)
RACE_KERNEL = $(RACE_CC) -x c $(RACE_BASE) -fsanitize=thread -Isrc -include tests/shim/shim.h -c -o $@ $< && \
	objcopy --redefine-sym memcpy=shim_memcpy --redefine-sym memset=shim_memset $@

$(RACE)/%.o: $(CUDA_DIR)/kernels/%.cu tests/shim/shim.h $(CUDA_HEADERS)
	@mkdir -p $(@D)
	$(RACE_KERNEL)
$(RACE)/%.o: tests/race/%.cu tests/shim/shim.h $(CUDA_HEADERS)
	@mkdir -p $(@D)
	$(RACE_KERNEL)
$(RACE)/%.o: tests/shim/%.c
	@mkdir -p $(@D)
	$(CC) $(RACE_BASE) $(WARN) -c -o $@ $<
$(RACE)/libcuda.so.1: $(RACE_OBJ)
	$(CC) -shared -Wl,-soname,libcuda.so.1 -o $@ $^ -lm -ldl
$(RACE)/test_races: $(BUILD)/obj/tests/race/test_races.o $(RACE)/libcuda.so.1
	$(CC) $(CFLAGS) $(LDFLAGS_EXTRA) -o $@ $^ -Wl,-rpath,'$$ORIGIN' -lcmocka
-include $(wildcard $(RACE)/*.d)

# And a third time, from what nvcc made of them: PTX, translated to C. Of the cards, those whose PTX differs most: 9.0, and 12.0, for which
# nvcc has another generator of code. (9.0 has no kernel that multiplies FP8 by itself: that is 8.9's here.)
PTX_ARCHS ?= 90 120
PTX       := $(BUILD)/tests/ptx
PTX_BASE  := -std=gnu11 -D_GNU_SOURCE -O1 -g1 -fPIC -ffp-contract=off -fwrapv -fno-strict-aliasing -fvisibility=hidden -Wall -Wextra \
	-Wno-unused-but-set-variable -Itests/shim
PTX_SHIM  := $(SHIM)/fibre.o $(SHIM)/libcuda.o $(PTX)/ptx.o
PTX_HEADERS := tests/shim/ptx.h tests/shim/fibre.h tests/shim/shim.h

$(PTX)/ptx.o: tests/shim/ptx.c $(PTX_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(SHIM_BASE) $(WARN) -frounding-math -c -o $@ $<
$(PTX)/%.c: $(PTX)/%.ptx tests/shim/ptx_to_c.py
	python3 tests/shim/ptx_to_c.py $< >$@.new && mv $@.new $@
$(PTX)/%.o: $(PTX)/%.c $(PTX_HEADERS)
	$(CC) $(PTX_BASE) -c -o $@ $<
define PTX_ARCH
$(PTX)/$(1)/%.ptx: $(CUDA_DIR)/kernels/%.cu $(CUDA_HEADERS)
	@mkdir -p $$(@D)
	$(NVCC) $(CUDA_LANGUAGE) -arch=compute_$$(or $$(ARCH),$(1)) -ptx -o $$@ $$<
$(PTX)/$(1)/libcuda.so.1: $(CUDA_KERNELS:%=$(PTX)/$(1)/%.o) $(PTX_SHIM)
	$(CC) -shared -Wl,-soname,libcuda.so.1 -o $$@ $$^ -lm
endef
$(foreach arch,$(PTX_ARCHS),$(eval $(call PTX_ARCH,$(arch))))
$(PTX)/90/linear_fp8.ptx: ARCH = 89
.PRECIOUS: $(PTX)/%.ptx $(PTX)/%.c

# The translator, by PTX written by hand: without nvcc too.
$(PTX)/words.ptx: tests/ptx/words.ptx
	@mkdir -p $(@D)
	cp $< $@
$(PTX)/words_c.o: tests/ptx/words.cu tests/ptx/words.h tests/shim/shim.h
	@mkdir -p $(@D)
	$(CC) -x c $(SHIM_BASE) $(SHIM_TRAP) -include tests/shim/shim.h -c -o $@ $<
$(PTX)/test_ptx: $(BUILD)/obj/tests/ptx/test_ptx.o $(PTX)/words.o $(PTX)/words_c.o $(PTX_SHIM)
	$(CC) $(CFLAGS) $(LDFLAGS_EXTRA) -o $@ $^ -lcmocka -lm

# dlopen gives the shim's driver to a program that is linked with it already.
CUDA_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/cuda/test_*.c))
$(CUDA_TESTS): $(BUILD)/tests/cuda/%: $(BUILD)/obj/tests/cuda/%.o $(BUILD)/obj/tests/cuda/card_fixture.o $(BUILD)/obj/tests/cuda/survey.o $(SHIM)/image.o $(BUILD)/libmoebius.a $(SHIM)/libcuda.so.1
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS_EXTRA) -o $@ $^ -Wl,-rpath,'$$ORIGIN/../shim' $(LIBS) -lcmocka

.PHONY: shim race ptx
race: $(RACE)/test_races
ptx: $(PTX)/test_ptx
shim: $(SHIM)/moebius $(SHIM)/libcuda.so.1 $(SHIM)/libnvidia-ml.so.1 $(CUDA_TESTS) $(BUNDLE)/bin/golden $(BUNDLE)/bin/visit

# --- checks of the kernels -------------------------------------------------------------------------------------------------

CUDA_PYTEST = MOEBIUS=$(BUILD)/moebius $(VENV)/bin/python -m pytest -q \
	tests/test_cuda.py tests/test_cuda_decode.py tests/test_cuda_gguf.py tests/test_cuda_hybrid.py tests/test_cuda_offload.py \
	tests/test_cuda_sparse.py tests/test_cuda_split.py

.PHONY: cuda-shim-test cuda-race-test cuda-ptx-test cuda-gate cuda-gate-full gpu-pytest
cuda-shim-test: shim $(BUILD)/moebius $(VENV)/ready
	set -e; for test in $(CUDA_TESTS); do $$test; done
	$(CUDA_PYTEST) tests/test_gpu_tools.py

# All of the kernels' tests on the shim that looks for races. `make test` has the shorter ones of these.
cuda-race-test: shim race $(BUILD)/moebius $(VENV)/ready
	$(RACE)/test_races
	set -e; for test in $(CUDA_TESTS); do LD_LIBRARY_PATH=$(RACE) $$test; done
	MOEBIUS=$(BUILD)/moebius $(VENV)/bin/python -m pytest -q tests/test_cuda_races.py
	MOEBIUS_CUDA_DRIVER=$(abspath $(RACE)) $(CUDA_PYTEST)

# All of them on what nvcc made of the kernels; most of the time goes into compiling that, once for each of PTX_ARCHS.
PTX_USED = $(if $(CUDA_IMAGES),$(filter $(CUDA_KNOWN),$(PTX_ARCHS)))
cuda-ptx-test: ptx $(PTX_USED:%=cuda-ptx-test-%)
	$(PTX)/test_ptx
	$(if $(PTX_USED),,@echo "cuda-ptx-test: the kernels are left out: no nvcc (or CUDA=0)")
cuda-ptx-test-%: shim $(BUILD)/moebius $(VENV)/ready $(PTX)/%/libcuda.so.1
	set -e; for test in $(CUDA_TESTS); do LD_LIBRARY_PATH=$(PTX)/$* $$test; done
	MOEBIUS_CUDA_DRIVER=$(abspath $(PTX))/$* $(CUDA_PYTEST)

# What these tests can say on a real card; `make gpu-test` (tests/cuda/bundle.mk) says more, without Python.
gpu-pytest: $(BUILD)/moebius $(VENV)/ready
	MOEBIUS_GPU=1 MOEBIUS=$(BUILD)/moebius $(VENV)/bin/python -m pytest -q tests/test_cuda.py tests/test_cuda_decode.py tests/test_cuda_offload.py \
		-k "golden or chunks or splits or greedy or look or hosts or clients or (on_the_cpu and not card)"

GATE = python3 tests/cuda/gate.py --nvcc "$(if $(filter 0,$(CUDA)),,$(NVCC))" --archs "$(CUDA_ARCHS)"
cuda-gate:
	@$(GATE) $(if $(CHECK),--check)
cuda-gate-full:
	@$(GATE) --full --check

include tests/cuda/bundle.mk
