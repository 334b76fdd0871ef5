# Reads of a detoured volume (S401-S406, S511-S514): wait for flag 0, then snapshot, else base.
#
# Owns the pieces of reads that run at main or backup. See overlay.pyx for the invariants and the cost.
from libc.string cimport memcpy, memset

from detour.core.bitmap cimport bitmap_test
from detour.core.format cimport CHUNK_BYTES, ENTRY_ZERO
from detour.core.journal cimport journal_data, journal_header, journal_pin, journal_verify
from detour.core.overlay cimport (BaseRead, PHASE_CATCHING_UP, STATE_RUNNING, STATE_WAITS_MEMORY,
                                  STATE_WAITS_REFLECTED, WHERE_BACKUP, WHERE_MAIN, overlay_corrupt, overlay_fault,
                                  overlay_finish, overlay_io, overlay_is_on)
from detour.core.pool cimport pool_get, pool_put, pool_wait, slab_get, slab_put
from detour.core.ranges cimport ranges_add, ranges_overlap, ranges_remove, ranges_wait
from detour.core.snapshot cimport Run, snapshot_run
from detour.core.store cimport Io, STORE_READ, Store, store_submit
from detour.core.types cimport *

cdef enum:
    BACKUP_READ_LIMIT_NS = 500000000        # a read of the backup that takes longer is asked of main instead


cdef void read_run(Volume* volume, Request* request) noexcept nogil:
    cdef Run run
    request.state = STATE_RUNNING
    if not overlay_is_on(volume):
        read_through(volume, request)
        return
    if ranges_overlap(&volume.unreflected, request.lba, request.blocks):
        volume.stats.waits_unreflected += 1             # S405
        request.state = STATE_WAITS_REFLECTED
        request.range_waiter.ready = waited_ready
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


cdef void waited_ready(void* owner) noexcept nogil:
    cdef Request* request = <Request*>owner
    read_run(<Volume*>request.device, request)


cdef bint take_buffer(Volume* volume, Request* request) noexcept nogil:
    if request.memory != NULL:
        request.data = request.memory
        return True
    request.buffer = pool_get(&volume.device.loop.buffers, request.data_bytes)
    if request.buffer == NULL:
        request.state = STATE_WAITS_MEMORY
        request.pool_waiter.ready = waited_ready
        request.pool_waiter.owner = request
        pool_wait(&volume.device.loop.buffers, &request.pool_waiter)
        return False
    request.data = request.buffer
    return True


cdef void read_through(Volume* volume, Request* request) noexcept nogil:
    if take_buffer(volume, request):
        overlay_io(request, STORE_READ, read_through_done)
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


cdef inline void fail_at(Request* request, lba_t lba) noexcept nogil:
    # The host is told the first block that cannot be read.
    if not request.error_lba_known or lba < request.error_lba:
        request.error_lba = lba
        request.error_lba_known = True


cdef void read_in_place(Volume* volume, Request* request, uint64_t slot) noexcept nogil:
    """The whole range lies in one entry: it is sent from its place in the ring, which stays until the release."""
    if journal_verify(volume.journal, slot) < 0:
        overlay_corrupt(volume, slot)
        fail_at(request, request.lba)
        overlay_finish(volume, request, E_CORRUPT)
        return
    journal_pin(volume.journal, slot)
    volume.pins += 1
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
    cdef uint8_t* to = request.data
    cdef bint any_journal = False, any_base = False
    request.parts_open = 1                              # held open until all runs are submitted
    request.first_error = OK
    while True:
        if run.slot >= 0:
            any_journal = True
            copy_from_journal(volume, request, &run, to)
        else:
            any_base = True
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
        fail_at(request, run.lba)
        request.first_error = E_CORRUPT
    else:
        memcpy(to, journal_data(volume.journal, slot, run.lba), length)


cdef Store* read_base_of(Volume* volume, lba_t lba, uint64_t blocks, uint64_t* count) noexcept nogil:
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
        store = read_base_of(volume, lba, blocks, &count)
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
    ranges_add(&volume.base_reads, &piece.range, lba, blocks)
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
        overlay_fault(volume, io.status, io.offset_bytes // volume.device.block_bytes,
              io.length_bytes // volume.device.block_bytes, WHERE_MAIN)
        request.first_error = io.status
    if piece.range.listed:
        ranges_remove(&volume.base_reads, &piece.range)
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
    overlay_fault(volume, status, piece.io.offset_bytes // block_bytes, piece.io.length_bytes // block_bytes,
          WHERE_BACKUP)


cdef void part_ended(Volume* volume, Request* request) noexcept nogil:
    request.parts_open -= 1
    if request.parts_open > 0:
        return
    count_read(volume, request)
    overlay_finish(volume, request, request.first_error)


cdef void read_give_up_stuck(Volume* volume) noexcept nogil:
    """Reads of the backup that take too long are asked of main; their own answer, when it comes, is thrown away."""
    cdef BaseRead* piece
    cdef BaseRead* following = volume.backup_reads
    while following != NULL:
        piece = following
        following = piece.next
        if volume.device.loop.now_ns - piece.io.submitted_ns > BACKUP_READ_LIMIT_NS:
            unlist_backup_read(volume, piece)
            ask_main_instead(volume, piece, E_TIMEOUT)
            piece.request = NULL
            ranges_remove(&volume.base_reads, &piece.range)
