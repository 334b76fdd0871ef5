/* Invariants and leak counters: nothing in a release build, an abort with a message in a debug build. */
#ifndef DETOUR_DEBUG_H
#define DETOUR_DEBUG_H
#include <stdint.h>
#if DETOUR_DEBUG
#include <stdio.h>
#include <stdlib.h>
#define DETOUR_INVARIANT(condition, message) \
    do { if (!(condition)) { fprintf(stderr, "invariant broken: %s (%s:%d)\n", message, __FILE__, __LINE__); abort(); } } while (0)
#define DETOUR_COUNT(counter, change) ((counter) += (change))
#else
#define DETOUR_INVARIANT(condition, message) ((void)0)
#define DETOUR_COUNT(counter, change) ((void)0)
#endif
static inline void invariant(int condition, const char *message) { (void)condition; (void)message; DETOUR_INVARIANT(condition, message); }
static inline int likely(int condition) { return __builtin_expect(!!condition, 1); }
static inline int unlikely(int condition) { return __builtin_expect(!!condition, 0); }
#endif
