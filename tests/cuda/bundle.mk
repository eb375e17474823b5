# A folder that proves and measures the GPU's kernels on a machine with nothing but a driver: programs, their libraries, tiny models,
# and a list of steps. `make gpu-test` runs it here; `make gpu-bundle-check` in an empty root with the shim's driver.

# The old kind of run path: libraries find each other by it too.
BUNDLE_LINK  = $(CC) $(CFLAGS) -s $(LDFLAGS_EXTRA) -Wl,--no-as-needed,--disable-new-dtags,-rpath,'$$ORIGIN/../lib:$$ORIGIN/../kernels' -o $@ $^ $(LIBS)
BUNDLE_TESTS := $(filter-out test_cards,$(notdir $(CUDA_TESTS))) # which plays two cards
BUNDLE_BIN  := $(addprefix $(BUNDLE)/bin/,moebius golden visit tests)

# The kernels of all cards are the largest part: one copy for all programs, in the place of image.o.
BUNDLE_KERNELS := $(BUNDLE)/kernels/libkernels.so
$(BUNDLE_KERNELS): $(BUILD)/obj/src/backend/cuda/image.o
	@mkdir -p $(@D)
	$(CC) -shared -s -Wl,-soname,libkernels.so -o $@ $^
$(BUNDLE)/bin/moebius: $(BUILD)/obj/src/main.o $(BUNDLE_KERNELS) $(BUILD)/libmoebius.a
	@mkdir -p $(@D)
	$(BUNDLE_LINK)
# One program for all tests, which does what it is called.
$(BUILD)/obj/bundle/%.o: tests/cuda/%.c | libraries
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(CFLAGS_EXTRA) -Wno-missing-prototypes -Dmain=$*_main -MMD -MP -c -o $@ $<
$(BUILD)/obj/bundle/all.o: tests/cuda/all.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(CFLAGS_EXTRA) -Wno-strict-prototypes -D'TESTS=$(foreach test,$(BUNDLE_TESTS),X($(test)))' -MMD -MP -c -o $@ $<
$(BUNDLE)/bin/tests: $(addprefix $(BUILD)/obj/bundle/,all.o $(BUNDLE_TESTS:=.o)) $(BUILD)/obj/tests/cuda/card_fixture.o $(BUILD)/obj/tests/cuda/survey.o $(BUNDLE_KERNELS) $(BUILD)/libmoebius.a
	@mkdir -p $(@D)
	$(BUNDLE_LINK) -lcmocka
	@for test in $(BUNDLE_TESTS); do ln -sf tests $(@D)/$$test; done
$(BUNDLE)/bin/golden $(BUNDLE)/bin/visit: $(BUNDLE)/bin/%: $(BUILD)/obj/tests/cuda/%.o
	@mkdir -p $(@D)
	$(BUNDLE_LINK)

.PHONY: gpu-test gpu-bundle gpu-bundle-check
gpu-bundle: $(BUNDLE_KERNELS) $(BUNDLE_BIN)
	@tests/cuda/bundle.sh $(BUNDLE) "$(CUDA_IMAGES)"
# The same numbers on a real card, where there is one; ten minutes at most, one JSON file.
GPU_BUDGET ?= 540
gpu-test: gpu-bundle
	$(BUNDLE)/run.sh --out $(BUILD)/gpu.json --budget $(GPU_BUDGET)
gpu-bundle-check: gpu-bundle $(SHIM)/libcuda.so.1
	@tests/cuda/bundle_check.sh $(BUNDLE) $(SHIM)/libcuda.so.1
