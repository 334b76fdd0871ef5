# Bitmap with summary layers: a bit of layer n+1 is set when the word below has any bit set, so that the search for the
# next set bit skips empty regions. The count is kept. Ranges are [start, start + count).
# Layer 0 may live in memory of the caller (a mapped file): then the summary is rebuilt from it.
from detour.core.types cimport *

cdef struct Bitmap:
    uint64_t bits               # number of bits
    uint64_t count              # bits that are set
    uint64_t* layers[6]         # 0 is the bits themselves
    uint64_t words[6]
    int layers_used
    bint borrowed               # layer 0 belongs to the caller

cdef int bitmap_init(Bitmap* bitmap, uint64_t bits) noexcept nogil
cdef int bitmap_init_borrowed(Bitmap* bitmap, uint64_t bits, uint64_t* words) noexcept nogil
cdef void bitmap_free(Bitmap* bitmap) noexcept nogil
cdef bint bitmap_test(const Bitmap* bitmap, uint64_t bit) noexcept nogil
cdef uint64_t bitmap_set(Bitmap* bitmap, uint64_t start, uint64_t count) noexcept nogil      # how many were clear
cdef uint64_t bitmap_clear(Bitmap* bitmap, uint64_t start, uint64_t count) noexcept nogil    # how many were set
cdef uint64_t bitmap_next_set(const Bitmap* bitmap, uint64_t start, uint64_t end) noexcept nogil      # `end` if none
cdef uint64_t bitmap_next_clear(const Bitmap* bitmap, uint64_t start, uint64_t end) noexcept nogil    # `end` if none
cdef bint bitmap_all_set(const Bitmap* bitmap, uint64_t start, uint64_t count) noexcept nogil
cdef bint bitmap_any_set(const Bitmap* bitmap, uint64_t start, uint64_t count) noexcept nogil
