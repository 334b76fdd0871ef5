# The copy (S201-S202): a window of large reads from the source, a checksum of every chunk, writes to the sink.
#
# Owns its slots and bitmaps; the chunk table may belong to a journal (then the held flags survive a kill of the process).
# Invariants: a chunk is `started` before its read is submitted; started chunks are in a slot, or in one of `written`,
# `settling` and `held`. Held are those that a flush of the sink has made stable, during which the way to the sink was not
# lost: what was only written is copied again when it was. The sweep goes upwards; wanted chunks go before it. Nothing is
# held back by a chunk that is slow: slots are independent.
# The host first: hosts of this loop wait for as long as a turn of it takes, so what is in flight is halved when a turn
# takes longer than it should, and grows by a chunk when it does not; while hosts are busy it should take less. With nobody
# there it may take longer: turns are long then because much arrives at once, and a window of one read would leave main
# and sink to work in turn.
# Cost: one CRC pass over the data on the loop thread, no copy; one read and one write Io for up to 1 MiB; a flush of the
# sink each SETTLE_BYTES, beside the other Ios, and back to back while somebody waits for chunks to be held.
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from detour.core.atomic cimport load_acquire_flag, store_release_flag
from detour.core.bitmap cimport (bitmap_clear, bitmap_free, bitmap_init, bitmap_next_clear, bitmap_next_set, bitmap_set,
                                 bitmap_test)
from detour.core.clock cimport clock_monotonic_ns
from detour.core.crc32c cimport crc32c_update
from detour.core.debug cimport invariant
from detour.core.format cimport CHUNK_BYTES, CHUNK_HELD, CHUNK_SUMMED, chunk_get, chunk_put
from detour.core.pool cimport pool_get, pool_put, pool_wait, pool_wait_cancel
from detour.core.reactor cimport (Command, EVENT_COPY_DONE, command_done, event_new, event_post, loop_defer, loop_timer,
                                  loop_timer_stop, loop_undefer)
from detour.core.store cimport STORE_FLUSH, STORE_READ, STORE_WRITE, store_submit
from detour.core.types cimport *

cdef enum:
    SLOT_FREE = 0
    SLOT_READING = 1
    SLOT_WRITING = 2
    CHUNKS_PER_READ = 4                     # PART_BYTES_MAX / CHUNK_BYTES
    TURN_NS = 500000                        # what a turn of the loop may take, with nobody before the volume
    TURN_NS_IDLE = 4000000                  # with nobody before any volume of the loop
    TURN_NS_HOSTS = 100000                  # while hosts ask for something
    BUSY_GAP_NS = 1500000                   # 175 MB/s
    HOSTS_QUIET_NS = 20000000               # so long after the last command they do not
    LOOP_QUIET_NS = 2000000000              # so long after it nobody is there
    SETTLE_BYTES = 268435456
    DEBT_SECONDS = 2


cdef int copier_init(Copier* copier, Loop* loop, Store* source, Store* sink, uint64_t size_bytes, ChunkState* chunks,
                     uint32_t generation, uint32_t window, bint blank) noexcept nogil:
    """Chunks that are CHUNK_HELD in the table count as copied; `blank`: there are none, it need not be read. E_NOMEM,
    E_INVALID for stores that are too small, or E_CORRUPT (failing_offset_bytes: the first chunk of which the table says
    nothing sensible)."""
    cdef uint32_t slot
    memset(copier, 0, sizeof(Copier))
    if size_bytes == 0 or source.size_bytes < size_bytes or sink.size_bytes < size_bytes:
        return E_INVALID
    copier.loop = loop
    copier.source = source
    copier.sink = sink
    copier.size_bytes = size_bytes
    copier.chunks_count = (size_bytes + CHUNK_BYTES - 1) // CHUNK_BYTES
    copier.window = window if 0 < window <= COPY_WINDOW_MAX else COPY_WINDOW_MAX
    copier.allowed_chunks = copier.window * CHUNKS_PER_READ
    copier.chunks = chunks
    copier.generation = generation
    if chunks == NULL:
        copier.chunks = <ChunkState*>calloc(copier.chunks_count, sizeof(ChunkState))
        copier.chunks_own = True
    if copier.chunks == NULL or bitmap_init(&copier.held, copier.chunks_count) < 0 \
            or bitmap_init(&copier.written, copier.chunks_count) < 0 \
            or bitmap_init(&copier.settling, copier.chunks_count) < 0 \
            or bitmap_init(&copier.started, copier.chunks_count) < 0 \
            or bitmap_init(&copier.wanted, copier.chunks_count) < 0:
        copier_free(copier)
        return E_NOMEM
    if not blank and not take_held(copier):
        return E_CORRUPT
    for slot in range(<uint32_t>COPY_WINDOW_MAX):
        copier.slots[slot].copier = copier
        copier.slots[slot].io.owner = &copier.slots[slot]
    copier.work.run = copier_step_work
    copier.work.owner = copier
    copier.timer.run = copier_step_work
    copier.timer.owner = copier
    copier.pool_waiter.ready = copier_step_work
    copier.pool_waiter.owner = copier
    return OK


cdef bint take_held(Copier* copier) noexcept nogil:
    """What the table says is held. False, and the copier freed, where it is damaged: the chunk may have been held, and main
    written over since, so it is not known what to copy."""
    cdef uint64_t index
    cdef uint32_t crc = 0
    cdef int kind
    for index in range(copier.chunks_count):
        kind = chunk_get(copier.chunks, index, copier.generation, &crc)
        if kind < 0:
            copier_free(copier)
            copier.failing_offset_bytes = index * CHUNK_BYTES
            return False
        if kind == CHUNK_HELD:
            bitmap_set(&copier.held, index, 1)
            bitmap_set(&copier.started, index, 1)
            copier.copied_bytes += chunk_length(copier, index)
    return True


cdef void copier_free(Copier* copier) noexcept nogil:
    """Nothing may be in flight: on_end has been called, or the copier was never started."""
    if copier.loop != NULL:
        loop_undefer(copier.loop, &copier.work)
        loop_timer_stop(copier.loop, &copier.timer)
        pool_wait_cancel(&copier.loop.buffers, &copier.pool_waiter)
    invariant(copier.busy == 0, b"a copier is freed with Ios in flight")
    bitmap_free(&copier.held)
    bitmap_free(&copier.written)
    bitmap_free(&copier.settling)
    bitmap_free(&copier.started)
    bitmap_free(&copier.wanted)
    if copier.chunks_own:
        free(copier.chunks)
    memset(copier, 0, sizeof(Copier))


cdef void copier_start(Copier* copier) noexcept nogil:
    copier.running = True
    copier.status = OK
    copier.started_ns = copier.loop.now_ns
    copier.tokens_ns = copier.loop.now_ns
    if copier.asked[0] != NULL and not copier.loop.clock_virtual:
        copier.allowed_chunks = CHUNKS_PER_READ         # a host would meet the whole window in one turn
    loop_defer(copier.loop, &copier.work)


cdef void copier_stop(Copier* copier, int status) noexcept nogil:
    """Ends the copy with `status`; on_end comes when the last Io in flight has ended."""
    if copier.running:
        copier_fail(copier, status, 0)
        loop_defer(copier.loop, &copier.work)


cdef void copier_want(Copier* copier, uint64_t chunk_first, uint64_t chunks) noexcept nogil:
    """These chunks go before the sweep, in the order in which they were asked for: somebody waits to write them to main."""
    cdef uint64_t index
    for index in range(chunk_first, min(chunk_first + chunks, copier.chunks_count)):
        if not bitmap_test(&copier.started, index) and not bitmap_test(&copier.wanted, index) \
                and copier_wanting(copier) < COPY_WANTED_MAX:
            bitmap_set(&copier.wanted, index, 1)
            copier.queue[copier.queue_head % COPY_WANTED_MAX] = index
            copier.queue_head += 1
        if not bitmap_test(&copier.held, index):
            copier.urgent = True
    if copier.running:
        loop_defer(copier.loop, &copier.work)


cdef void copier_pause(Copier* copier, bint paused) noexcept nogil:
    copier.paused = paused
    if not paused and copier.running:
        loop_defer(copier.loop, &copier.work)


cdef inline uint64_t chunk_length(const Copier* copier, uint64_t chunk) noexcept nogil:
    return min(<uint64_t>CHUNK_BYTES, copier.size_bytes - chunk * CHUNK_BYTES)


cdef inline uint64_t span_length(const Copier* copier, uint64_t chunk, uint64_t chunks) noexcept nogil:
    return min(chunks * CHUNK_BYTES, copier.size_bytes - chunk * CHUNK_BYTES)


cdef void copier_fail(Copier* copier, int status, uint64_t offset_bytes) noexcept nogil:
    if copier.status == OK:
        copier.status = status
        copier.failing_offset_bytes = offset_bytes


cdef void copier_step_work(void* owner) noexcept nogil:
    copier_step(<Copier*>owner)


cdef uint64_t next_span(Copier* copier, uint64_t* chunks) noexcept nogil:
    """The next chunk to copy and how many follow it unstarted (at most one read); chunks_count when none is left."""
    cdef uint64_t first, end
    cdef uint64_t count = copier.chunks_count
    while copier.queue_tail < copier.queue_head:
        first = copier.queue[copier.queue_tail % COPY_WANTED_MAX]
        if bitmap_test(&copier.wanted, first) and not bitmap_test(&copier.started, first):
            chunks[0] = 1
            return first
        bitmap_clear(&copier.wanted, first, 1)
        copier.queue_tail += 1
    first = bitmap_next_clear(&copier.started, copier.cursor, count)
    copier.cursor = first
    if first < count:
        end = bitmap_next_set(&copier.started, first, min(first + CHUNKS_PER_READ, count))
        chunks[0] = end - first
        copier.cursor = end
    return first


cdef bint take_tokens(Copier* copier, uint64_t length_bytes, bint wanted) noexcept nogil:
    """Token bucket of a fifth of a second; False starts the timer for the moment when there are enough. A wanted chunk does
    not wait, because a host does: what it takes is a debt that the sweep pays back."""
    cdef int64_t length = <int64_t>length_bytes
    cdef int64_t bound, gained
    if copier.rate_bytes_s == 0:
        return True
    bound = max(<int64_t>(copier.rate_bytes_s // 5), <int64_t>PART_BYTES_MAX)
    gained = <int64_t>(<double>(copier.loop.now_ns - copier.tokens_ns) * <double>copier.rate_bytes_s / 1e9)
    if gained > 0:
        copier.tokens_bytes = min(copier.tokens_bytes + gained, bound)
        copier.tokens_ns = copier.loop.now_ns
    if wanted or copier.tokens_bytes >= length:
        # The debt is bounded, so that the sweep never stands still for long behind a burst of wanted chunks.
        copier.tokens_bytes = max(copier.tokens_bytes - length, -DEBT_SECONDS * <int64_t>copier.rate_bytes_s)
        return True
    loop_timer(copier.loop, &copier.timer,
               <ns_t>(<double>(length - copier.tokens_bytes) * 1e9 / <double>copier.rate_bytes_s) + 100000)
    return False


cdef bint copier_hosts_ask(Copier* copier) noexcept nogil:
    """Whether hosts of the volume asked for something a moment ago."""
    cdef uint64_t asked
    if copier.asked[0] == NULL:
        return False
    asked = copier.asked[0][0] + copier.asked[1][0]
    if asked != copier.asked_seen:
        copier.asked_seen = asked
        copier.asked_ns = copier.loop.now_ns
    return copier.asked_ns != 0 and copier.loop.now_ns - copier.asked_ns < HOSTS_QUIET_NS


cdef inline bint loop_idle(Copier* copier) noexcept nogil:
    """Whether no host of any volume or disk of the loop has been answered for a good while."""
    return copier.loop.now_ns - copier.loop.host_ns >= LOOP_QUIET_NS


cdef ns_t copier_pace(Copier* copier, bint hosts, ns_t taken_ns) noexcept nogil:
    """Within twice of what a turn should take. Answers that: with nobody to wait for it, a turn may be long."""
    cdef ns_t wanted_ns = TURN_NS_HOSTS if hosts else TURN_NS
    cdef bint alone = loop_idle(copier) and not hosts
    if alone:
        wanted_ns = TURN_NS_IDLE
    elif copier.alone:                      # somebody came: not the whole window in a turn, as at the begin
        copier.allowed_chunks = min(copier.allowed_chunks, <uint32_t>CHUNKS_PER_READ)
    copier.alone = alone
    if taken_ns > 2 * wanted_ns:
        copier.allowed_chunks = max(copier.allowed_chunks // 2, <uint32_t>1)
    elif taken_ns < wanted_ns:
        copier.allowed_chunks = min(copier.allowed_chunks + 1, copier.window * CHUNKS_PER_READ)
    return wanted_ns


cdef bint may_begin(Copier* copier, bint hosts, uint64_t first, uint64_t* chunks) noexcept nogil:
    """Whether a span may be in flight besides; shortens it to what may. What is wanted has the whole window. Hosts that
    keep the loop busy leave the sweep a chunk each BUSY_GAP_NS."""
    cdef uint32_t most = copier.allowed_chunks
    cdef bint wanted = bitmap_test(&copier.wanted, first)
    cdef ns_t since_ns = copier.loop.now_ns - copier.begun_ns
    if wanted:
        most = copier.window * CHUNKS_PER_READ
    if copier.busy_chunks >= most:
        return False
    if most == 1 and hosts and since_ns < BUSY_GAP_NS:
        loop_timer(copier.loop, &copier.timer, BUSY_GAP_NS - since_ns)
        return False
    if chunks[0] > most - copier.busy_chunks:
        chunks[0] = most - copier.busy_chunks
        copier.cursor = min(copier.cursor, first + chunks[0])
    return True


cdef void copier_step(Copier* copier) noexcept nogil:
    """Fills the window, lets settle what was written, and at the end tells on_end."""
    cdef uint64_t first, chunks = 0
    cdef bint hosts
    if not copier.running:
        return
    if copier.status != OK:
        copier_maybe_end(copier)
        return
    if copier.written_bytes >= SETTLE_BYTES or copier.urgent:
        settle(copier)
    hosts = copier_hosts_ask(copier)
    if not copier.loop.clock_virtual:
        copier_pace(copier, hosts, clock_monotonic_ns() - copier.loop.now_ns)
    while in_slots(copier) < COPY_WINDOW_MAX and not copier.paused:
        first = next_span(copier, &chunks)
        if first == copier.chunks_count:
            copier_maybe_end(copier)
            return
        if not may_begin(copier, hosts, first, &chunks):
            copier.cursor = min(copier.cursor, first)
            return
        if not begin_span(copier, first, chunks):
            return


cdef bint begin_span(Copier* copier, uint64_t first, uint64_t chunks) noexcept nogil:
    """Submits the read of a span; False (and the span given back) when rate or memory say: later."""
    cdef uint64_t length_bytes = span_length(copier, first, chunks)
    cdef CopySlot* slot
    cdef uint8_t* buffer
    cdef uint32_t index = 0
    buffer = NULL
    if take_tokens(copier, length_bytes, bitmap_test(&copier.wanted, first)):
        buffer = pool_get(&copier.loop.buffers, length_bytes)
        if buffer == NULL:
            copier.tokens_bytes += <int64_t>length_bytes if copier.rate_bytes_s else 0
            pool_wait(&copier.loop.buffers, &copier.pool_waiter)
    if buffer == NULL:
        if first < copier.cursor:
            copier.cursor = first
        return False
    while copier.slots[index].step != SLOT_FREE:
        index += 1
    slot = &copier.slots[index]
    bitmap_set(&copier.started, first, chunks)
    bitmap_clear(&copier.wanted, first, chunks)         # next_span takes it out of the queue
    slot.step = SLOT_READING
    slot.chunk_first = first
    slot.chunks = <uint32_t>chunks
    slot.buffer = buffer
    slot.buffer_bytes = length_bytes
    slot.begun_ns = copier.loop.now_ns
    slot.io.op = STORE_READ
    slot.io.flags = 0
    slot.io.scsi = NULL
    slot.io.offset_bytes = first * CHUNK_BYTES
    slot.io.length_bytes = length_bytes
    slot.io.data = buffer
    slot.io.done = copy_read_done
    copier.busy += 1
    copier.busy_chunks += slot.chunks
    copier.begun_ns = copier.loop.now_ns
    store_submit(copier.source, &slot.io)
    return True


cdef void end_slot(Copier* copier, CopySlot* slot) noexcept nogil:
    pool_put(&copier.loop.buffers, slot.buffer, slot.buffer_bytes)
    slot.buffer = NULL
    slot.step = SLOT_FREE
    copier.busy -= 1
    copier.busy_chunks -= slot.chunks
    loop_defer(copier.loop, &copier.work)


cdef void copy_read_done(Io* io) noexcept nogil:
    cdef CopySlot* slot = <CopySlot*>io.owner
    cdef Copier* copier = <Copier*>slot.copier
    cdef uint32_t index
    cdef uint64_t offset = 0, length
    copier.read_ns += copier.loop.now_ns - slot.begun_ns
    if io.status < 0 or copier.status != OK:
        if io.status < 0:
            copier_fail(copier, io.status, io.offset_bytes)
        end_slot(copier, slot)
        return
    for index in range(slot.chunks):
        length = chunk_length(copier, slot.chunk_first + index)
        chunk_put(copier.chunks, slot.chunk_first + index, copier.generation, CHUNK_SUMMED,
                  crc32c_update(0, slot.buffer + offset, length))
        offset += length
    slot.step = SLOT_WRITING
    slot.begun_ns = copier.loop.now_ns
    slot.io.op = STORE_WRITE
    slot.io.done = copy_write_done
    slot.losses = copier.sink.losses
    store_submit(copier.sink, &slot.io)
    loop_defer(copier.loop, &copier.work)               # this turn is one that takes long


cdef void copy_write_done(Io* io) noexcept nogil:
    cdef CopySlot* slot = <CopySlot*>io.owner
    cdef Copier* copier = <Copier*>slot.copier
    copier.write_ns += copier.loop.now_ns - slot.begun_ns
    if io.status < 0:
        copier_fail(copier, io.status, io.offset_bytes)
        end_slot(copier, slot)
        return
    # By now the connection may be lost that had brought this answer.
    copier.written_losses = slot.losses if copier.written.count == 0 else min(copier.written_losses, slot.losses)
    bitmap_set(&copier.written, slot.chunk_first, slot.chunks)
    copier.written_bytes += io.length_bytes
    copier.copied_bytes += io.length_bytes
    end_slot(copier, slot)


cdef void copier_maybe_end(Copier* copier) noexcept nogil:
    if copier.busy > 0:
        return
    if copier.status != OK or copier.held.count == copier.chunks_count:
        copier_end(copier)
    else:
        settle(copier)


cdef inline uint32_t in_slots(const Copier* copier) noexcept nogil:
    return copier.busy - 1 if copier.flushing else copier.busy


cdef void settle(Copier* copier) noexcept nogil:
    """Flushes the sink, which makes stable what is written now; one flush at a time."""
    cdef Bitmap empty = copier.settling
    if copier.flushing or copier.written.count == 0:
        return
    copier.settling = copier.written
    copier.written = empty
    copier.settling_losses = copier.written_losses
    copier.written_bytes = 0
    copier.urgent = False
    copier.flushing = True
    copier.busy += 1
    memset(&copier.flush_io, 0, sizeof(Io))
    copier.flush_io.op = STORE_FLUSH
    copier.flush_io.owner = copier
    copier.flush_io.done = copy_flush_done
    store_submit(copier.sink, &copier.flush_io)


cdef void copy_flush_done(Io* io) noexcept nogil:
    cdef Copier* copier = <Copier*>io.owner
    if io.status < 0:
        copier_fail(copier, io.status, copier.size_bytes)
    elif copier.sink.losses != copier.settling_losses:
        copy_settling_again(copier)
    if copier.status != OK or copier.settling.count == 0:
        end_settling(copier)
        return
    if not note_settling(copier):
        end_settling(copier)
        return
    if copier.persist != NULL:
        copier.persist(copier.owner)
    else:
        copier_persisted(copier, OK)


cdef bint note_settling(Copier* copier) noexcept nogil:
    """Says in the table that what settled is held. False, and the copy failed, where an element was damaged meanwhile."""
    cdef uint64_t chunk = 0
    cdef uint32_t crc = 0
    while True:
        chunk = bitmap_next_set(&copier.settling, chunk, copier.chunks_count)
        if chunk == copier.chunks_count:
            return True
        if chunk_get(copier.chunks, chunk, copier.generation, &crc) != CHUNK_SUMMED:
            copier_fail(copier, E_CORRUPT, chunk * CHUNK_BYTES)
            return False
        chunk_put(copier.chunks, chunk, copier.generation, CHUNK_HELD, crc)
        chunk += 1


cdef void copy_settling_again(Copier* copier) noexcept nogil:
    """The way to the sink was lost, and maybe its cache: what it had answered since the last flush counts for nothing."""
    cdef uint64_t chunk = 0
    while True:
        chunk = bitmap_next_set(&copier.settling, chunk, copier.chunks_count)
        if chunk == copier.chunks_count:
            return
        bitmap_clear(&copier.settling, chunk, 1)
        bitmap_clear(&copier.started, chunk, 1)
        copier.copied_bytes -= chunk_length(copier, chunk)
        copier.cursor = min(copier.cursor, chunk)


cdef void copier_persisted(Copier* copier, int status) noexcept nogil:
    """The chunk table says so stably: what settled is held."""
    cdef uint64_t chunk = 0
    if status < 0:
        copier_fail(copier, status, copier.size_bytes)
    while status >= 0:
        chunk = bitmap_next_set(&copier.settling, chunk, copier.chunks_count)
        if chunk == copier.chunks_count:
            break
        bitmap_set(&copier.held, chunk, 1)
        chunk += 1
    end_settling(copier)
    if status >= 0 and copier.on_held != NULL:
        copier.on_held(copier.owner)


cdef void end_settling(Copier* copier) noexcept nogil:
    cdef uint64_t chunk = 0
    while copier.settling.count > 0:                    # not all of the map at once: it is large, and hardly any is set
        chunk = bitmap_next_set(&copier.settling, chunk, copier.chunks_count)
        bitmap_clear(&copier.settling, chunk, 1)
    copier.flushing = False
    copier.busy -= 1
    loop_defer(copier.loop, &copier.work)


cdef void copier_end(Copier* copier) noexcept nogil:
    copier.running = False
    copier.ended_ns = copier.loop.now_ns
    loop_timer_stop(copier.loop, &copier.timer)
    pool_wait_cancel(&copier.loop.buffers, &copier.pool_waiter)
    if copier.on_end != NULL:
        copier.on_end(copier.owner, copier.status, copier.failing_offset_bytes)


# --- what Python holds -------------------------------------------------------------------------------------------------

cdef struct HandleState:
    Copier copier
    uint64_t id
    bint released               # not begun, or ended: the loop does not touch this memory any more


cdef void handle_ended(void* owner, int status, uint64_t failing_offset_bytes) noexcept nogil:
    cdef HandleState* state = <HandleState*>owner
    cdef Loop* loop = state.copier.loop
    cdef Command* event = event_new(loop, EVENT_COPY_DONE, state.id)
    if event != NULL:
        event.status = status
        event.results[0] = state.copier.copied_bytes
        event.results[1] = failing_offset_bytes
    store_release_flag(&state.released, True)
    if event != NULL:
        event_post(loop, event)


cdef void run_start(Command* command) noexcept nogil:
    cdef Copier* copier = <Copier*>command.owner
    if copier.running:
        command_done(command, E_BUSY)
        return
    copier_start(copier)
    command_done(command, OK)


cdef void run_stop(Command* command) noexcept nogil:
    copier_stop(<Copier*>command.owner, E_ABORTED)
    command_done(command, OK)


cdef class CopierHandle:
    """Copies `size_bytes` from one store to another, with a CRC32C of every 256 KiB chunk.

    Used for restore and for everything that is not under a host; the PIT copy of a detour is the volume's own.
    """

    def __cinit__(self):
        self.copier = NULL
        self.closed = True

    def __init__(self, Reactor reactor not None, uint64_t copier_id, StoreHandle source not None,
                 StoreHandle sink not None, uint64_t size_bytes, uint32_t window=8, uint64_t rate_bytes_s=0):
        cdef HandleState* state = <HandleState*>calloc(1, sizeof(HandleState))
        cdef int status
        if state == NULL:
            raise MemoryError()
        status = copier_init(&state.copier, reactor.loop, source.store, sink.store, size_bytes, NULL, 0, window, True)
        if status < 0:
            free(state)
            if status == E_NOMEM:
                raise MemoryError()
            raise ValueError("source and sink must hold at least size_bytes, and size_bytes must not be 0")
        state.id = copier_id
        state.released = True
        state.copier.owner = state
        state.copier.on_end = handle_ended
        state.copier.rate_bytes_s = rate_bytes_s
        self.copier = &state.copier                 # first member: the same address as `state`
        self.reactor = reactor
        self.source = source
        self.sink = sink
        self.id = copier_id
        self.closed = False

    def __dealloc__(self):
        # A copier that still runs belongs to the loop thread, and one with Ios in flight to its stores, too: its memory
        # stays (a process ends soon after, or leaks it).
        if self.copier != NULL and (load_acquire_flag(&(<HandleState*>self.copier).released)
                                    or not self.reactor.running and self.copier.busy == 0):
            copier_free(self.copier)
            free(self.copier)

    def start(self):
        """Ticket; done when begun. EVENT_COPY_DONE (sender: the copier's id) follows: bytes, failing offset."""
        (<HandleState*>self.copier).released = False
        return self.reactor.call(run_start, self.copier, 0, 0, 0, 0, NULL, 0)

    def stop(self):
        """Ticket. EVENT_COPY_DONE with E_ABORTED follows when what is in flight has ended."""
        return self.reactor.call(run_stop, self.copier, 0, 0, 0, 0, NULL, 0)

    def progress(self):
        """Figures as they are now: copied and total bytes, status, whether it runs."""
        return {
            "copied_bytes": self.copier.copied_bytes,
            "total_bytes": self.copier.size_bytes,
            "running": bool(self.copier.running),
            "status": self.copier.status,
        }

    def checksums(self):
        """CRC32C of each chunk, uint32 little-endian; 0 for one that has not been read."""
        cdef uint64_t index
        out = bytearray(4 * self.copier.chunks_count)
        cdef uint8_t[::1] view = out
        for index in range(self.copier.chunks_count):
            chunk_get(self.copier.chunks, index, self.copier.generation, <uint32_t*>&view[4 * index])
        return bytes(out)
