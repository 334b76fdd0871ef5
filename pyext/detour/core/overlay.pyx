# The data path of a detoured volume: see overlay.pxd for the words.
#
# Owns nothing but its queues and small slabs: data lie in the journal's ring or in pool buffers, the index is the
# snapshot. Invariants:
#   - A write is in the snapshot only after its entry is sealed and, where asked for, stable; snapshot order is sequence
#     order (a write that overlaps one that still waits to be stable waits with it), so a replay of the journal gives
#     what reads saw.
#   - A request is in at most one queue; `finished` is drained once a turn, so done() never runs inside submit.
#   - Base reads of main are listed in `base_reads` as long as they run; whoever writes the same LBAs on main waits.
# Cost: one CRC pass for a write, one for a read from the journal (which is sent from its place); a mixed read copies its
# journal pieces into one buffer.
from libc.string cimport memcpy, memset

from detour.core.bitmap cimport bitmap_free, bitmap_init, bitmap_test
from detour.core.debug cimport invariant, likely
from detour.core.device cimport (REQUEST_COMMAND, REQUEST_FLUSH, REQUEST_FUA, REQUEST_READ, REQUEST_UNMAP, REQUEST_WRITE)
from detour.core.format cimport CHUNK_BYTES, ENTRY_ZERO
from detour.core.journal cimport (journal_abort, journal_commit, journal_data, journal_drop_live, journal_header,
                                  journal_pin, journal_reclaim, journal_reflect, journal_reserve, journal_seal,
                                  journal_seal_zero, journal_slot, journal_unpin, journal_used_bytes, journal_verify)
from detour.core.pool cimport (pool_get, pool_put, pool_wait, pool_wait_cancel, slab_free, slab_get, slab_init, slab_put)
from detour.core.ranges cimport (ranges_add, ranges_init, ranges_overlap, ranges_remove, ranges_wait)
from detour.core.reactor cimport (EVENT_CORRUPT, EVENT_JOURNAL_LEVEL, EVENT_VOLUME_FAULT, command_done, event_new,
                                  event_post, loop_defer, loop_timer, loop_timer_stop, loop_undefer)
from detour.core.snapshot cimport (Run, snapshot_active_blocks, snapshot_dirty_blocks, snapshot_free, snapshot_init,
                                   snapshot_mark, snapshot_run)
from detour.core.stats cimport stats_record
from detour.core.store cimport (IO_FUA, STORE_FLUSH, STORE_RANDOM_READ, STORE_READ, STORE_UNMAP, STORE_WRITE, ScsiIo,
                                io_done_fn, store_submit)
from detour.core.types cimport *

cdef enum:
    TICK_NS = 100000000
    ROOM_RETRY_NS = 2000000
    BACKUP_READ_LIMIT_NS = 500000000        # a read of the backup that takes longer is asked of main instead
    ANSWER_DELAY_NS_MAX = 200000000         # of one write, when the journal is all but full
    WHERE_JOURNAL = 1
    WHERE_MAIN = 2
    WHERE_BACKUP = 3


# --- queues ------------------------------------------------------------------------------------------------------------

cdef void queue_put(RequestQueue* queue, Request* request) noexcept nogil:
    invariant(not request.queued, b"a request is queued twice")
    request.queued = True
    request.next = NULL
    request.prev = queue.tail
    if queue.tail != NULL:
        queue.tail.next = request
    else:
        queue.head = request
    queue.tail = request
    queue.count += 1


cdef void queue_remove(RequestQueue* queue, Request* request) noexcept nogil:
    if request.prev != NULL:
        request.prev.next = request.next
    else:
        queue.head = request.next
    if request.next != NULL:
        request.next.prev = request.prev
    else:
        queue.tail = request.prev
    request.next = NULL
    request.prev = NULL
    request.queued = False
    queue.count -= 1


cdef int overlay_init(Volume* volume, Loop* loop, Store* main, Journal* journal) noexcept nogil:
    """Prepares the data path; the volume is in phase PASS. `journal` may be NULL: then it never leaves PASS."""
    cdef uint64_t chunks
    volume.main = main
    volume.journal = journal
    volume.device.loop = loop
    volume.device.block_bytes = main.block_bytes
    volume.device.blocks = main.size_bytes // main.block_bytes
    ranges_init(&volume.unreflected)
    ranges_init(&volume.base_reads)
    volume.finish_work.run = finish_run
    volume.finish_work.owner = volume
    volume.tick.run = tick_run
    volume.tick.owner = volume
    volume.room_timer.run = room_run
    volume.room_timer.owner = volume
    volume.throttle_timer.run = throttle_run
    volume.throttle_timer.owner = volume
    if slab_init(&volume.base_read_slab, sizeof(BaseRead), 0) < 0 or slab_init(&volume.scsi_slab, sizeof(ScsiIo), 0) < 0:
        return E_NOMEM
    chunks = (main.size_bytes + CHUNK_BYTES - 1) // CHUNK_BYTES
    if bitmap_init(&volume.flushed, chunks) < 0:
        return E_NOMEM
    if journal != NULL:
        journal.on_room = room_run
        journal.room_owner = volume
        return snapshot_init(&volume.snapshot, journal)
    return OK


cdef void overlay_free(Volume* volume) noexcept nogil:
    loop_undefer(volume.device.loop, &volume.finish_work)
    loop_timer_stop(volume.device.loop, &volume.tick)
    loop_timer_stop(volume.device.loop, &volume.room_timer)
    loop_timer_stop(volume.device.loop, &volume.throttle_timer)
    if volume.journal != NULL:
        volume.journal.on_room = NULL
    slab_free(&volume.base_read_slab)
    slab_free(&volume.scsi_slab)
    bitmap_free(&volume.flushed)
    if volume.journal != NULL:
        snapshot_free(&volume.snapshot)


# --- end of a request --------------------------------------------------------------------------------------------------

cdef void overlay_finish(Volume* volume, Request* request, int status) noexcept nogil:
    request.status = status
    request.state = STATE_FINISHED
    queue_put(&volume.finished, request)
    loop_defer(volume.device.loop, &volume.finish_work)


cdef void finish_run(void* owner) noexcept nogil:
    cdef Volume* volume = <Volume*>owner
    cdef Request* request
    cdef ns_t taken_ns
    while volume.finished.head != NULL:
        request = volume.finished.head
        queue_remove(&volume.finished, request)
        taken_ns = volume.device.loop.now_ns - request.begun_ns
        if request.op == REQUEST_READ:
            stats_record(&volume.stats.read_ns, taken_ns)
        elif request.op == REQUEST_WRITE:
            stats_record(&volume.stats.write_ns, taken_ns)
        if request.op != REQUEST_COMMAND and <uint64_t>taken_ns > volume.stats.longest_ns:
            volume.stats.longest_ns = <uint64_t>taken_ns
        volume.open_requests -= 1
        request.done(request)
    if overlay_is_on(volume):
        update_figures(volume)
    if volume.drain_command != NULL and volume.open_requests == 0:
        command_done(volume.drain_command, OK)
        volume.drain_command = NULL


cdef void update_figures(Volume* volume) noexcept nogil:
    cdef Journal* journal = volume.journal
    cdef uint64_t used = journal_used_bytes(journal)
    cdef uint32_t level
    cdef Command* event
    volume.stats.dirty_blocks = snapshot_dirty_blocks(&volume.snapshot)
    volume.stats.unreflected_bytes = volume.stats.dirty_blocks * volume.device.block_bytes
    volume.stats.journal_used_bytes = used
    volume.stats.journal_bytes = journal.data_bytes
    volume.stats.requests_open = volume.open_requests
    volume.stats.requests_waiting = volume.held.count + volume.room.count + volume.throttled.count
    level = 3 if used * 100 >= journal.data_bytes * 95 else 2 if used * 100 >= journal.data_bytes * 70 \
        else 1 if used * 2 >= journal.data_bytes else 0
    if level != volume.level:
        volume.level = level
        event = event_new(volume.device.loop, EVENT_JOURNAL_LEVEL, volume.device.id)
        if event != NULL:
            event.results[0] = level
            event.results[1] = used
            event.results[2] = journal.data_bytes
            event_post(volume.device.loop, event)
    if level > 0:
        journal_reclaim(journal)
        if volume.phase == PHASE_COPYING:
            loop_defer(volume.device.loop, &volume.evictor.work)


cdef void fault(Volume* volume, int status, lba_t lba, uint64_t blocks, int where) noexcept nogil:
    cdef Command* event = event_new(volume.device.loop, EVENT_VOLUME_FAULT, volume.device.id)
    if event != NULL:
        event.status = status
        event.results[0] = lba
        event.results[1] = blocks
        event.results[2] = <uint64_t>where
        event_post(volume.device.loop, event)


cdef void overlay_corrupt(Volume* volume, uint64_t slot) noexcept nogil:
    """Rule 9: named with LBA and sequence, never served."""
    cdef Command* event = event_new(volume.device.loop, EVENT_CORRUPT, volume.device.id)
    volume.stats.corrupt += 1
    if event != NULL:
        event.status = E_CORRUPT
        event.results[0] = journal_header(volume.journal, slot).lba
        event.results[1] = journal_header(volume.journal, slot).blocks
        event.results[2] = journal_header(volume.journal, slot).seq
        event_post(volume.device.loop, event)


# --- write -------------------------------------------------------------------------------------------------------------

cdef int overlay_begin_write(Device* device, Request* request) noexcept nogil:
    """A place for the payload: in the journal's ring, or before the freeze a buffer. PENDING: ready() comes."""
    cdef Volume* volume = <Volume*>device
    request.data = NULL
    request.buffer = NULL
    request.pinned_slot = -1
    request.first_error = OK
    request.state = STATE_NEW
    if volume.phase == PHASE_ARMED or volume.phase == PHASE_HOLDING:
        request.state = STATE_WAITS_HELD
        queue_put(&volume.held, request)
        return PENDING
    return place(volume, request)


cdef int place(Volume* volume, Request* request) noexcept nogil:
    if volume.phase == PHASE_PASS:
        return place_in_memory(volume, request)
    # Who comes later does not overtake who waits for room: else a large write would starve.
    if volume.room.head == NULL and \
            journal_reserve(volume.journal, request.data_bytes, &request.reservation, &request.data) == OK:
        request.state = STATE_PLACED
        return OK
    wait_for_room(volume, request)
    return PENDING


cdef int place_in_memory(Volume* volume, Request* request) noexcept nogil:
    request.buffer = pool_get(&volume.device.loop.buffers, request.data_bytes)
    if request.buffer == NULL:
        request.state = STATE_WAITS_MEMORY
        request.pool_waiter.ready = memory_ready
        request.pool_waiter.owner = request
        pool_wait(&volume.device.loop.buffers, &request.pool_waiter)
        return PENDING
    request.data = request.buffer
    request.state = STATE_PLACED
    volume.pass_open += 1
    return OK


cdef void memory_ready(void* owner) noexcept nogil:
    """Memory may be there: a WRITE gets its place, a READ is begun again."""
    cdef Request* request = <Request*>owner
    cdef Volume* volume = <Volume*>request.device
    if request.op == REQUEST_WRITE:
        placed_later(volume, request)
    else:
        run_read(volume, request)


cdef void placed_later(Volume* volume, Request* request) noexcept nogil:
    if place(volume, request) == OK:
        request.ready(request)


cdef void wait_for_room(Volume* volume, Request* request) noexcept nogil:
    if volume.room.head == NULL:
        volume.stats.waits_room += 1
    request.due_ns = volume.device.loop.now_ns          # since when it waits
    request.state = STATE_WAITS_ROOM
    queue_put(&volume.room, request)
    if not volume.room_timer.running:
        loop_timer(volume.device.loop, &volume.room_timer, ROOM_RETRY_NS)
    update_figures(volume)


cdef void room_run(void* owner) noexcept nogil:
    overlay_room(<Volume*>owner)


cdef void overlay_room(Volume* volume) noexcept nogil:
    cdef Request* request
    if volume.room.head == NULL:
        volume.stats.room_wait_ns = 0
        return
    journal_reclaim(volume.journal)
    while volume.room.head != NULL:
        request = volume.room.head
        if request.op == REQUEST_WRITE:
            if journal_reserve(volume.journal, request.data_bytes, &request.reservation, &request.data) != OK:
                break
            queue_remove(&volume.room, request)
            request.state = STATE_PLACED
            request.ready(request)
        else:
            queue_remove(&volume.room, request)
            if not seal_zero(volume, request):
                break
    volume.stats.room_wait_ns = 0
    if volume.room.head != NULL:
        volume.stats.room_wait_ns = <uint64_t>(volume.device.loop.now_ns - volume.room.head.due_ns)
        loop_timer(volume.device.loop, &volume.room_timer, ROOM_RETRY_NS)
        update_figures(volume)


cdef void overlay_abort(Device* device, Request* request) noexcept nogil:
    """A WRITE that was begun and will not be submitted: its place is given back, nothing was written."""
    cdef Volume* volume = <Volume*>device
    if request.queued:
        queue_remove(&volume.held if request.state == STATE_WAITS_HELD else &volume.room, request)
    elif request.state == STATE_WAITS_MEMORY:
        pool_wait_cancel(&device.loop.buffers, &request.pool_waiter)
    elif request.state == STATE_PLACED:
        give_back_place(volume, request)
    request.state = STATE_NEW
    request.data = NULL


cdef void give_back_place(Volume* volume, Request* request) noexcept nogil:
    if request.buffer != NULL:
        pool_put(&volume.device.loop.buffers, request.buffer, request.data_bytes)
        request.buffer = NULL
        volume.pass_open -= 1
    else:
        journal_abort(volume.journal, request.reservation, request.data_bytes)


cdef void run_write(Volume* volume, Request* request) noexcept nogil:
    cdef int status
    if request.buffer != NULL:                          # placed before the freeze: main is not frozen yet
        start_io(request, STORE_WRITE, write_through_done)
        store_submit(volume.main, &request.io)
        return
    status = journal_seal(volume.journal, request.reservation, request.lba, <blocks_t>request.blocks,
                          &request.seq_first, &request.seq_last)
    if status < 0:
        journal_abort(volume.journal, request.reservation, request.data_bytes)
        fault(volume, status, request.lba, request.blocks, WHERE_JOURNAL)
        overlay_finish(volume, request, status)
        return
    sealed(volume, request)


cdef void start_io(Request* request, uint8_t op, io_done_fn done) noexcept nogil:
    memset(&request.io, 0, sizeof(Io))
    request.io.op = op
    request.io.flags = IO_FUA if request.flags & REQUEST_FUA else 0
    request.io.offset_bytes = request.lba * request.device.block_bytes
    request.io.length_bytes = 0 if op == STORE_FLUSH else request.blocks * request.device.block_bytes
    request.io.data = request.buffer
    request.io.owner = request
    request.io.done = done


cdef void write_through_done(Io* io) noexcept nogil:
    cdef Request* request = <Request*>io.owner
    cdef Volume* volume = <Volume*>request.device
    if io.status < 0:
        volume.stats.main_errors += 1
    if request.op == REQUEST_WRITE:
        count_write(volume, request)
        volume.pass_open -= 1
    overlay_finish(volume, request, io.status)


cdef void sealed(Volume* volume, Request* request) noexcept nogil:
    """The entry is in the journal with flag 0. It shows in the snapshot at once, unless it must be stable first, or
    overlaps one that must (then it waits with it, so that the order of the snapshot is that of the journal)."""
    if likely(not volume.sync_always and not request.flags & REQUEST_FUA
              and not ranges_overlap(&volume.unreflected, request.lba, request.blocks)):
        reflect(volume, request)
        return
    request.state = STATE_WAITS_STABLE
    ranges_add(&volume.unreflected, &request.range, request.lba, request.blocks)
    request.commit_waiter.seq = request.seq_last
    request.commit_waiter.done = stable
    request.commit_waiter.owner = request
    journal_commit(volume.journal, &request.commit_waiter)


cdef void stable(void* owner, int status) noexcept nogil:
    cdef Request* request = <Request*>owner
    cdef Volume* volume = <Volume*>request.device
    if status < 0:
        fault(volume, status, request.lba, request.blocks, WHERE_JOURNAL)
        forget_entries(volume, request)
        ranges_remove(&volume.unreflected, &request.range)
        overlay_finish(volume, request, status)
        return
    reflect(volume, request)
    ranges_remove(&volume.unreflected, &request.range)


cdef void forget_entries(Volume* volume, Request* request) noexcept nogil:
    """Entries that were never marked in the snapshot: none of their blocks is live."""
    cdef seq_t seq
    cdef uint64_t slot
    for seq in range(request.seq_first, request.seq_last + 1):
        slot = journal_slot(volume.journal, seq)
        journal_drop_live(volume.journal, <uint32_t>slot, journal_header(volume.journal, slot).blocks, False)


cdef void reflect(Volume* volume, Request* request) noexcept nogil:
    """S304: the snapshot shows the write; S305: its record flag is 1; then the host is answered."""
    cdef seq_t seq
    for seq in range(request.seq_first, request.seq_last + 1):
        if snapshot_mark(&volume.snapshot, seq) < 0:
            fault(volume, E_NOMEM, request.lba, request.blocks, WHERE_JOURNAL)
            overlay_finish(volume, request, E_NOMEM)
            return
        journal_reflect(volume.journal, seq)
    count_write(volume, request)
    answer(volume, request)


cdef void count_write(Volume* volume, Request* request) noexcept nogil:
    volume.stats.writes += 1
    volume.stats.write_bytes += request.blocks * volume.device.block_bytes


cdef void answer(Volume* volume, Request* request) noexcept nogil:
    """Answers a write: at once, or later when the host is being slowed down. The delay grows smoothly with the journal's
    level, so that the host feels a slower disk long before there is no room (rule 8)."""
    cdef ns_t now = volume.device.loop.now_ns
    cdef ns_t due = now
    cdef double over
    if volume.level >= 2:
        over = (<double>volume.stats.journal_used_bytes / <double>volume.journal.data_bytes - 0.7) / 0.3
        if over > 0:
            due = now + <ns_t>(over * over * ANSWER_DELAY_NS_MAX)
    if volume.throttle_bytes_s:
        volume.throttle_free_ns = max(volume.throttle_free_ns, now) + <ns_t>(
            <double>(request.blocks * volume.device.block_bytes) * 1e9 / <double>volume.throttle_bytes_s)
        due = max(due, volume.throttle_free_ns)
    if likely(due == now and volume.throttled.head == NULL):
        overlay_finish(volume, request, OK)
        return
    if volume.throttled.tail != NULL:
        due = max(due, volume.throttled.tail.due_ns)        # answers keep their order
    request.due_ns = due
    request.state = STATE_WAITS_THROTTLE
    volume.stats.throttled_ns += <uint64_t>(due - now)
    queue_put(&volume.throttled, request)
    if not volume.throttle_timer.running:
        loop_timer(volume.device.loop, &volume.throttle_timer, volume.throttled.head.due_ns - now)


cdef void throttle_run(void* owner) noexcept nogil:
    cdef Volume* volume = <Volume*>owner
    cdef Request* request
    while volume.throttled.head != NULL and volume.throttled.head.due_ns <= volume.device.loop.now_ns:
        request = volume.throttled.head
        queue_remove(&volume.throttled, request)
        overlay_finish(volume, request, OK)
    if volume.throttled.head != NULL:
        loop_timer(volume.device.loop, &volume.throttle_timer,
                   volume.throttled.head.due_ns - volume.device.loop.now_ns)


cdef bint seal_zero(Volume* volume, Request* request) noexcept nogil:
    """UNMAP: entries that read as zeros, without data. False: it waits for room in the table."""
    cdef lba_t lba = request.lba
    cdef uint64_t left = request.blocks
    cdef blocks_t blocks
    cdef seq_t seq = 0
    request.seq_first = 0
    while left > 0:
        blocks = <blocks_t>min(left, <uint64_t>0x80000000)
        if journal_seal_zero(volume.journal, lba, blocks, &seq) != OK:
            if request.seq_first:
                forget_entries(volume, request)
            wait_for_room(volume, request)
            return False
        if request.seq_first == 0:
            request.seq_first = seq
        request.seq_last = seq
        lba += blocks
        left -= blocks
    sealed(volume, request)
    return True


# --- flush -------------------------------------------------------------------------------------------------------------

cdef void run_flush(Volume* volume, Request* request) noexcept nogil:
    """SYNCHRONIZE CACHE: all that was acknowledged before is stable afterwards (rule 3)."""
    if not overlay_is_on(volume):
        start_io(request, STORE_FLUSH, write_through_done)
        store_submit(volume.main, &request.io)
        return
    if volume.journal.next_seq <= 1:
        overlay_finish(volume, request, OK)
        return
    request.state = STATE_WAITS_STABLE
    request.commit_waiter.seq = volume.journal.next_seq - 1
    request.commit_waiter.done = flush_stable
    request.commit_waiter.owner = request
    journal_commit(volume.journal, &request.commit_waiter)


cdef void flush_stable(void* owner, int status) noexcept nogil:
    cdef Request* request = <Request*>owner
    if status < 0:
        fault(<Volume*>request.device, status, 0, 0, WHERE_JOURNAL)
    overlay_finish(<Volume*>request.device, request, status)


# --- read --------------------------------------------------------------------------------------------------------------

cdef void run_read(Volume* volume, Request* request) noexcept nogil:
    cdef Run run
    request.state = STATE_RUNNING
    if not overlay_is_on(volume):
        read_through(volume, request)
        return
    if ranges_overlap(&volume.unreflected, request.lba, request.blocks):
        volume.stats.waits_unreflected += 1             # S405
        request.state = STATE_WAITS_REFLECTED
        request.range_waiter.ready = reflected_ready
        request.range_waiter.owner = request
        ranges_wait(&volume.unreflected, &request.range_waiter, request.lba, request.blocks)
        return
    snapshot_run(&volume.snapshot, request.lba, request.lba + request.blocks, &run)
    if run.slot >= 0 and run.blocks == request.blocks \
            and journal_header(volume.journal, <uint64_t>run.slot).kind != ENTRY_ZERO:
        read_in_place(volume, request, <uint64_t>run.slot)
        return
    if take_buffer(volume, request):
        read_runs(volume, request, &run)


cdef void reflected_ready(void* owner) noexcept nogil:
    cdef Request* request = <Request*>owner
    run_read(<Volume*>request.device, request)


cdef bint take_buffer(Volume* volume, Request* request) noexcept nogil:
    request.buffer = pool_get(&volume.device.loop.buffers, request.data_bytes)
    if request.buffer == NULL:
        request.state = STATE_WAITS_MEMORY
        request.pool_waiter.ready = memory_ready
        request.pool_waiter.owner = request
        pool_wait(&volume.device.loop.buffers, &request.pool_waiter)
        return False
    request.data = request.buffer
    return True


cdef void read_through(Volume* volume, Request* request) noexcept nogil:
    if take_buffer(volume, request):
        start_io(request, STORE_READ, read_through_done)
        store_submit(volume.main, &request.io)


cdef void read_through_done(Io* io) noexcept nogil:
    cdef Request* request = <Request*>io.owner
    cdef Volume* volume = <Volume*>request.device
    if io.status < 0:
        volume.stats.main_errors += 1
    count_read(volume, request)
    overlay_finish(volume, request, io.status)


cdef void count_read(Volume* volume, Request* request) noexcept nogil:
    volume.stats.reads += 1
    volume.stats.read_bytes += request.data_bytes


cdef void read_in_place(Volume* volume, Request* request, uint64_t slot) noexcept nogil:
    """The whole range lies in one entry: it is sent from its place in the ring, which stays until the release."""
    if journal_verify(volume.journal, slot) < 0:
        overlay_corrupt(volume, slot)
        overlay_finish(volume, request, E_CORRUPT)
        return
    journal_pin(volume.journal, slot)
    request.pinned_slot = <int64_t>slot
    request.data = <uint8_t*>journal_data(volume.journal, slot, request.lba)
    volume.stats.reads_snapshot += 1
    count_read(volume, request)
    overlay_finish(volume, request, OK)


cdef void read_runs(Volume* volume, Request* request, Run* first) noexcept nogil:
    """Run by run into one buffer: journal pieces are copied, base pieces are read."""
    cdef lba_t lba = request.lba
    cdef lba_t end = request.lba + request.blocks
    cdef uint32_t block_bytes = volume.device.block_bytes
    cdef Run run = first[0]
    cdef uint8_t* to = request.buffer
    cdef bint any_journal = False, any_base = False
    request.parts_open = 1                              # held open until all runs are submitted
    request.first_error = OK
    while True:
        if run.slot >= 0:
            any_journal = True
            copy_from_journal(volume, request, &run, to)
        else:
            if not any_base:
                any_base = True
                ranges_add(&volume.base_reads, &request.range, request.lba, request.blocks)
            read_base(volume, request, run.lba, run.blocks, to)
        lba += run.blocks
        to += <uint64_t>run.blocks * block_bytes
        if lba >= end:
            break
        snapshot_run(&volume.snapshot, lba, end, &run)
    if any_journal and any_base:
        volume.stats.reads_mixed += 1
    elif any_base:
        volume.stats.reads_base += 1
    else:
        volume.stats.reads_snapshot += 1
    part_ended(volume, request)


cdef void copy_from_journal(Volume* volume, Request* request, const Run* run, uint8_t* to) noexcept nogil:
    cdef uint64_t slot = <uint64_t>run.slot
    cdef uint64_t length = <uint64_t>run.blocks * volume.device.block_bytes
    if journal_header(volume.journal, slot).kind == ENTRY_ZERO:
        memset(to, 0, length)
    elif journal_verify(volume.journal, slot) < 0:
        overlay_corrupt(volume, slot)
        request.first_error = E_CORRUPT
    else:
        memcpy(to, journal_data(volume.journal, slot, run.lba), length)


cdef Store* base_of(Volume* volume, lba_t lba, uint64_t blocks, uint64_t* count) noexcept nogil:
    """Where the base of `lba` is read, and for how many blocks that answer holds (S513): the backup, where it is asked
    for and main has nothing newer."""
    cdef uint64_t per_chunk = CHUNK_BYTES // volume.device.block_bytes
    cdef uint64_t chunk = lba // per_chunk
    cdef bint newer
    count[0] = blocks
    if not volume.reads_from_backup or volume.backup == NULL or volume.phase < PHASE_CATCHING_UP:
        return volume.main
    newer = bitmap_test(&volume.flushed, chunk)
    while (chunk + 1) * per_chunk < lba + blocks:
        if bitmap_test(&volume.flushed, chunk + 1) != newer:
            count[0] = (chunk + 1) * per_chunk - lba
            break
        chunk += 1
    return volume.main if newer else volume.backup


cdef void read_base(Volume* volume, Request* request, lba_t lba, uint64_t blocks, uint8_t* to) noexcept nogil:
    cdef uint64_t count = 0
    cdef Store* store
    while blocks > 0:
        store = base_of(volume, lba, blocks, &count)
        read_piece(volume, request, store, lba, count, to)
        lba += count
        blocks -= count
        to += count * volume.device.block_bytes


cdef void read_piece(Volume* volume, Request* request, Store* store, lba_t lba, uint64_t blocks,
                     uint8_t* to) noexcept nogil:
    cdef BaseRead* piece = <BaseRead*>slab_get(&volume.base_read_slab)
    cdef uint64_t length = blocks * volume.device.block_bytes
    if piece == NULL:
        request.first_error = E_NOMEM
        return
    piece.volume = volume
    piece.request = request
    piece.to = to
    piece.io.op = STORE_READ
    piece.io.offset_bytes = lba * volume.device.block_bytes
    piece.io.length_bytes = length
    piece.io.owner = piece
    piece.io.done = piece_done
    request.parts_open += 1
    if store != volume.main:
        piece.bounce = pool_get(&volume.device.loop.buffers, length)
        if piece.bounce == NULL:
            store = volume.main
    piece.io.data = to
    if piece.bounce != NULL:
        piece.io.data = piece.bounce
        list_backup_read(volume, piece)
        volume.stats.reads_backup += 1
    store_submit(store, &piece.io)


cdef void list_backup_read(Volume* volume, BaseRead* piece) noexcept nogil:
    piece.prev = NULL
    piece.next = volume.backup_reads
    if piece.next != NULL:
        piece.next.prev = piece
    volume.backup_reads = piece


cdef void unlist_backup_read(Volume* volume, BaseRead* piece) noexcept nogil:
    if piece.prev != NULL:
        piece.prev.next = piece.next
    else:
        volume.backup_reads = piece.next
    if piece.next != NULL:
        piece.next.prev = piece.prev


cdef void piece_done(Io* io) noexcept nogil:
    cdef BaseRead* piece = <BaseRead*>io.owner
    cdef Volume* volume = piece.volume
    cdef Request* request = piece.request
    if piece.bounce != NULL:
        if request != NULL:
            unlist_backup_read(volume, piece)
            if io.status < 0:
                ask_main_instead(volume, piece, io.status)
                piece.request = NULL
                request = NULL
            else:
                memcpy(piece.to, piece.bounce, io.length_bytes)
        pool_put(&volume.device.loop.buffers, piece.bounce, io.length_bytes)
    elif io.status < 0:
        volume.stats.main_errors += 1
        fault(volume, io.status, io.offset_bytes // volume.device.block_bytes,
              io.length_bytes // volume.device.block_bytes, WHERE_MAIN)
        request.first_error = io.status
    slab_put(&volume.base_read_slab, piece)
    if request != NULL:
        part_ended(volume, request)


cdef void ask_main_instead(Volume* volume, BaseRead* piece, int status) noexcept nogil:
    """A slow or failing backup storage must not be felt (rule 1): from now on main serves the base, which holds the
    same content wherever the backup would have been asked."""
    cdef uint32_t block_bytes = volume.device.block_bytes
    volume.stats.backup_errors += 1
    volume.reads_from_backup = False
    read_piece(volume, piece.request, volume.main, piece.io.offset_bytes // block_bytes,
               piece.io.length_bytes // block_bytes, piece.to)
    part_ended(volume, piece.request)                   # the new piece stands for this one
    fault(volume, status, piece.io.offset_bytes // block_bytes, piece.io.length_bytes // block_bytes,
          WHERE_BACKUP)


cdef void part_ended(Volume* volume, Request* request) noexcept nogil:
    request.parts_open -= 1
    if request.parts_open > 0:
        return
    if request.range.listed:
        ranges_remove(&volume.base_reads, &request.range)
    count_read(volume, request)
    overlay_finish(volume, request, request.first_error)


# --- entry points ------------------------------------------------------------------------------------------------------

cdef void overlay_submit(Volume* volume, Request* request) noexcept nogil:
    request.begun_ns = volume.device.loop.now_ns
    request.first_error = OK
    if request.op != REQUEST_WRITE:
        request.pinned_slot = -1
        request.buffer = NULL
    if volume.phase == PHASE_ARMED or volume.phase == PHASE_HOLDING:
        request.state = STATE_WAITS_HELD
        queue_put(&volume.held, request)
        return
    begin(volume, request)


cdef void begin(Volume* volume, Request* request) noexcept nogil:
    volume.open_requests += 1
    request.state = STATE_RUNNING
    if request.op == REQUEST_READ:
        run_read(volume, request)
    elif request.op == REQUEST_WRITE:
        run_write(volume, request)
    elif request.op == REQUEST_FLUSH:
        run_flush(volume, request)
    elif not overlay_is_on(volume):
        start_io(request, STORE_UNMAP, write_through_done)
        store_submit(volume.main, &request.io)
    elif volume.room.head != NULL:
        wait_for_room(volume, request)
    else:
        seal_zero(volume, request)


cdef void overlay_release(Device* device, Request* request) noexcept nogil:
    """The data have been sent, or the task is gone: pin and buffer are given back."""
    cdef Volume* volume = <Volume*>device
    if request.pinned_slot >= 0:
        journal_unpin(volume.journal, <uint64_t>request.pinned_slot)
        request.pinned_slot = -1
    if request.buffer != NULL:
        pool_put(&device.loop.buffers, request.buffer, request.data_bytes)
        request.buffer = NULL
    request.data = NULL


cdef void overlay_resume_held(Volume* volume) noexcept nogil:
    """The phase lets commands through again, in the order in which they came."""
    cdef Request* request
    cdef uint32_t count = volume.held.count
    while count > 0 and volume.held.head != NULL:
        count -= 1
        request = volume.held.head
        queue_remove(&volume.held, request)
        if request.op == REQUEST_WRITE and request.data == NULL:
            placed_later(volume, request)
        else:
            begin(volume, request)


cdef void overlay_abort_held(Volume* volume) noexcept nogil:
    """The host has gone home: commands that were never begun end here, it sends them to main again."""
    cdef Request* request
    cdef Request* following = volume.held.head
    while following != NULL:
        request = following
        following = request.next
        if request.op == REQUEST_WRITE and request.data == NULL:
            continue                                    # the target aborts it with its connection
        queue_remove(&volume.held, request)
        if request.op == REQUEST_WRITE:
            give_back_place(volume, request)
        volume.open_requests += 1
        overlay_finish(volume, request, E_ABORTED)


cdef void tick_run(void* owner) noexcept nogil:
    overlay_tick(<Volume*>owner)


cdef void overlay_tick(Volume* volume) noexcept nogil:
    """Ten times a second: gives up stuck reads of the backup, keeps figures and room fresh."""
    cdef BaseRead* piece
    cdef BaseRead* following = volume.backup_reads
    if volume.closed or not overlay_is_on(volume):
        return
    while following != NULL:
        piece = following
        following = piece.next
        if volume.device.loop.now_ns - piece.io.submitted_ns > BACKUP_READ_LIMIT_NS:
            unlist_backup_read(volume, piece)
            ask_main_instead(volume, piece, E_TIMEOUT)
            piece.request = NULL
    update_figures(volume)
    loop_timer(volume.device.loop, &volume.tick, TICK_NS)
