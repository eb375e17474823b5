/* engine/selftest.h - before an engine promises anything: are its kernels right on this machine (selftest/selftest.h)? */
#ifndef MOEBIUS_ENGINE_SELFTEST_H
#define MOEBIUS_ENGINE_SELFTEST_H

#include "engine/engine.h"

/* Tests what engine->backend, opened with `backend`, computes with; sets engine->self_test_s. What is wrong is an error that says
 * what to do about it: nothing is replaced silently. */
int engine_selftest(struct engine *engine, const struct backend_options *backend, struct mo_error *error);

/* Of the host's memory, while it runs. */
double engine_selftest_bytes(const struct engine *engine, const struct backend_options *backend);

#endif
