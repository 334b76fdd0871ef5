# Tasks of the initiator: which Io is sent as which SCSI commands, the Data-Out they owe, what their status means.
#
#   FREE -> SENT -> ANSWERED -> FREE           (the Io goes on or is done)
#             ^        |
#             |        v
#             +----- RETRY                     (BUSY, unit attention, aborted command; after a pause)
#   SENT, RETRY -> FREE when the connection is lost: the Io is back in the queue.
#
# ANSWERED lasts until no queued PDU points to the Io's data any more.
from detour.core.types cimport *
from detour.core.conn cimport Conn
from detour.core.initiator_map cimport MAP_REPLY_BYTES
from detour.core.reactor cimport Command, Deferred, Timer
from detour.core.store cimport Io, Store

cdef enum:
    BURSTS_MAX = 9                  # of one task: the unsolicited one and R2Ts
    TASKS_MAX = 1000
    TASK_INDEX_BITS = 10            # low bits of an initiator task tag; above them is a generation
    NOP_INDEX = 1022                # tags that are not tasks
    LOGOUT_INDEX = 1021
    ZEROS_BYTES = 262144
    REPLY_BYTES = 8192              # data of a SCSI Response, Async Message or Reject; longer ones are thrown away

cdef enum TaskState:
    TASK_FREE = 0
    TASK_SENT = 1
    TASK_ANSWERED = 2
    TASK_RETRY = 3

cdef struct Burst:                  # Data-Out that is owed: unsolicited or asked for by an R2T
    Task* task
    uint32_t target_tag             # TAG_NONE: unsolicited
    uint32_t next_bytes             # offset into the task's data of what is sent next
    uint32_t end_bytes
    uint32_t data_sn
    bint queued
    Burst* next
    Burst* prev

cdef struct Task:
    uint8_t state                   # TaskState
    bint write_same                 # a STORE_UNMAP sent as WRITE SAME (16) with UNMAP
    uint8_t direction               # 0 none, 1 data-in, 2 data-out
    uint32_t index
    uint32_t tag                    # ITT of the command as sent last
    Io* io
    uint64_t offset_bytes           # where this part begins in the Io
    uint64_t part_bytes             # how much of the Io it covers
    uint8_t* data                   # where Data-In goes, where Data-Out is taken from
    uint32_t length_bytes           # expected data transfer length
    uint32_t received_bytes         # Data-In comes in order: also the offset expected next
    uint32_t data_sn                # DataSN or R2TSN that is expected next
    uint32_t asked_bytes            # up to where R2Ts have asked for data: they come in order
    uint32_t tx_pending             # queued PDUs that point to `data`
    uint32_t bursts_open            # R2Ts not wholly sent
    uint32_t retries
    int32_t status                  # when ANSWERED; AGAIN: to be sent again
    uint8_t map_reply[MAP_REPLY_BYTES]  # `data` of a STORE_MAP
    ns_t sent_ns
    ns_t retry_ns                   # when RETRY: not before
    Burst bursts[BURSTS_MAX]
    Task* next                      # free list, retry list

cdef struct IoList:
    Io* head
    Io* tail

cdef struct Answer:                 # of a SCSI Response or a Data-In with status
    uint8_t response                # 0: completed at the target
    uint8_t status
    uint8_t residual_flags          # 1 underflow, 2 overflow
    uint32_t residual
    const uint8_t* sense
    uint32_t sense_bytes

cdef struct Initiator:
    Store store
    Conn conn
    bint attached
    bint failed                     # fail() was called: every Io ends with E_IO until attach
    bint leaving                    # no command is sent any more on this connection
    bint logout_wanted              # a Logout goes out when nothing is in flight
    bint logout_sent
    bint close_asked                # by Python: the loss is not told
    ns_t logout_by_ns               # the Logout goes out then even with commands in flight; 0: it waits for them
    uint32_t announced              # Async Message event that announced the end of the connection, or 0
    uint16_t time2wait_s            # as it told
    uint16_t time2retain_s
    ns_t leaving_ns                 # when the peer's close or Logout Response was first waited for
    uint8_t lun[8]
    uint32_t cmd_sn
    uint32_t exp_stat_sn
    uint32_t max_cmd_sn
    uint32_t queue_depth
    uint32_t transfer_bytes_max     # of one READ or WRITE (block limits VPD, at most PART_BYTES_MAX)
    uint64_t unmap_bytes_max        # of one WRITE SAME
    bint unmap                      # UNMAP is sent as WRITE SAME (16) with UNMAP; else written as zeros
    IoList queue                    # not wholly sent yet, in order
    IoList flight                   # wholly sent, in the order of sending
    Task* tasks                     # table, by the low bits of the tag
    Task* free_tasks
    Task* retry_head                # by time
    uint32_t tasks_open
    uint32_t tasks_flying           # SENT or ANSWERED
    uint32_t generation
    Burst* burst_head               # Data-Out owed, in order
    Burst* burst_tail
    bint tx_full                    # sending waits until queued PDUs have left
    uint32_t retries_max            # of one command
    ns_t command_limit_ns           # unanswered for longer: the connection is closed (the Io goes back to the queue)
    ns_t nop_interval_ns
    ns_t nop_timeout_ns
    ns_t tick_ns
    uint32_t nop_tag                # of the NOP-Out that waits for its answer, or TAG_NONE
    ns_t nop_sent_ns
    Timer timer
    Timer retry_timer
    Deferred send_work
    Command* leave_command          # detach() or logout() of Python, answered when closed
    uint64_t reconnects             # attachments so far
    uint64_t answers                # commands that a target has answered
    uint64_t retries
    uint64_t rejects
    ns_t lost_ns                    # when the connection was lost; 0 while attached
    uint8_t* zeros
    uint8_t reply[REPLY_BYTES]

cdef int tasks_init(Initiator* initiator) noexcept nogil
cdef void tasks_free(Initiator* initiator) noexcept nogil
# Takes an Io in: queued, or ended at once when there is nothing to do.
cdef void task_submit(Initiator* initiator, Io* io) noexcept nogil
# Sends what the window, the table and the send queue allow: owed Data-Out first, then retries, then new commands.
cdef void tasks_pump(Initiator* initiator) noexcept nogil
# The task of a tag from the wire, or NULL: only one that waits for its answer.
cdef Task* task_find(Initiator* initiator, uint32_t tag) noexcept nogil
# An R2T: E_PROTOCOL when it asks for what is not the task's, out of order, or for more at once than was negotiated.
cdef int task_r2t(Initiator* initiator, Task* task, uint32_t r2t_sn, uint32_t target_tag, uint32_t offset_bytes,
                  uint32_t length_bytes) noexcept nogil
cdef void task_answered(Initiator* initiator, Task* task, const Answer* answer) noexcept nogil
cdef void task_failed(Initiator* initiator, Task* task, int status) noexcept nogil      # AGAIN: sent again
# The connection is gone: everything in flight goes to the front of the queue, in order.
cdef void tasks_return(Initiator* initiator) noexcept nogil
# Everything queued or in flight ends with `status`; only without a connection.
cdef void tasks_end(Initiator* initiator, int status) noexcept nogil
# A tag for what is not a task: NOP_INDEX, LOGOUT_INDEX.
cdef uint32_t tag_new(Initiator* initiator, uint32_t index) noexcept nogil
