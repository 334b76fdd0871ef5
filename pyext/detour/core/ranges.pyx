# LBA ranges in flight, and who waits for them.
#
# Owns: two doubly linked lists; the links live in the owners' structs, so nothing is allocated.
# Invariants: a range is listed at most once, a waiter queued at most once; a queued waiter overlaps a listed range,
#       except while a wake pass is on its way to it; a waiter is out of the queue before its ready() is called.
# Cost: linear in the ranges in flight (a question) and in ranges times waiters (an end); both are bounded by the
#       queue depth. An end with no waiters costs nothing more than the unlinking.
from libc.string cimport memset

from detour.core.debug cimport invariant
from detour.core.types cimport *


cdef void ranges_init(Ranges* ranges) noexcept nogil:
    memset(ranges, 0, sizeof(Ranges))


# ---- ranges ----

cdef bint ranges_overlap(const Ranges* ranges, lba_t lba, uint64_t blocks) noexcept nogil:
    cdef const Range* item = ranges.head
    if blocks == 0:
        return False
    while item != NULL:
        if item.lba < lba + blocks and lba < item.lba + item.blocks:
            return True
        item = item.next
    return False


cdef void ranges_add(Ranges* ranges, Range* item, lba_t lba, uint64_t blocks) noexcept nogil:
    item.lba = lba
    item.blocks = blocks
    item.listed = True
    item.next = NULL
    item.prev = ranges.tail
    if ranges.tail != NULL:
        ranges.tail.next = item
    else:
        ranges.head = item
    ranges.tail = item
    ranges.count += 1


cdef void _unlist(Ranges* ranges, Range* item) noexcept nogil:
    invariant(item.listed, b"a range that ends is listed")
    if item.prev != NULL:
        item.prev.next = item.next
    else:
        ranges.head = item.next
    if item.next != NULL:
        item.next.prev = item.prev
    else:
        ranges.tail = item.prev
    item.next = NULL
    item.prev = NULL
    item.listed = False
    ranges.count -= 1


# ---- waiters ----

cdef void ranges_wait(Ranges* ranges, RangeWaiter* waiter, lba_t lba, uint64_t blocks) noexcept nogil:
    invariant(ranges_overlap(ranges, lba, blocks), b"who waits for a range overlaps one")
    waiter.lba = lba
    waiter.blocks = blocks
    waiter.queued = True
    waiter.next = NULL
    waiter.prev = ranges.waiters_tail
    if ranges.waiters_tail != NULL:
        ranges.waiters_tail.next = waiter
    else:
        ranges.waiters_head = waiter
    ranges.waiters_tail = waiter


cdef void ranges_wait_cancel(Ranges* ranges, RangeWaiter* waiter) noexcept nogil:
    if not waiter.queued:
        return
    if ranges.wake_next == waiter:
        ranges.wake_next = waiter.next
    if waiter.prev != NULL:
        waiter.prev.next = waiter.next
    else:
        ranges.waiters_head = waiter.next
    if waiter.next != NULL:
        waiter.next.prev = waiter.prev
    else:
        ranges.waiters_tail = waiter.prev
    waiter.next = NULL
    waiter.prev = NULL
    waiter.queued = False


# One pass from the oldest waiter to the newest. ready() may change both lists; `wake_next` is kept right by
# ranges_wait_cancel, and is read again after each call.
cdef void _wake_pass(Ranges* ranges) noexcept nogil:
    cdef RangeWaiter* waiter
    ranges.wake_next = ranges.waiters_head
    while ranges.wake_next != NULL:
        waiter = ranges.wake_next
        ranges.wake_next = waiter.next
        if not ranges_overlap(ranges, waiter.lba, waiter.blocks):
            ranges_wait_cancel(ranges, waiter)
            waiter.ready(waiter.owner)


cdef void ranges_remove(Ranges* ranges, Range* item) noexcept nogil:
    _unlist(ranges, item)
    if ranges.waking:
        ranges.wake_again = True
        return
    ranges.waking = True
    ranges.wake_again = True
    while ranges.wake_again:
        ranges.wake_again = False
        _wake_pass(ranges)
    ranges.waking = False
