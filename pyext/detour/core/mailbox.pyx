# A ring of pointers between two threads, one of which posts and the other takes, with an eventfd to wake the taker.
#
# Owns: the slots and the eventfd; never what the pointers point to.
# Invariants: head - tail <= capacity; only the producer writes head, only the consumer writes tail.
# No wake-up is lost: the producer publishes head, then looks at tail; the consumer publishes tail, then looks at head,
# each with a full fence between. So either the consumer sees the new item or the producer sees an empty ring and signals.
# Cost: a post into a ring that is not empty is two stores and a fence; the write to the eventfd is once a batch.
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from detour.core.atomic cimport fence_full, load_acquire_u64, store_release_u64

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initial, int flags) noexcept
    int EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void* buffer, size_t count) noexcept
    ssize_t write(int fd, const void* buffer, size_t count) noexcept
    int close(int fd) noexcept


cdef int mailbox_init(Mailbox* box, uint32_t capacity) noexcept nogil:
    memset(box, 0, sizeof(Mailbox))
    box.event_fd = -1
    if capacity == 0 or (capacity & (capacity - 1)) != 0:
        return E_INVALID
    box.slots = <void**>calloc(capacity, sizeof(void*))
    if box.slots == NULL:
        return E_NOMEM
    box.capacity = capacity
    box.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if box.event_fd < 0:
        mailbox_free(box)
        return E_IO
    return OK


cdef void mailbox_free(Mailbox* box) noexcept nogil:
    free(box.slots)
    box.slots = NULL
    box.capacity = 0
    if box.event_fd >= 0:
        close(box.event_fd)
    box.event_fd = -1


cdef void mailbox_signal(Mailbox* box) noexcept nogil:
    cdef uint64_t one = 1
    # It fails only when the counter is full, and then the descriptor is readable already.
    write(box.event_fd, &one, sizeof(one))


cdef int mailbox_post(Mailbox* box, void* item) noexcept nogil:
    cdef uint64_t head = box.head
    if head - load_acquire_u64(&box.tail) >= box.capacity:
        return E_FULL
    box.slots[head & (box.capacity - 1)] = item
    store_release_u64(&box.head, head + 1)
    fence_full()
    if load_acquire_u64(&box.tail) == head:
        mailbox_signal(box)
    return OK


cdef void* mailbox_take(Mailbox* box) noexcept nogil:
    cdef uint64_t tail = box.tail
    cdef void* item
    if load_acquire_u64(&box.head) == tail:
        fence_full()
        if load_acquire_u64(&box.head) == tail:
            return NULL
    item = box.slots[tail & (box.capacity - 1)]
    store_release_u64(&box.tail, tail + 1)
    return item


cdef void mailbox_acknowledge(Mailbox* box) noexcept nogil:
    cdef uint64_t count
    read(box.event_fd, &count, sizeof(count))


cdef bint mailbox_empty(Mailbox* box) noexcept nogil:
    return load_acquire_u64(&box.head) == load_acquire_u64(&box.tail)
