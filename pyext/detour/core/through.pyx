# Acknowledgement by main: what a volume does from the moment on at which the medium under its journal has failed (a flush
# that failed, a page that is lost). The journal's memory still holds the writes and the index still answers reads, but
# nothing of it can be called stable. So a write, an UNMAP and a SYNCHRONIZE CACHE are answered when main has, stably, what
# they cover. That must not wait for a whole round: what waits goes to main ahead of it, in batches.
#
# Owns the requests that wait for main, and the window of writes of a batch.
# Invariants:
#   - Nothing is written to main before catch-up has begun (rule 2): the run driver is told, and gives the copy up.
#   - A batch and a round never write at the same time: a round stops at the end of a segment, and a batch lets one (short)
#     segment go between itself and the next. So a round cannot put an older content over that of a batch, and what the
#     duplicate has below the batch leaves the index before anything is answered.
#   - A piece holds the newest content that the index knows when it is begun, and no two pieces in flight overlap.
#   - A batch takes no entry for its own that the index does not show yet: it would call older content by that name.
#   - A SYNCHRONIZE CACHE is about entries that were sealed and not stable when the medium failed (doubt_seq to doubt_end).
#     They go to main first. What came before them is stable in the journal, what came after is answered by main.
#   - What the journal has lost (a wrong checksum, a header that is gone) no batch can bring to main. When a round has found
#     it, the SYNCHRONIZE CACHE commands that wait, or else the next one, end with MEDIUM ERROR: once, as a disk tells of it.
#   - A write beyond the end of a main that has shrunk ends with BUSY; a doubtful entry there stays doubtful, and holds up
#     nobody but those who wait for it.
#   - What waits too long (main does not answer) ends with BUSY: the host sends it again, and sees no error (rule 1).
#   - A doubtful entry that was replaced is not written: a SYNCHRONIZE CACHE waits until what replaced it is on main.
#   - What main has newer than the journal is kept outside of it, stably, before anybody is answered (superseded.pyx), and
#     until everything from before the failure is on main, no room of the journal is used again: a power cut leaves what
#     was stable there, and that must be whole. Hosts that have waited long for room come first, and it is told.
# Cost: nothing while the journal is well; one word is looked at by each write.
from libc.string cimport memcpy, memset

from detour.core.bitmap cimport bitmap_set
from detour.core.debug cimport unlikely
from detour.core.device cimport Request
from detour.core.evictor cimport evictor_idle
from detour.core.format cimport CHUNK_BYTES, ENTRY_ZERO, FLAG_UNREFLECTED, EntryHeader
from detour.core.journal cimport journal_data, journal_header, journal_reclaim, journal_slot, journal_verify
from detour.core.overlay cimport (FLUSH_WINDOW, FlushSlot, PHASE_CATCHING_UP, PHASE_HOLDING, RequestQueue, Through,
                                  overlay_corrupt, overlay_finish, overlay_main_end, overlay_queue, overlay_take_journal,
                                  overlay_unqueue)
from detour.core.pool cimport pool_get, pool_put, pool_wait, pool_wait_cancel
from detour.core.ranges cimport ranges_overlap, ranges_wait
from detour.core.reactor cimport loop_defer, loop_timer, loop_timer_stop, loop_undefer
from detour.core.snapshot cimport Run, snapshot_flushed, snapshot_flushed_entry, snapshot_run
from detour.core.store cimport Io, STORE_FLUSH, STORE_UNMAP, STORE_WRITE, store_submit
from detour.core.superseded cimport (SUPERSEDED_BATCH, SUPERSEDED_REST, SUPERSEDED_ROUND, superseded_counts,
                                     superseded_post_batch, superseded_post_round, superseded_whole)
from detour.core.types cimport *
from detour.core.write_path cimport write_room

cdef enum:
    BATCH_REQUESTS = 256
    BATCH_BYTES = 8388608           # of requests, and as many of doubtful entries
    BATCH_DOUBTFUL = 4096           # entries
    TIMER_NS = 50000000
    WAIT_LIMIT_NS = 15000000000     # a host bears 30 s
    STATUS_BUSY = 0x08


cdef void through_init(Volume* volume) noexcept nogil:
    cdef uint32_t index
    cdef Through* through = &volume.through
    through.work.run = step_run
    through.work.owner = volume
    through.timer.run = timer_run
    through.timer.owner = volume
    through.pool_waiter.ready = step_run
    through.pool_waiter.owner = volume
    for index in range(<uint32_t>FLUSH_WINDOW):
        through.slots[index].volume = volume
    overlay_take_journal(volume)


cdef void through_stop(Volume* volume) noexcept nogil:
    if volume.journal != NULL:
        volume.journal.on_fault = NULL
    loop_undefer(volume.device.loop, &volume.through.work)
    loop_timer_stop(volume.device.loop, &volume.through.timer)
    pool_wait_cancel(&volume.device.loop.buffers, &volume.through.pool_waiter)


cdef void through_kick(Volume* volume) noexcept nogil:
    loop_defer(volume.device.loop, &volume.through.work)


cdef bint something_waits(const Volume* volume) noexcept nogil:
    cdef const Through* through = &volume.through
    return through.waiting.head != NULL or (
        through.doubt_seq <= through.doubt_end and not is_beyond(volume, through.doubt_seq))


cdef bint through_wants(const Volume* volume) noexcept nogil:
    cdef const Through* through = &volume.through
    return through.on and (through.running or (something_waits(volume) and not through.yields))


cdef void through_round_went_on(Volume* volume) noexcept nogil:
    volume.through.yields = False
    if volume.through.on:
        through_kick(volume)


cdef void through_newer(Volume* volume, uint64_t offset_bytes, uint64_t length_bytes) noexcept nogil:
    cdef uint64_t first = offset_bytes // CHUNK_BYTES
    cdef uint64_t last = (offset_bytes + length_bytes - 1) // CHUNK_BYTES
    if first < volume.flushed.bits:                     # what lies beyond the point in time is main's in any case
        bitmap_set(&volume.flushed, first, min(last + 1, volume.flushed.bits) - first)


cdef void step_run(void* owner) noexcept nogil:
    step(<Volume*>owner)


cdef void step(Volume* volume) noexcept nogil:
    cdef Through* through = &volume.through
    if not through.on or volume.closed:
        return
    if through.waiting.head != NULL or through.flushes.head != NULL or through.running:
        watch(volume)
    if through.flushing or through.keeping or (volume.phase != PHASE_CATCHING_UP and volume.phase != PHASE_HOLDING):
        return
    if not through.running:
        answer_flushes(volume)
        if not begin_batch(volume):
            return
    while through.status == OK and through.busy < FLUSH_WINDOW and next_piece(volume):
        pass
    if through.busy == 0 and (through.status != OK or not next_range(volume)):
        flush_main(volume)


# --- a batch -----------------------------------------------------------------------------------------------------------

cdef bint begin_batch(Volume* volume) noexcept nogil:
    """False: nothing waits, or it is not its turn: who stands in the way kicks."""
    cdef Through* through = &volume.through
    cdef Request* request
    cdef uint64_t bytes = 0
    if not through_wants(volume) or (volume.round.running and (
            volume.round.busy > 0 or volume.round.flushing or volume.round.segment_bytes > 0)):
        return False
    if not evictor_idle(volume):
        watch(volume)
        return False
    if through.waiting.head == NULL and is_hidden(volume, through.doubt_seq):
        return False                                    # who answers its write kicks
    through.running = True
    through.status = OK
    through.losses = volume.main.losses
    through.batch_doubt = through.doubt_seq
    through.batch_bytes = 0
    while through.waiting.head != NULL and through.batch.count < BATCH_REQUESTS and bytes < BATCH_BYTES:
        request = through.waiting.head
        overlay_unqueue(&through.waiting, request)
        overlay_queue(&through.batch, request)
        request.first_error = OK
        bytes += request.blocks * volume.device.block_bytes
    through.cursor = 0
    through.end = 0
    take_request(through, through.batch.head)
    return True


cdef void take_request(Through* through, Request* request) noexcept nogil:
    through.request = request
    if request != NULL:
        through.cursor = request.lba
        through.end = request.lba + request.blocks


cdef bint next_range(Volume* volume) noexcept nogil:
    """Goes on to what is to be written next: first the requests, then doubtful entries. False: that was all."""
    cdef Through* through = &volume.through
    cdef const EntryHeader* header
    while through.cursor >= through.end:
        if through.request != NULL:
            take_request(through, through.request.next)
            continue
        if through.batch_doubt > through.doubt_end or through.batch_bytes >= BATCH_BYTES \
                or through.batch_doubt >= through.doubt_seq + BATCH_DOUBTFUL or is_hidden(volume, through.batch_doubt) \
                or is_beyond(volume, through.batch_doubt):
            return False
        if superseded_counts(volume, through.batch_doubt):
            header = journal_header(volume.journal, journal_slot(volume.journal, through.batch_doubt))
            through.cursor = header.lba
            through.end = header.lba + header.blocks
            if volume.journal.slot_live[journal_slot(volume.journal, through.batch_doubt)] > 0:
                through.batch_bytes += header.data_bytes
        else:
            through.replaced = True
            through.gave_up = through.gave_up or header_is_lost(volume, through.batch_doubt)
        through.batch_doubt += 1
    return True


cdef bint is_hidden(const Volume* volume, seq_t seq) noexcept nogil:
    """Sealed, not in the index yet, and not answered: the batch would write what is older, and take it for the entry."""
    cdef uint64_t slot = journal_slot(volume.journal, seq)
    cdef const EntryHeader* header = journal_header(volume.journal, slot)
    return header.seq == seq and header.flag == FLAG_UNREFLECTED and volume.journal.slot_live[slot] > 0


cdef bint is_beyond(const Volume* volume, seq_t seq) noexcept nogil:
    """Main has shrunk below the entry: it stays in the journal, and doubtful, until main has its size again."""
    cdef const EntryHeader* header = journal_header(volume.journal, journal_slot(volume.journal, seq))
    return header.lba + header.blocks > overlay_main_end(volume) and superseded_counts(volume, seq)


cdef bint header_is_lost(const Volume* volume, seq_t seq) noexcept nogil:
    """The index has blocks of that slot, and what the slot says is neither the entry nor a newer one."""
    cdef uint64_t slot = journal_slot(volume.journal, seq)
    return volume.journal.slot_live[slot] > 0 and journal_header(volume.journal, slot).seq < seq


cdef FlushSlot* slot_for(Through* through, lba_t lba, uint64_t blocks) noexcept nogil:
    """A free one; NULL while a piece in flight overlaps the range."""
    cdef FlushSlot* found = NULL
    cdef FlushSlot* slot
    cdef uint32_t index
    for index in range(<uint32_t>FLUSH_WINDOW):
        slot = &through.slots[index]
        if not slot.busy:
            found = slot
        elif slot.lba < lba + blocks and lba < slot.lba + slot.blocks:
            return NULL
    return found


cdef bint next_piece(Volume* volume) noexcept nogil:
    """False: nothing is left, or it has to wait for a piece in flight or for memory."""
    cdef Through* through = &volume.through
    cdef FlushSlot* slot
    cdef Run run
    cdef blocks_t blocks
    if not next_range(volume):
        return False
    if unlikely(through.end > overlay_main_end(volume)):
        return pass_over(through)
    snapshot_run(&volume.snapshot, through.cursor, through.end, &run)
    if run.slot < 0:                                    # main has it already
        through.cursor += run.blocks
        return True
    if journal_header(volume.journal, <uint64_t>run.slot).kind == ENTRY_ZERO:
        slot = slot_for(through, run.lba, run.blocks)
        if slot == NULL:
            return False
        slot.buffer = NULL
        slot.buffer_bytes = 0
        begin_piece(volume, slot, run.lba, run.blocks)
        return True
    blocks = stretch(volume, &run)
    slot = slot_for(through, run.lba, blocks)
    if slot == NULL:
        return False
    slot.buffer_bytes = <uint64_t>blocks * volume.device.block_bytes
    slot.buffer = pool_get(&volume.device.loop.buffers, slot.buffer_bytes)
    if slot.buffer == NULL:
        pool_wait(&volume.device.loop.buffers, &through.pool_waiter)
        return False
    blocks = gather(volume, slot.buffer, run.lba, blocks)
    if blocks > 0:
        begin_piece(volume, slot, run.lba, blocks)
        return True
    pool_put(&volume.device.loop.buffers, slot.buffer, slot.buffer_bytes)
    overlay_corrupt(volume, <uint64_t>run.slot, run.lba, run.blocks)
    through.cursor += run.blocks
    if through.request != NULL:
        through.request.first_error = E_BUSY            # it was never acknowledged: the host sends it again
    else:
        through.replaced = True
        through.gave_up = True
    return True


cdef bint pass_over(Through* through) noexcept nogil:
    """What main is too small for. A request was never acknowledged: the host sends it again."""
    if through.request == NULL:                         # an entry, and main has shrunk since it was taken: once more
        through.status = E_RANGE
        return False
    through.request.first_error = E_BUSY
    through.cursor = through.end
    return True


cdef blocks_t stretch(Volume* volume, const Run* first) noexcept nogil:
    """Blocks of the unbroken stretch of data from `first` on, in the range, at most PART_BYTES_MAX."""
    cdef Run run = first[0]
    cdef uint64_t blocks_max = min(PART_BYTES_MAX // volume.device.block_bytes, volume.through.end - first.lba)
    cdef uint64_t blocks = 0
    while run.slot >= 0 and journal_header(volume.journal, <uint64_t>run.slot).kind != ENTRY_ZERO:
        blocks += min(<uint64_t>run.blocks, blocks_max - blocks)
        if blocks >= blocks_max:
            break
        snapshot_run(&volume.snapshot, first.lba + blocks, volume.through.end, &run)
    return <blocks_t>blocks


cdef blocks_t gather(Volume* volume, uint8_t* buffer, lba_t lba, blocks_t blocks) noexcept nogil:
    """Copies what the index has of [lba, lba + blocks), up to the first run whose checksum is wrong; answers how much."""
    cdef blocks_t filled = 0
    cdef uint32_t block_bytes = volume.device.block_bytes
    cdef Run run
    while filled < blocks:
        snapshot_run(&volume.snapshot, lba + filled, lba + blocks, &run)
        if journal_verify(volume.journal, <uint64_t>run.slot) < 0:
            break
        memcpy(buffer + <uint64_t>filled * block_bytes, journal_data(volume.journal, <uint64_t>run.slot, run.lba),
               <uint64_t>run.blocks * block_bytes)
        filled += run.blocks
    return filled


cdef void begin_piece(Volume* volume, FlushSlot* slot, lba_t lba, blocks_t blocks) noexcept nogil:
    cdef Through* through = &volume.through
    slot.lba = lba
    slot.blocks = blocks
    slot.busy = True
    through.busy += 1
    through.cursor = lba + blocks
    memset(&slot.io, 0, sizeof(Io))
    slot.io.op = STORE_WRITE if slot.buffer != NULL else STORE_UNMAP
    slot.io.offset_bytes = lba * volume.device.block_bytes
    slot.io.length_bytes = <uint64_t>blocks * volume.device.block_bytes
    slot.io.data = slot.buffer
    slot.io.owner = slot
    slot.io.done = piece_done
    through_newer(volume, slot.io.offset_bytes, slot.io.length_bytes)
    through_submit(volume, slot)


cdef void through_submit(Volume* volume, FlushSlot* slot) noexcept nogil:
    if ranges_overlap(&volume.base_reads, slot.lba, slot.blocks):
        slot.waiting = True
        slot.waiter.ready = quiet
        slot.waiter.owner = slot
        ranges_wait(&volume.base_reads, &slot.waiter, slot.lba, slot.blocks)
        return
    store_submit(volume.main, &slot.io)


cdef void quiet(void* owner) noexcept nogil:
    cdef FlushSlot* slot = <FlushSlot*>owner
    slot.waiting = False
    through_submit(slot.volume, slot)


cdef void piece_done(Io* io) noexcept nogil:
    cdef FlushSlot* slot = <FlushSlot*>io.owner
    cdef Volume* volume = slot.volume
    if slot.buffer != NULL:
        pool_put(&volume.device.loop.buffers, slot.buffer, slot.buffer_bytes)
        slot.buffer = NULL
    slot.busy = False
    volume.through.busy -= 1
    if io.status < 0:
        volume.stats.main_errors += 1
        volume.through.status = io.status
    else:
        volume.stats.flushed_bytes += io.length_bytes
        volume.stats.flushed_runs += 1
    through_kick(volume)


cdef void flush_main(Volume* volume) noexcept nogil:
    """Nothing of the batch is in flight: main makes it stable."""
    cdef Through* through = &volume.through
    if through.status != OK:
        put_back(volume)
        return
    through.flushing = True
    memset(&through.flush_io, 0, sizeof(Io))
    through.flush_io.op = STORE_FLUSH
    through.flush_io.owner = volume
    through.flush_io.done = flush_done
    store_submit(volume.main, &through.flush_io)


cdef void flush_done(Io* io) noexcept nogil:
    cdef Volume* volume = <Volume*>io.owner
    cdef Through* through = &volume.through
    through.flushing = False
    if io.status < 0 or through.losses != volume.main.losses:
        volume.stats.main_errors += 1 if io.status < 0 else 0
        put_back(volume)
        return
    if not volume.superseded_kept:
        batch_is_kept(volume)
    elif superseded_post_batch(volume) < 0:
        put_back(volume)
    else:
        through.keeping = True                          # through_stored goes on


cdef void batch_is_kept(Volume* volume) noexcept nogil:
    cdef Through* through = &volume.through
    through.keeping = False
    settle_batch(volume)
    through.doubt_seq = max(through.doubt_seq, through.batch_doubt)
    if through.doubt_seq > through.doubt_end and through.replaced:
        through.replaced = False
        through.sync_seq = volume.journal.next_seq - 1
    end_batch(volume)
    answer_flushes(volume)
    journal_reclaim(volume.journal)
    write_room(volume)


cdef int through_stored(Volume* volume, int kind, seq_t seq, int status) noexcept nogil:
    """Where Python cannot keep it, hosts are answered all the same: they would see errors else, and main has it. Python
    tells the operator."""
    if kind == SUPERSEDED_ROUND:
        round_is_kept(volume, seq, status)
        return OK
    if kind == SUPERSEDED_REST:
        rest_is_kept(volume, seq)
        return OK
    if kind != SUPERSEDED_BATCH or not volume.through.keeping:
        return E_INVALID
    batch_is_kept(volume)
    return OK


cdef void settle_batch(Volume* volume) noexcept nogil:
    """Main has the batch: what the duplicate holds below it is older and must not get there, then the host is answered."""
    cdef Through* through = &volume.through
    cdef const EntryHeader* header
    cdef Request* request
    cdef seq_t seq
    for seq in range(through.doubt_seq, through.batch_doubt):
        if superseded_whole(volume, seq):
            header = journal_header(volume.journal, journal_slot(volume.journal, seq))
            snapshot_flushed(&volume.snapshot, header.lba, header.blocks)
            snapshot_flushed_entry(&volume.snapshot, <uint32_t>journal_slot(volume.journal, seq))
    while through.batch.head != NULL:
        request = through.batch.head
        overlay_unqueue(&through.batch, request)
        if request.first_error < 0:
            through.gave_up = True
            answer_busy(volume, request)
            continue
        snapshot_flushed(&volume.snapshot, request.lba, request.blocks)
        for seq in range(request.seq_first, request.seq_last + 1):
            if superseded_counts(volume, seq):
                snapshot_flushed_entry(&volume.snapshot, <uint32_t>journal_slot(volume.journal, seq))
        volume.stats.acknowledged_by_main += 1
        overlay_finish(volume, request, OK)


cdef void end_batch(Volume* volume) noexcept nogil:
    volume.through.running = False
    volume.through.request = NULL
    volume.through.yields = volume.round.running
    if volume.round.running:
        loop_defer(volume.device.loop, &volume.round.work)
    through_kick(volume)


cdef void put_back(Volume* volume) noexcept nogil:
    """Main has failed, or may have lost what it had answered: all of the batch is written again, a little later."""
    cdef Through* through = &volume.through
    while through.waiting.head != NULL:                 # behind those that came before them
        move_head(&through.waiting, &through.batch)
    while through.batch.head != NULL:
        move_head(&through.batch, &through.waiting)
    through.running = False
    through.request = NULL
    through.yields = volume.round.running
    if volume.round.running:
        loop_defer(volume.device.loop, &volume.round.work)
    watch(volume)


cdef void move_head(RequestQueue* source, RequestQueue* to) noexcept nogil:
    cdef Request* request = source.head
    overlay_unqueue(source, request)
    overlay_queue(to, request)


# --- answers without a batch -------------------------------------------------------------------------------------------

cdef void answer_flushes(Volume* volume) noexcept nogil:
    """All that was acknowledged is stable, in the journal or on main, when no entry is doubtful."""
    cdef Request* request
    cdef int status = OK
    if volume.through.doubt_seq <= volume.through.doubt_end or not replacements_are_on_main(volume):
        return
    if volume.through.flushes.head == NULL:
        return
    if volume.through.owes_error:
        volume.through.owes_error = False
        status = E_CORRUPT
    while volume.through.flushes.head != NULL:
        request = volume.through.flushes.head
        overlay_unqueue(&volume.through.flushes, request)
        volume.stats.acknowledged_by_main += 1 if status == OK else 0
        overlay_finish(volume, request, status)


cdef bint replacements_are_on_main(Volume* volume) noexcept nogil:
    cdef Through* through = &volume.through
    if through.sync_seq > 0 and (through.gave_up or has_up_to(&through.waiting, through.sync_seq)
                                 or has_up_to(&through.batch, through.sync_seq)):
        return False
    through.sync_seq = 0
    return True


cdef bint has_up_to(const RequestQueue* queue, seq_t seq) noexcept nogil:
    cdef const Request* request = queue.head
    while request != NULL:
        if request.seq_first <= seq:
            return True
        request = request.next
    return False


cdef void answer_busy(Volume* volume, Request* request) noexcept nogil:
    request.scsi_status = STATUS_BUSY
    overlay_finish(volume, request, E_BUSY)


cdef void watch(Volume* volume) noexcept nogil:
    if not volume.through.timer.running:
        loop_timer(volume.device.loop, &volume.through.timer, TIMER_NS)


cdef void timer_run(void* owner) noexcept nogil:
    cdef Volume* volume = <Volume*>owner
    give_up_overdue(volume, &volume.through.waiting)
    give_up_overdue(volume, &volume.through.batch)
    give_up_overdue(volume, &volume.through.flushes)
    step(volume)


cdef void give_up_overdue(Volume* volume, RequestQueue* queue) noexcept nogil:
    cdef Request* request
    cdef Request* following = queue.head
    while following != NULL:
        request = following
        following = request.next
        if volume.device.loop.now_ns - request.begun_ns < <ns_t>WAIT_LIMIT_NS:
            continue
        if request == volume.through.request:
            take_request(&volume.through, following)
            volume.through.cursor = volume.through.end if following == NULL else volume.through.cursor
        overlay_unqueue(queue, request)
        volume.through.gave_up = volume.through.gave_up or queue != &volume.through.flushes
        answer_busy(volume, request)


# --- rounds, a new life, and room --------------------------------------------------------------------------------------

cdef void through_round_ended(Volume* volume) noexcept nogil:
    """Main has, stably, all that the duplicate had."""
    cdef seq_t seq = volume.through.round_seq
    volume.through.round_seq = 0
    if seq == 0 or not volume.through.on:
        return
    if not volume.superseded_kept:
        round_is_kept(volume, seq, OK)
    else:
        superseded_post_round(volume, seq)              # without memory the next one does


cdef void through_round_lost(Volume* volume, bint more) noexcept nogil:
    """Main has, stably, all of what the duplicate had that was not lost. `more` than the rounds before had found is."""
    cdef seq_t seq = volume.through.round_seq
    volume.through.round_seq = 0
    volume.through.owes_error = volume.through.owes_error or more
    if seq == 0 or not volume.through.on:
        return
    if not volume.superseded_kept:
        rest_is_kept(volume, seq)
    else:
        superseded_post_round(volume, seq)


cdef void rest_is_kept(Volume* volume, seq_t seq) noexcept nogil:
    if seq >= volume.through.doubt_end and volume.through.on:
        settle_doubt(volume, seq)


cdef void settle_doubt(Volume* volume, seq_t seq) noexcept nogil:
    """A round has brought to main what there was up to `seq`."""
    cdef Through* through = &volume.through
    through.doubt_seq = max(through.doubt_seq, through.doubt_end + 1)
    if seq >= through.sync_seq:
        through.sync_seq = 0
        through.gave_up = False
    if not through.running:
        answer_flushes(volume)


cdef void round_is_kept(Volume* volume, seq_t seq, int status) noexcept nogil:
    if seq < volume.through.doubt_end or not volume.through.on:
        return
    settle_doubt(volume, seq)
    if status >= 0 and volume.journal.room_kept:
        volume.journal.room_kept = False
        journal_reclaim(volume.journal)
        write_room(volume)


cdef void through_recovered(Volume* volume) noexcept nogil:
    """Of a journal that had failed in an earlier life: what was stable then, its superblock tells."""
    if volume.through.on:
        volume.through.doubt_seq = max(volume.journal.super.synced_seq + 1, volume.journal.tail_seq)
        volume.through.doubt_end = volume.journal.next_seq - 1
