/* base/build_id.h - what tells this program from another build of it. Any thread. */
#ifndef MOEBIUS_BASE_BUILD_ID_H
#define MOEBIUS_BASE_BUILD_ID_H

enum { BUILD_ID_BYTES = 2 * 64 + 1 };

/* The linker's note (--build-id, on by default in Debian), a hash of the program, in hexadecimal; "" where there is none. */
const char *build_id(char text[BUILD_ID_BYTES]);

#endif
