# Single-producer single-consumer ring of pointers with an eventfd: the only meeting point of Python and a loop thread.
# No lock, no GIL; the consumer drains in batches. The eventfd is written only when the ring was empty.
from detour.core.types cimport *

cdef struct Mailbox:
    void** slots
    uint32_t capacity           # power of two
    uint64_t head               # next to write; producer only writes it
    uint64_t tail               # next to read; consumer only writes it
    int event_fd

cdef int mailbox_init(Mailbox* box, uint32_t capacity) noexcept nogil
cdef void mailbox_free(Mailbox* box) noexcept nogil
cdef int mailbox_post(Mailbox* box, void* item) noexcept nogil          # OK or E_FULL
cdef void* mailbox_take(Mailbox* box) noexcept nogil                    # NULL when empty
cdef void mailbox_acknowledge(Mailbox* box) noexcept nogil              # resets the eventfd; call before draining
cdef void mailbox_signal(Mailbox* box) noexcept nogil                   # for a consumer that stops before the ring is empty
cdef bint mailbox_empty(Mailbox* box) noexcept nogil
