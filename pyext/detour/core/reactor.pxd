# One event loop a thread. It owns every descriptor, buffer, journal and snapshot that is attached to it; nothing in it
# locks. Modules above register watches, timers and end-of-turn work; the reactor knows none of them.
#
# A turn: wait for events -> run their handlers -> take commands from Python (inbox) -> due timers -> completions posted
# with loop_defer, in order, until none is left (bounded) -> wake pool waiters -> end-of-turn hooks (write out sockets,
# commit the journal group) -> post events to Python.
from detour.core.types cimport *
from detour.core.mailbox cimport Mailbox
from detour.core.polling cimport Polling
from detour.core.pool cimport BufferPool

ctypedef void (*event_fn)(void* owner, uint32_t events) noexcept nogil
ctypedef void (*work_fn)(void* owner) noexcept nogil

cdef struct Watch:              # a descriptor in the epoll set; lives in its owner; zeroed before its first use
    int fd
    uint32_t events             # EPOLLIN | EPOLLOUT as registered now
    event_fn on_event
    void* owner

cdef struct Deferred:           # work for later in this turn; lives in its owner; queued at most once at a time
    work_fn run
    void* owner
    Deferred* next
    bint queued
    uint64_t end_turn           # the turn whose end ran it last: an end hook runs once a turn

cdef struct Timer:              # one shot; lives in its owner
    ns_t deadline_ns
    work_fn run
    void* owner
    Timer* next
    Timer* prev
    bint running

# Something that Python asks of the loop thread. Made by Python (malloc), run on the loop, given back through the
# outbox by command_done. `args` and `results` are the command's own business.
ctypedef void (*command_fn)(Command* command) noexcept nogil
cdef struct Command:
    uint32_t kind               # EVENT_COMMAND_DONE for commands; else the kind of an event
    int32_t status              # Status; set by command_done
    uint64_t ticket             # Python's number for its future; for events the id of the sender
    command_fn run
    void* owner
    uint64_t args[8]
    uint64_t results[8]
    void* data                  # malloc'ed; freed by Python with the command
    uint64_t data_bytes
    Loop* loop
    Command* next               # in the list of what did not fit into the outbox

# Kinds of what arrives in Python. 0 is an answer to a command; the others are events that nobody asked for.
cdef enum EventKind:
    EVENT_COMMAND_DONE = 0
    EVENT_SESSION_CLOSED = 1    # ticket: session id; results: reason Status, commands done
    EVENT_TEXT_REQUEST = 2      # ticket: session id; results: ITT; data: text keys
    EVENT_INITIATOR_LOST = 3    # ticket: store id; results: reason Status
    EVENT_INITIATOR_ASYNC = 4   # ticket: store id; results: async event, parameters 1-3
    EVENT_COPY_DONE = 5         # ticket: volume id (or copier id); status; results: bytes, failing LBA
    EVENT_ROUND_DONE = 6        # ticket: volume id; status; results: bytes, runs, ns
    EVENT_DRAINED = 7           # ticket: volume id
    EVENT_JOURNAL_LEVEL = 8     # ticket: volume id; results: level, used bytes, total bytes
    EVENT_CORRUPT = 9           # ticket: volume id; results: LBA, blocks, sequence (0: unknown), whether it is the chunk table
    EVENT_LOAD_DONE = 10        # ticket: load generator id
    EVENT_VOLUME_FAULT = 11     # ticket: volume id; status; results: LBA, blocks, where (1 journal, 2 main, 3 backup)
    EVENT_COMMAND_SEEN = 12     # ticket: session id; free for drivers
    EVENT_RESERVATIONS = 13     # ticket: disk id; data: the reservations to make durable (DiskHandle.reservations_stored)
    EVENT_CAPACITY = 14         # ticket: volume id; main may have another size
    EVENT_SUPERSEDED = 15       # ticket: volume id; results: SupersededKind, sequence number; data: Superseded structs

cdef struct Loop:
    int epoll_fd
    ns_t now_ns                 # monotonic; read once a turn, or set by a test when clock_virtual
    bint clock_virtual
    bint stop
    uint64_t turns
    Polling polling
    Mailbox inbox               # Command* from Python
    Mailbox outbox              # Command* to Python
    Watch inbox_watch
    BufferPool buffers          # data buffers of everything on this loop
    Deferred* deferred_head
    Deferred* deferred_tail
    Deferred* end_head          # end-of-turn hooks asked for in this turn
    Deferred* end_tail
    Deferred* again_head        # end hooks asked for by hooks that ran in this turn: for the next turn
    Deferred* again_tail
    Timer* timers               # sorted by deadline
    Timer* timers_tail
    void* batch                 # what epoll gave and is not yet delivered in this turn
    int batch_next
    int batch_count
    Command* overflow_head      # events that did not fit into the outbox: posted again in the next turn
    Command* overflow_tail
    void* warm                  # the connections': Conn* that moved bytes lately, chained
    Timer rest_timer            # runs while there are any
    void* targets               # the target side's: Target* with sessions, chained; finds all tasks at one device
    ns_t host_ns                # when a command of some host was answered last; 0: never

cdef int loop_init(Loop* loop, uint64_t buffer_limit_bytes) noexcept nogil
cdef void loop_free(Loop* loop) noexcept nogil
cdef int loop_turn(Loop* loop, int timeout_ms) noexcept nogil       # number of events handled
cdef int loop_watch(Loop* loop, Watch* watch, uint32_t events) noexcept nogil    # adds or changes
cdef void loop_unwatch(Loop* loop, Watch* watch) noexcept nogil     # no event comes afterwards, this turn included
cdef void loop_defer(Loop* loop, Deferred* work) noexcept nogil     # later in this turn
cdef void loop_at_end(Loop* loop, Deferred* work) noexcept nogil    # once at the end of this turn
cdef void loop_undefer(Loop* loop, Deferred* work) noexcept nogil   # from either queue
cdef void loop_timer(Loop* loop, Timer* timer, ns_t delay_ns) noexcept nogil     # starts or restarts
# Rounded up to a whole multiple of grain_ns: timers that only look after something meet, and wake the loop once.
cdef void loop_timer_coarse(Loop* loop, Timer* timer, ns_t delay_ns, ns_t grain_ns) noexcept nogil
cdef void loop_timer_stop(Loop* loop, Timer* timer) noexcept nogil
cdef void command_done(Command* command, int status) noexcept nogil # gives it back to Python
cdef Command* event_new(Loop* loop, uint32_t kind, uint64_t sender) noexcept nogil   # NULL when memory is out
cdef void event_post(Loop* loop, Command* event) noexcept nogil

# What Python holds: a loop with, when started, a thread. Unstarted it is turned by hand (`turn`), which tests and
# simulations use.
cdef class Reactor:
    cdef Loop* loop
    cdef object thread
    cdef uint64_t next_ticket
    cdef readonly bint running
    cdef readonly bint closed
    cdef readonly int index
    cdef object __weakref__
    # Makes a command and posts it; answers its ticket. Raises when the mailbox is full or the reactor is closed.
    cdef uint64_t call(self, command_fn run, void* owner, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
                       const uint8_t* data, uint64_t data_bytes) except 0
