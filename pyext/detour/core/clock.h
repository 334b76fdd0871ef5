/* Monotonic and wall-clock nanoseconds. */
#ifndef DETOUR_CLOCK_H
#define DETOUR_CLOCK_H
#include <stdint.h>
#include <time.h>
static inline int64_t clock_monotonic_ns(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }
static inline int64_t clock_realtime_ns(void) {
    struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }
#endif
