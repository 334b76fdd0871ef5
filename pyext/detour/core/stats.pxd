# Counters and latency buckets: one flat block of uint64 that numpy reads without asking the loop.
# Latency buckets are log-linear: 8 linear steps to each power of two of nanoseconds, so that a percentile is right
# within 12.5 %; index 0 is 0-7 ns, STATS_BUCKETS covers up to 2**40 ns (18 minutes).
from detour.core.types cimport *

cdef enum:
    STATS_BUCKETS = 304
    STATS_COUNTERS = 48

cdef struct Histogram:
    uint64_t count
    uint64_t sum_ns
    uint64_t max_ns
    uint64_t buckets[STATS_BUCKETS]

cdef extern from *:
    int __builtin_clzll(unsigned long long value) noexcept nogil

cdef inline uint32_t stats_bucket(uint64_t value_ns) noexcept nogil:
    cdef uint32_t top
    if value_ns < 8:
        return <uint32_t>value_ns
    if value_ns >= (<uint64_t>1 << 40):
        return STATS_BUCKETS - 1
    top = 63 - __builtin_clzll(value_ns)              # 3..39
    return (top - 2) * 8 + <uint32_t>((value_ns >> (top - 3)) & 7)

cdef inline void stats_record(Histogram* histogram, ns_t value_ns) noexcept nogil:
    cdef uint64_t value = <uint64_t>value_ns if value_ns > 0 else 0
    histogram.count += 1
    histogram.sum_ns += value
    if value > histogram.max_ns:
        histogram.max_ns = value
    histogram.buckets[stats_bucket(value)] += 1

# Read-only uint64 view of C memory by the buffer protocol; keeps `owner` alive while a view exists.
cdef class StatsView:
    cdef uint64_t* values
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]
    cdef object owner

cdef StatsView stats_view(object owner, void* values, Py_ssize_t count)
