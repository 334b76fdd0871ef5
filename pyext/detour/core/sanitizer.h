/* What AddressSanitizer is told of memory that slabs and pools keep: free slots and the rest of a buffer are out of
   bounds. Nothing in any other build. */
#ifndef DETOUR_SANITIZER_H
#define DETOUR_SANITIZER_H
#include <stddef.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
static inline void memory_forbid(const void *start, size_t bytes) { ASAN_POISON_MEMORY_REGION(start, bytes); }
static inline void memory_allow(const void *start, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(start, bytes); }
#else
static inline void memory_forbid(const void *start, size_t bytes) { (void)start; (void)bytes; }
static inline void memory_allow(const void *start, size_t bytes) { (void)start; (void)bytes; }
#endif
#endif
