# Session to a target as a store: READ/WRITE 10 and 16, SYNCHRONIZE CACHE, WRITE SAME 16 with UNMAP (or written zeros),
# any CDB. Login is Python's; the socket is attached with the negotiated values. When the connection is lost,
# everything in flight goes back to the queue, EVENT_INITIATOR_LOST is posted, and Python attaches a new one (same ISID,
# so that the target ends the old session's tasks) or calls `fail`. Store semantics stay: done() once for each Io.
# Unit attentions and BUSY / TASK SET FULL of the target are retried here (bounded); other statuses end as E_CHECK for
# STORE_COMMAND (with sense) and E_IO for data (E_BUSY: reservation conflict, or busy for too long).
#
# EVENT_INITIATOR_LOST results: reason Status; Async Message event that announced it or 0; its Time2Wait and Time2Retain
#   in seconds. Not posted for what Python asked for: detach, logout, fail, close.
# EVENT_INITIATOR_ASYNC results: event, parameters 1 to 3; data: the message's data segment (at most 8 KiB).
from detour.core.types cimport *
from detour.core.initiator_task cimport Initiator
from detour.core.store cimport StoreHandle

# InitiatorStore(reactor, store_id, lun, size_bytes, block_bytes, queue_depth=64, unmap=False, volatile=True, ...)
#   attach(fd, params: dict) -> ticket · detach() -> ticket (closes the socket; what is in flight waits)
#   fail() -> ticket (everything queued ends with E_IO, later submits too, until attach)
#   logout() -> ticket (sends Logout when nothing is in flight, closes) · resize(size_bytes) -> ticket
cdef class InitiatorStore(StoreHandle):
    cdef Initiator* initiator
    cdef void set_limits(self, uint32_t queue_depth, uint32_t transfer_bytes_max, uint64_t unmap_bytes_max,
                         uint32_t retries_max) noexcept
    cdef void set_times(self, uint32_t command_limit_ms, uint32_t nop_interval_ms, uint32_t nop_timeout_ms) noexcept
