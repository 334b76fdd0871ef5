# Time as the core reads it. Code on a loop uses `loop.now_ns` (read once a turn; a test may set it): see reactor.pxd.
from libc.stdint cimport int64_t

cdef extern from "clock.h" nogil:
    int64_t clock_monotonic_ns() noexcept
    int64_t clock_realtime_ns() noexcept
