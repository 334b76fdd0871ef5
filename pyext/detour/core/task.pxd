# Target side, bottom layer: targets, sessions and SCSI tasks as structs, and the PDUs that answer them.
#
# The layers of the target side, each a module: task (this) <- task_in (device to host) <- task_out (host to device)
# <- task_begin (what each command does) <- session (PDUs, CmdSN, task management) <- target (what Python asks).
#
# A task's life, only forwards but for BEGUN -> HELD at a drain:
#
#   WAITING   its CmdSN has not come
#   HELD      it may not begin: the target drains
#   BEGUN     at work: receiving data, at the device, sending data
#   ANSWERED  its status is queued to send; the task ends when the last byte has left
#
# An aborted task leaves its queues at once and ends when the device has given back all of its requests.
from detour.core.conn cimport Conn, TxPdu
from detour.core.device cimport Device, GuardEntry, Nexus, Request
from detour.core.pool cimport PoolWaiter, Slab
from detour.core.reactor cimport Command, Deferred, Loop, Timer
from detour.core.scsi cimport ScsiCommand
from detour.core.stats cimport Histogram
from detour.core.types cimport *

cdef enum:
    TARGET_LUNS_MAX = 256
    BURSTS_MAX = 8                  # R2Ts of one task outstanding at a time, whatever was negotiated
    BUCKETS = 256
    PARTS = 2                       # requests of one READ at the device at a time
    COPIES_KEPT = 8                 # EXTENDED COPY commands that a session can ask about

cdef enum TaskKind:
    TASK_COMMAND = 0
    TASK_MANAGEMENT = 1             # a task management function that waits for tasks to end
    TASK_PDU = 2                    # another PDU that waits for its CmdSN
    TASK_VOID = 3                   # a CmdSN that ABORT TASK gave up before its command came

cdef enum TaskAttribute:        # byte 1 of a SCSI Command PDU, RFC 7143 11.3.1
    ATTRIBUTE_UNTAGGED = 0
    ATTRIBUTE_SIMPLE = 1
    ATTRIBUTE_ORDERED = 2
    ATTRIBUTE_HEAD_OF_QUEUE = 3
    ATTRIBUTE_ACA = 4

cdef enum TaskState:
    TASK_WAITING = 0
    TASK_HELD = 1
    TASK_BEGUN = 2
    TASK_ANSWERED = 3

cdef enum PartState:
    PART_IDLE = 0
    PART_PLACING = 1                # begin_write answered PENDING
    PART_PLACED = 2                 # there is a place to receive into
    PART_SUBMITTED = 3
    PART_DONE = 4                   # its data wait to be sent, or are being sent
    PART_GUARDED = 5                # it waits for an atomic command that overlaps, or is one that reads before it writes

ctypedef void (*task_fn)(Task* task) noexcept nogil
ctypedef int (*task_place_fn)(Task* task) noexcept nogil
ctypedef void (*part_fn)(Part* part) noexcept nogil

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
    Target* next_with_sessions  # Loop.targets
    uint64_t scratch_bytes      # of all tasks
    uint32_t copies_open        # EXTENDED COPY commands at work
    Session* sessions           # also those whose connection is closed while the device still has tasks of theirs
    uint32_t sessions_count
    uint32_t queue_depth_max
    uint64_t next_session_id
    bint holding                # command window closed: MaxCmdSN = ExpCmdSN - 1
    bint dropping               # new SCSI commands are not begun any more (they are dropped with the connection)
    bint drained                # and nothing is at the devices: what waits for data is parked in memory
    uint32_t nop_interval_ms    # NOP-In to a silent initiator; 0: off
    uint32_t nop_timeout_ms     # silence (no whole PDU) after which the connection is closed
    uint32_t stall_timeout_ms   # host that takes no answer, or owes data and sends none: closed after that; 0: never
    uint64_t session_bytes_max  # memory for data that one session may hold at a time; see memory_take
    Deferred sweep_work         # looks after whatever waits for the end of tasks
    bint sweep_wanted           # something does
    Command* drain_commands     # waiting Python calls, chained by args[7]
    Command* lun_commands
    Command* home_commands
    Command* close_command
    bint closing
    bint closed
    TargetStats stats

cdef struct CopyRecord:         # what RECEIVE COPY RESULTS (SPC-4 6.32) tells of an EXTENDED COPY
    bint used
    uint8_t list_id
    uint8_t state               # CopyState
    uint32_t lun
    uint16_t segments_done
    uint64_t copied_bytes
    uint8_t status
    uint8_t sense[252]
    uint16_t sense_bytes

cdef enum CopyState:            # as COPY STATUS tells it
    COPY_RUNNING = 0
    COPY_DONE = 1
    COPY_FAILED = 2

cdef struct CopyJob:            # an EXTENDED COPY at work; its parameter list is in task.gather
    CopyRecord* record          # NULL: the host does not want to ask about it
    uint32_t cscds_count
    uint32_t segment_at         # offset of the current segment descriptor in the list
    uint32_t segments_end
    uint16_t segments_done
    uint64_t copied_bytes
    Device* source
    Device* destination
    uint64_t source_at_bytes
    uint64_t destination_at_bytes
    uint64_t left_bytes         # of the segment
    bint backwards              # from its end, because the destination overlaps what is still to be read

cdef struct TextExchange:       # of one session, one at a time (session_text.pyx)
    bint open                   # a request has come, and the last response has not gone
    bint asked                  # Python works on the answer
    bint answering              # `data` is the answer, else the request so far
    bint final                  # the request had its F bit
    uint8_t bhs[48]             # of the newest request
    uint32_t ttt                # that the next request must carry
    uint8_t* data               # malloc
    uint32_t data_bytes
    uint32_t sent_bytes
    uint32_t send_data_bytes_max    # newly declared by the initiator, for after the last response; 0: not

cdef struct Burst:              # an R2T whose data have not all come
    uint32_t ttt
    uint32_t data_sn            # expected next
    uint64_t end_bytes

cdef struct Session:
    Target* target
    uint64_t id
    Conn conn
    Nexus nexus
    uint32_t exp_cmd_sn
    uint32_t max_cmd_sn_told    # the largest ever told: what the initiator may use
    uint32_t stat_sn
    uint32_t queue_depth
    uint32_t next_ttt
    Slab task_slab
    Task* tasks                 # all of them, in any state
    Task* buckets[BUCKETS]      # open SCSI commands by initiator task tag
    Task* waiting_head          # received ahead of ExpCmdSN, in order of CmdSN
    uint32_t tasks_open         # in the list
    uint32_t tasks_unanswered   # of them, what takes room in the command window
    uint64_t commands_done
    # the order of commands at each logical unit (task_order.pyx)
    uint64_t commands_begun     # the number of the newest command
    uint32_t ordered_open       # ORDERED commands that have not been answered
    uint32_t dormant            # commands that wait because of them
    # sending of Data-In, paced
    Task* send_head
    Task* send_tail
    uint32_t data_in_pdus
    uint64_t data_in_bytes
    # the PDU that is being received
    int rx_verdict
    Task* rx_task               # whose data it carries, or NULL
    uint8_t* rx_buffer          # pool buffer with the data of NOP-Out and Text
    uint32_t rx_buffer_bytes
    TextExchange text
    # memory for data, of all tasks, and the tasks that wait for some
    uint64_t memory_bytes
    uint64_t staged_bytes       # staging of all tasks, not in memory_bytes
    Task* memory_head
    Task* memory_tail
    Deferred memory_work
    uint64_t queued_pdu_bytes   # data of PDUs ahead of ExpCmdSN, commands not counted
    ns_t data_ns                # when data last came from the host, or were asked for
    # memory that VERIFY receives into, one task at a time
    uint8_t* compare_buffer
    Task* compare_owner
    Task* compare_head
    Task* compare_tail
    Deferred compare_work
    bint ended                  # the connection is closed
    int end_reason
    bint homing                 # told to go home
    uint32_t home_ttt           # of the ping behind that
    Timer watch_timer
    Timer home_timer
    Command* drop_commands      # chained by args[7]
    CopyRecord copies[COPIES_KEPT]  # newest EXTENDED COPY commands, for RECEIVE COPY RESULTS
    uint32_t copies_next
    Session* next
    Session* prev

cdef struct Part:               # one request at the device
    Task* task
    bint made                   # `request` is initialised: the first part's with its task, the other's when it is filled
    part_fn finished            # what follows when the device is done
    uint8_t state
    uint64_t start_bytes        # place in the command's data
    uint64_t length_bytes
    uint64_t queued_bytes       # Data-In queued so far
    uint32_t pdus_open          # Data-In PDUs that have not left
    uint64_t memory_bytes       # of the session's memory for data
    GuardEntry guard            # while it waits for an atomic command
    Request request

cdef struct Task:
    Session* session
    Task* next
    Task* prev
    Task* bucket_next
    Task* queue_next            # waiting for CmdSN, or for the compare buffer
    Task* send_next
    uint8_t kind
    uint8_t state
    bint immediate
    bint aborted
    bint failed                 # status and sense tell why; answered when no data is expected any more
    bint complete               # the work is done; answered when no data is expected any more
    bint sending                # in the session's send queue
    uint8_t attribute           # TaskAttribute
    bint in_set                 # has a place in the order of its nexus at its LUN (task_order.pyx)
    bint dormant                # HELD: an ordered command is before it, or it is one and others are
    uint64_t order              # that place
    uint32_t lun
    bint preempting             # its answer waits for the tasks that it aborted (PREEMPT AND ABORT)
    Task* memory_next
    task_fn memory_ready          # not NULL: waits for memory of the session
    uint64_t memory_wanted_bytes
    uint64_t memory_bytes       # of the session's memory for data: its place
    bint device_begun           # something was submitted to the device: the command must be ended, not dropped
    uint8_t bhs[48]
    uint32_t itt
    uint32_t cmd_sn
    Device* device
    ScsiCommand command
    ns_t begun_ns
    bint wants_read             # R and W of the command PDU
    bint wants_write
    uint64_t expected_bytes     # ExpectedDataTransferLength
    uint64_t total_bytes        # what the CDB means to move
    uint8_t status
    uint8_t sense[252]
    uint16_t sense_bytes
    uint64_t step_blocks        # done so far, for what works block range by block range
    uint32_t step_index         # UNMAP: current descriptor
    # data-in
    uint64_t room_bytes         # how much is sent at most: within total_bytes and expected_bytes
    uint64_t issued_bytes
    uint64_t sent_bytes         # queued to send
    uint32_t sequence_bytes     # of the current Data-In sequence (MaxBurstLength)
    uint32_t data_sn            # next Data-In, or R2T
    # data-out
    uint64_t take_bytes         # how much is used: what comes beyond is discarded
    uint64_t received_bytes
    uint64_t solicited_bytes    # covered by immediate and unsolicited data and by R2Ts
    bint unsolicited_open       # an unsolicited Data-Out with F is still to come
    uint32_t unsolicited_sn
    Burst bursts[BURSTS_MAX]    # ring, oldest first
    uint32_t bursts_head
    uint32_t bursts_count
    task_place_fn open_place    # OK: place is set; PENDING: it will be, then task_out's out_place_ready is called
    task_fn place_full
    uint8_t* place              # of bytes [place_start, place_end)
    uint64_t place_start
    uint64_t place_end
    bint place_waiting
    uint8_t* staging            # pool buffer of bytes [0, staging_bytes): data that came before their place
    uint32_t staging_bytes
    uint64_t staged_start       # what of it is filled: [staged_start, received_bytes)
    bint compare_queued
    uint8_t* gather             # pool buffer of a parameter list, of the block of WRITE SAME, or of an own answer
    uint32_t gather_bytes
    PoolWaiter gather_waiter
    uint32_t check_crc          # WRITE AND VERIFY: of the data written
    uint8_t* scratch            # memory of an atomic command or of a copy; see scratch_take
    uint64_t scratch_bytes
    GuardEntry claim            # of an atomic command
    CopyJob* copy               # EXTENDED COPY
    Part parts[PARTS]           # last: the request of the second one is not cleared for each task

# tasks
cdef Task* task_new(Session* session, const uint8_t* bhs) noexcept nogil      # NULL at the bound
cdef void task_free(Task* task) noexcept nogil
cdef void task_queue(Task* task) noexcept nogil                               # into the queue of its CmdSN (WAITING)
cdef Task* task_find(Session* session, uint32_t itt) noexcept nogil           # an open SCSI command
cdef void task_abort(Task* task) noexcept nogil                               # may free it
# Memory for one command, not of the pool, freed with the task. False: all tasks of the target have as much as they may.
cdef bint scratch_take(Task* task, uint64_t bytes) noexcept nogil
cdef bint task_busy(const Task* task) noexcept nogil                          # the device or the socket has memory of it
cdef bint task_at_device(const Task* task) noexcept nogil                     # a device has a request of it
cdef void loop_touch(Loop* loop) noexcept nogil                               # who waits for tasks of any target looks again
cdef void task_fail(Task* task, uint32_t sense) noexcept nogil                # remembers; see task_answer
cdef void task_inform(Task* task, uint64_t information) noexcept nogil        # INFORMATION of the sense that was made
cdef void task_fail_status(Task* task, uint8_t status) noexcept nogil
cdef bint task_data_expected(const Task* task) noexcept nogil
cdef void task_answer(Task* task) noexcept nogil                              # SCSI Response, then the end
cdef void task_answered(Task* task) noexcept nogil                            # its status is queued: accounts, may free
cdef void part_make(Part* part) noexcept nogil
cdef void part_release(Part* part) noexcept nogil
# Memory for data whose life depends on the host: READ data until the host takes them, the place of a WRITE until
# its data have come. A session may have one piece always, more while it holds less than session_bytes_max and than
# a quarter of what is free in the loop's pool: however many hosts hold all they can get, some is left for the next one.
cdef bint memory_for(const Session* session, uint64_t bytes) noexcept nogil
cdef inline bint memory_queued(const Session* session) noexcept nogil:         # others wait; nobody in a drain
    return session.memory_head != NULL and not session.target.dropping
cdef void memory_take(Session* session, uint64_t bytes) noexcept nogil
cdef void memory_give(Session* session, uint64_t bytes) noexcept nogil
cdef void memory_wait(Task* task, uint64_t bytes, task_fn ready) noexcept nogil  # ready() when there is room; FIFO
cdef void memory_leave(Task* task) noexcept nogil                                # waits no longer
cdef void memory_run(void* owner) noexcept nogil                                 # Session.memory_work
cdef uint32_t task_residual(const Task* task, uint8_t* flags) noexcept nogil
# PDUs
cdef TxPdu* session_tx(Session* session, uint8_t opcode, uint8_t flags, uint32_t itt) noexcept nogil
cdef void session_put_sn(Session* session, uint8_t* bhs, bint takes_stat_sn) noexcept nogil
cdef int session_async(Session* session, uint8_t event, uint16_t p1, uint16_t p2, uint16_t p3) noexcept nogil
cdef void session_reject(Session* session, const uint8_t* bhs, uint8_t reason) noexcept nogil
cdef void set_leave(Task* task) noexcept nogil                                # ends for the order of its task set
cdef void target_touch(Target* target) noexcept nogil                         # something ended: sweep if anyone waits
cdef void loop_touch(Loop* loop) noexcept nogil                               # the same for all targets of a loop
