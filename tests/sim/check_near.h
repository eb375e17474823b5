/* What must hold of V4's near parts (sched/near.h), and how to take those away that nobody looks at. */
#ifndef MOEBIUS_SIM_CHECK_NEAR_H
#define MOEBIUS_SIM_CHECK_NEAR_H

#include "fake_backend.h"
#include "sched/sched_state.h"

/* How much is wrong: every part has one place, a page that sequences look at has one, and those without lookers stand in the list. 0
 * where every page has its own. */
int near_faults(const struct sched *sched, int n_near);
/* As if other pages had wanted them: what they held is overwritten. */
void near_lose_all(struct sched *sched, struct fake_backend *fake);

#endif
