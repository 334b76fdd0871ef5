# LBA ranges in flight: who overlaps waits, and is woken in order when the range ends (the S405 wait; one writer on main
# at a time). A plain list: its length is bounded by the queue depth.
from detour.core.types cimport *

ctypedef void (*range_ready_fn)(void* owner) noexcept nogil

cdef struct Range:              # lives in its owner
    lba_t lba
    uint64_t blocks
    bint listed
    Range* next
    Range* prev

cdef struct RangeWaiter:        # lives in its owner; woken when nothing in the list overlaps any more
    lba_t lba
    uint64_t blocks
    range_ready_fn ready
    void* owner
    bint queued
    RangeWaiter* next
    RangeWaiter* prev

cdef struct Ranges:
    Range* head
    Range* tail
    RangeWaiter* waiters_head
    RangeWaiter* waiters_tail
    uint32_t count              # ranges listed
    RangeWaiter* wake_next      # where the running wake pass goes on
    bint waking                 # a wake pass runs
    bint wake_again             # a range ended inside of it: one more pass from the oldest waiter

cdef void ranges_init(Ranges* ranges) noexcept nogil
cdef bint ranges_overlap(const Ranges* ranges, lba_t lba, uint64_t blocks) noexcept nogil
cdef void ranges_add(Ranges* ranges, Range* item, lba_t lba, uint64_t blocks) noexcept nogil
# `ready` and `owner` of the waiter are set by the caller; something listed overlaps it now.
cdef void ranges_wait(Ranges* ranges, RangeWaiter* waiter, lba_t lba, uint64_t blocks) noexcept nogil
cdef void ranges_wait_cancel(Ranges* ranges, RangeWaiter* waiter) noexcept nogil
# Ends a range and calls ready() of each waiter, oldest first, that overlaps nothing listed any more. A waiter may add,
# remove, cancel or wait again from inside ready(); it must not free the Ranges.
cdef void ranges_remove(Ranges* ranges, Range* item) noexcept nogil
