# Tells AddressSanitizer which memory of a slab or pool is given out now: a use of any other is found at once. Costs
# nothing in a build without it.
cdef extern from "sanitizer.h" nogil:
    void memory_forbid(const void* start, size_t length_bytes) noexcept
    void memory_allow(const void* start, size_t length_bytes) noexcept
