# Session to a target as a store: READ/WRITE 16, SYNCHRONIZE CACHE 16, UNMAP (or WRITE SAME 16, or written zeros), any CDB.
# Login is Python's; the socket is attached with the negotiated values. When the connection is lost, everything in flight
# goes back to the queue, EVENT_INITIATOR_LOST is posted, and Python attaches a new one (same ISID, so that the target
# ends the old session's tasks) or calls `fail`. Store semantics stay: done() once for each Io.
# Unit attentions and BUSY / TASK SET FULL of the target are retried here (bounded); other statuses end as E_CHECK for
# STORE_COMMAND (with sense) and E_IO for data.
from detour.core.types cimport *
from detour.core.conn cimport Conn, ConnParams
from detour.core.pool cimport Slab
from detour.core.reactor cimport Loop, Deferred, Timer
from detour.core.store cimport Store, StoreHandle, Io

cdef struct Initiator:
    Store store
    Conn conn
    bint attached
    uint8_t lun[8]
    uint32_t cmd_sn
    uint32_t exp_stat_sn
    uint32_t max_cmd_sn
    uint32_t queue_depth
    uint32_t transfer_blocks_max    # of one command (block limits VPD, at most PART_BYTES_MAX)
    Io* queue_head                  # not sent yet
    Io* queue_tail
    void* commands                  # table of commands in flight, by ITT
    uint32_t commands_open
    uint32_t retries_max            # of one Io
    ns_t command_limit_ns           # unanswered for longer: the connection is closed (and the Io goes back to the queue)
    uint32_t nop_interval_ms
    uint32_t nop_timeout_ms
    Timer timer
    Deferred send_work
    uint64_t reconnects
    ns_t lost_ns                    # when the connection was lost; 0 while attached

# InitiatorStore(reactor, store_id, lun, size_bytes, block_bytes, queue_depth=64, unmap=False, volatile=True)
#   attach(fd, params: dict) -> ticket · detach() -> ticket (closes the socket; what is in flight waits)
#   fail() -> ticket (everything queued ends with E_IO, later submits too, until attach)
#   logout() -> ticket (sends Logout when nothing is in flight, closes) · resize(size_bytes) -> ticket
cdef class InitiatorStore(StoreHandle):
    cdef Initiator* initiator
