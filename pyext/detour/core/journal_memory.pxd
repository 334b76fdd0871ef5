# The memory that a journal has beside its file, and the lock on that file.
from detour.core.types cimport *
from detour.core.journal cimport Journal, Reservation

cdef enum:
    RESERVATION_SPARE = 1024        # reservations beyond one for each header
    READY_STEP_BYTES = 65536

cdef void* journal_memory(uint64_t bytes_wanted) except NULL
cdef int journal_tables(Journal* journal) except -1
cdef void journal_tables_clear(Journal* journal) noexcept nogil      # nothing is known of any slot; memory is given back
cdef void journal_more_reservations(Journal* journal) noexcept nogil # twice as many are in use
cdef void journal_free(Journal* journal) noexcept                    # its tables, its lock, and itself
cdef void journal_release_lock(Journal* journal) noexcept nogil
# All of the chunk table is zeros.
cdef void journal_clear_chunks(Journal* journal) noexcept nogil
# The pages of [start, head) in the data ring, and a step more, are there and writable, and so are those of the next headers:
# no store waits until the kernel has made, or read, as much around it as it reads ahead.
cdef void journal_ready_run(Journal* journal, uint64_t start) noexcept nogil
cdef inline void journal_ready(Journal* journal, uint64_t start) noexcept nogil:
    if journal.ready_position - journal.head_position > READY_STEP_BYTES and journal.readies:
        journal_ready_run(journal, start)
