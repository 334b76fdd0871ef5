# Group commit of a journal: one flush of the media at a time makes stable whatever was written before it; and the
# superblock, whose copies take turns with those flushes. Works on the Journal struct of journal.pxd.
from detour.core.types cimport *
from detour.core.journal cimport CommitWaiter, Journal

cdef void commit_init(Journal* journal) noexcept nogil
cdef void commit_wait(Journal* journal, CommitWaiter* waiter) noexcept nogil     # seq and flush of the waiter are set
cdef void commit_ask(Journal* journal) noexcept nogil                # a flush without a waiter
cdef bint commit_finish(Journal* journal) noexcept nogil             # ends waiters; answers whether any is left
cdef void super_write(Journal* journal) noexcept nogil
cdef seq_t super_stable_tail(const Journal* journal) noexcept nogil  # tail_seq of the copy that a power cut leaves
