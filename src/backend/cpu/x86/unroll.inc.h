/* backend/cpu/x86/unroll.inc.h - UNROLL before a loop over registers, KEEP_LOOP before one to be left alone.
 * Under the sanitizers nothing is unrolled: with a check at every access, clang takes minutes for the result.
 */
#if !defined(__has_feature)
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define UNROLL
#define KEEP_LOOP
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#define KEEP_LOOP _Pragma("nounroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define KEEP_LOOP _Pragma("GCC unroll 1")
#endif
