/* find/fits.h - whether a model that is about to be pulled could run here: what `moebius plan` says of its config.json. */
#ifndef MOEBIUS_FIND_FITS_H
#define MOEBIUS_FIND_FITS_H

#include "find/find.h"
#include "hub/pull.h"

/* Says on a line what is fetched, and where its weights would lie. An error: no config.json of a model that this engine knows, or
 * one that will run and that no place here has room for. Of GGUF files the sizes are all that is known. */
int find_fits(const struct find_request *request, const struct hub_pull *pull, struct mo_error *error);

#endif
