# Copies a source store to a sink store chunk by chunk (CHUNK_BYTES), with a window of large reads, a map of chunks held, a
# CRC32C of each chunk, priorities (dirty chunks first) and a bound on the rate. It serves the PIT copy (main -> backup)
# and restore (image -> anywhere). Without a journal its chunk table is its own memory.
#
# A chunk is `held` when the sink has it stably: written, then flushed, then (where the owner asks for it) noted in a stable
# chunk table. Only then may main be written there, and only then a copy that goes on after a stop may pass it over.
from detour.core.types cimport *
from detour.core.bitmap cimport Bitmap
from detour.core.format cimport ChunkState
from detour.core.pool cimport PoolWaiter
from detour.core.reactor cimport Loop, Timer, Deferred, Reactor
from detour.core.store cimport Store, Io, StoreHandle

cdef enum:
    COPY_WINDOW_MAX = 32
    COPY_WANTED_MAX = 1018      # chunks that are asked for ahead

cdef struct CopySlot:
    Io io
    void* copier
    uint64_t chunk_first
    uint32_t chunks
    uint8_t* buffer
    uint64_t buffer_bytes
    int step                    # 0 free, 1 reading, 2 writing
    ns_t begun_ns
    uint64_t losses             # of the sink, when the write was submitted

ctypedef void (*copy_held_fn)(void* owner) noexcept nogil
ctypedef void (*copy_end_fn)(void* owner, int status, uint64_t failing_offset_bytes) noexcept nogil

cdef struct Copier:
    Loop* loop
    Store* source
    Store* sink
    uint64_t size_bytes
    uint64_t chunks_count
    ChunkState* chunks          # what is known of each chunk (chunk_get)
    uint32_t generation         # of that table
    bint chunks_own
    Bitmap held                 # stable on the sink, and so noted
    Bitmap written              # on the sink, not flushed there
    Bitmap settling             # a flush of the sink, and then the note of it, are under way
    Bitmap started              # being copied, or in one of the three above
    Bitmap wanted               # to be copied first; each of them is in the queue
    uint64_t queue[COPY_WANTED_MAX]     # in the order in which they were asked for
    uint32_t allowed_chunks     # in flight at most now: the window, or less while turns of the loop would become long
    uint32_t busy_chunks
    ns_t begun_ns               # when the last span was
    const uint64_t* asked[2]    # counts of what hosts asked of the source's volume; NULL: nobody is before it
    uint64_t asked_seen
    ns_t asked_ns               # when that was last another number
    bint alone                  # nobody was there: not of this volume, and of no other of the loop
    uint64_t queue_head         # numbers that only grow
    uint64_t queue_tail
    uint64_t cursor             # next chunk of the sweep
    CopySlot slots[COPY_WINDOW_MAX]
    uint32_t window
    uint32_t busy
    bint running
    bint paused
    bint flushing               # `settling` has chunks; counts as busy
    bint urgent                 # somebody waits for chunks to become held: flush the sink soon
    uint64_t written_bytes
    uint64_t written_losses     # of the sink, when the oldest of `written` was submitted: the least of them
    uint64_t settling_losses
    int status
    uint64_t failing_offset_bytes
    uint64_t rate_bytes_s       # 0: unbounded; wanted chunks do not wait for it
    int64_t tokens_bytes        # below 0: a debt, for wanted chunks
    ns_t tokens_ns
    Io flush_io
    Timer timer
    Deferred work
    PoolWaiter pool_waiter
    copy_held_fn persist        # makes the chunk table stable, then calls copier_persisted; NULL: nothing to do
    copy_held_fn on_held        # chunks became held
    copy_end_fn on_end
    void* owner
    uint64_t copied_bytes
    uint64_t read_ns            # sums, for the figures
    uint64_t write_ns
    ns_t started_ns
    ns_t ended_ns

cdef int copier_init(Copier* copier, Loop* loop, Store* source, Store* sink, uint64_t size_bytes, ChunkState* chunks,
                     uint32_t generation, uint32_t window, bint blank) noexcept nogil
cdef void copier_free(Copier* copier) noexcept nogil
cdef void copier_start(Copier* copier) noexcept nogil          # chunks that are CHUNK_HELD are not copied again
cdef void copier_stop(Copier* copier, int status) noexcept nogil   # on_end comes when what is in flight has ended
# As many as there is room for in the queue.
cdef void copier_want(Copier* copier, uint64_t chunk_first, uint64_t chunks) noexcept nogil
cdef inline uint64_t copier_wanting(const Copier* copier) noexcept nogil:
    return copier.queue_head - copier.queue_tail
cdef void copier_persisted(Copier* copier, int status) noexcept nogil
cdef void copier_pause(Copier* copier, bint paused) noexcept nogil
# How much may be in flight from now on, after a turn of the loop that has taken so long; answers what it should take.
cdef ns_t copier_pace(Copier* copier, bint hosts, ns_t taken_ns) noexcept nogil
cdef bint copier_hosts_ask(Copier* copier) noexcept nogil      # hosts of the volume asked for something a moment ago

# CopierHandle(reactor, copier_id, source: StoreHandle, sink: StoreHandle, size_bytes, window=8, rate_bytes_s=0)
#   start() -> ticket; EVENT_COPY_DONE follows · stop() -> ticket · progress() -> dict (read without asking the loop)
#   checksums() -> bytes, uint32 little-endian for each chunk
cdef class CopierHandle:
    cdef Copier* copier
    cdef readonly Reactor reactor
    cdef readonly StoreHandle source
    cdef readonly StoreHandle sink
    cdef readonly uint64_t id
    cdef readonly bint closed
