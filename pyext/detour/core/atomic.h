/* Acquire and release accesses for the single-producer single-consumer rings. */
#ifndef DETOUR_ATOMIC_H
#define DETOUR_ATOMIC_H
#include <stdint.h>
static inline uint64_t load_acquire_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_release_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t load_relaxed_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void store_relaxed_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif
