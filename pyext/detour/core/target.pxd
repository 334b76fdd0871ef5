# The host's side: sessions in full feature phase, SCSI tasks, data transfer (RFC 7143 at error recovery level 0, one
# connection a session). Login is done by Python, which hands the socket over with the negotiated values.
#
# A task: command -> (immediate and unsolicited data, R2T and Data-Out) -> requests to the device, part by part -> Data-In
# with status, or SCSI Response. Task memory comes from a slab of the session, bounded by the command window.
from detour.core.types cimport *
from detour.core.conn cimport Conn, ConnParams
from detour.core.device cimport Device, Request, DeviceHandle
from detour.core.pool cimport Slab
from detour.core.reactor cimport Loop, Deferred, Timer, Reactor
from detour.core.scsi cimport ScsiCommand
from detour.core.stats cimport Histogram

cdef enum:
    TARGET_LUNS_MAX = 256

cdef struct TargetStats:        # one flat block of uint64; names in target.pyx (STATS_NAMES)
    uint64_t sessions
    uint64_t commands
    uint64_t read_commands
    uint64_t write_commands
    uint64_t read_bytes
    uint64_t write_bytes
    uint64_t errors             # CHECK CONDITIONs with keys 2, 3, 4 (what a host would call an I/O error)
    uint64_t aborted
    uint64_t rejects
    uint64_t tasks_open
    uint64_t held               # commands that were dropped unanswered at a cutover (the host sends them again)
    uint64_t longest_ns         # slowest command since the last reset
    Histogram read_ns           # from the command's header to the last byte queued
    Histogram write_ns

cdef struct Target:
    Loop* loop
    uint64_t id
    Device* luns[TARGET_LUNS_MAX]
    # Answers REPORT LUNS and commands to LUNs that are not in `luns` (a gateway forwards them); NULL: own answers.
    Device* fallback
    Session* sessions
    uint32_t sessions_count
    uint64_t next_session_id
    bint holding                # command window closed: MaxCmdSN = ExpCmdSN - 1
    bint dropping               # new SCSI commands are not begun any more (they are dropped with the connection)
    uint32_t nop_interval_ms    # NOP-In to a silent initiator; 0: off
    uint32_t nop_timeout_ms     # silence after which the connection is closed
    Deferred drain_work
    bint drain_asked
    uint64_t drain_ticket
    TargetStats stats

cdef struct Session:
    Target* target
    uint64_t id
    Conn conn
    uint32_t exp_cmd_sn
    uint32_t stat_sn
    uint32_t queue_depth
    Slab task_slab
    Task* tasks                 # all open ones
    Task* waiting_head          # non-immediate commands received ahead of ExpCmdSN
    uint32_t tasks_open
    uint32_t next_ttt
    bint ended
    Timer nop_timer
    Session* next
    Session* prev
    # identity of the nexus, for reservations: initiator name and ISID
    char initiator_name[224]
    uint8_t isid[6]

cdef struct Task:               # private to target.pyx but for the pointer
    Session* session

# What Python holds.
#   TargetHandle(reactor, target_id, queue_depth_max=128)
#   set_lun(lun, DeviceHandle|None) -> ticket · set_fallback(DeviceHandle|None) -> ticket
#   adopt(fd, params: dict, initiator_name: str, isid: bytes) -> ticket; result: session id. The fd belongs to the core
#       from then on. `params` has the field names of ConnParams.
#   hold(True|False) -> ticket        closes / opens the command windows (NOP-Out is answered all the time)
#   drain() -> ticket                 done when every command that was begun has been answered; new ones are not begun
#   resume() -> ticket                ends hold and drain: commands that waited are begun
#   send_home(time2wait_s=0, time2retain_s=0, close_after_ms=50) -> ticket   Async Message event 3, then close; done when
#       all sessions are closed; result: how many
#   drop(session_id, reason) -> ticket     closes one session at once; done when its tasks have ended at the device
#   async_message(session_id, event, p1, p2, p3) -> ticket
#   text_response(session_id, itt, data: bytes) -> ticket       answer to EVENT_TEXT_REQUEST
#   sessions() -> ticket; result data: array of struct {id, commands open, commands done, bytes in, bytes out}
#   stats -> read-only uint64 view; stats_names() -> list of names of the leading counters
#   close() -> ticket
cdef class TargetHandle:
    cdef Target* target
    cdef readonly Reactor reactor
    cdef readonly uint64_t id
    cdef dict luns
    cdef readonly bint closed
