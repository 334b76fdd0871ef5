# The journal: a ring of data on a preallocated, mapped file or block device, and a table of entry headers in sequence
# order. It is the data store; the snapshot is an index into it (extents hold header slots).
#
# Life of a write (S303-S305):
#   journal_reserve    place in the data ring, contiguous; the payload is received right into it
#   journal_seal       checksum, sequence number, receive time, header with flag 0; one entry for each 64 KiB
#   (stable?)          where FUA or the caching mode asks for it: journal_commit, group commit by one fdatasync
#   journal_reflect    after the snapshot has been marked: flag 1
#   journal_drop_live  blocks of the entry that the index no longer points to (overwritten, or flushed to main)
#   journal_reclaim    room of entries without live blocks is taken back, oldest first
#
# Order: sequence numbers are given at the seal, so headers lie in sequence order (slot = seq % entry_slots) and the
# replay order after a crash is the order in which reads saw the writes. Data places are given at the reserve.
# Room is reused only after the state that makes it free (ENTRY_FLUSHED, tail_seq) is stable: see journal_reclaim.
#
# Fault model: kill -9 loses nothing that was written to the mapping; a power cut may lose or tear anything since the
# last completed commit, which the header's and data's checksums show.
from detour.core.types cimport *
from detour.core.format cimport EntryHeader, Superblock, ChunkState
from detour.core.mapping cimport Mapping
from detour.core.reactor cimport Command, Loop, Deferred, Reactor, Timer
from detour.core.store cimport Store, Io, StoreHandle
from detour.core.bitmap cimport Bitmap

cdef struct Reservation:        # one contiguous piece of the data ring, at most ENTRY_BYTES_MAX; in ring order
    uint64_t position           # in the ring's endless count, bytes
    uint32_t length_bytes       # as taken from the ring (multiple of SECTOR_BYTES)
    bint open                   # being received; else sealed or aborted, behind an older one that is open

cdef enum SlotMark:
    MARK_FLUSHED = 1            # the entry lost blocks to main
    MARK_REPLACED = 2           # or to a newer entry
    MARK_LOST = 3               # both bits
    MARK_ROOM = 4               # it has room in the data ring
    MARK_PINNED = 8             # somebody reads that room now: a Pin counts how many

cdef enum:
    LIVE_MANY = 255             # in slot_live: the number is in slot_live_many
    SEGMENT_ENTRIES = 64

cdef struct Pin:                # sends and flushes that read an entry's room now
    uint32_t slot
    uint32_t count              # 0: free

cdef enum ReclaimStep:
    RECLAIM_IDLE = 0
    RECLAIM_SETTLING = 1        # waits until all that replaced the dead entries is stable
    RECLAIM_RETIRING = 2        # waits until the new tail and the marks are stable

ctypedef void (*commit_done_fn)(void* owner, int status) noexcept nogil
ctypedef void (*journal_room_fn)(void* owner) noexcept nogil
ctypedef void (*scrub_corrupt_fn)(void* owner, uint64_t slot) noexcept nogil

cdef struct CommitWaiter:       # lives in its owner
    seq_t seq                   # stable up to here is what it waits for
    uint64_t flush              # the journal's: number of the flush that a journal_sync waits for, else 0
    commit_done_fn done
    void* owner
    CommitWaiter* next

cdef struct Journal:
    Loop* loop
    Store* media                # takes the FLUSHes (fdatasync) of the mapped file
    uint8_t* map                # the whole file
    uint64_t map_bytes
    Superblock* super_copies[3] # SUPERBLOCK_COPIES
    Superblock super            # working copy; written by journal_super_write
    int super_newest            # index of the copy written last
    int super_stable            # index of the copy that a power cut leaves
    int super_flushing          # copy that the running flush makes stable; -1: written over meanwhile, or no flush
    EntryHeader* entries
    ChunkState* chunks
    uint64_t chunks_count
    uint32_t block_bytes
    uint32_t generation
    uint64_t entry_slots
    uint64_t data_at
    uint64_t data_bytes
    # header ring
    seq_t next_seq              # of the next seal
    seq_t tail_seq              # oldest header that is still needed
    seq_t tail_stable_seq       # the same in the stable superblock: slots of headers below may be sealed anew
    seq_t stable_seq            # sealed up to here are stable
    uint64_t open_entries       # headers promised to open reservations
    # data ring, in positions that only grow (position % data_bytes + data_at = place)
    uint64_t head_position
    uint64_t tail_position
    # reservations from the oldest open one on, a ring; numbers only grow (number % reservation_slots = index)
    Reservation* reservations
    uint64_t reservation_slots  # now in use: a power of two that grows while an old one stays open
    uint64_t reservation_head
    uint64_t reservation_tail
    # what is known of each header slot beside the file
    uint8_t* slot_live          # live blocks: journal_live
    uint32_t* slot_live_many    # only touched for entries of LIVE_MANY blocks and more (zeros)
    uint8_t* slot_marks         # SlotMark bits
    uint64_t* segments          # for SEGMENT_ENTRIES sequence numbers: 1 + the lowest position of an entry with room
                                # that they, or any later ones, had when they were sealed; 0: none
    uint64_t segments_count
    Pin* pins                   # by slot, hashed (journal_pins.pyx)
    uint32_t pins_used
    # reclaim: everything in front of the scan is dead; a piece of it at a time becomes room (see journal.pyx)
    int reclaim_step            # ReclaimStep
    seq_t scan_seq
    seq_t scan_data_seq         # of entries with room; never behind scan_seq
    seq_t data_seq              # entries below have no room any more
    seq_t reclaim_seq           # the new tail of the piece under way
    seq_t reclaim_data_seq
    seq_t settle_seq            # SETTLING ends when this is stable
    uint64_t retire_flush       # RETIRING ends with this flush
    journal_room_fn on_room     # room has come back; the volume sets both
    void (*on_fault)(void* owner) noexcept nogil     # the medium has failed: `fault` is set now
    void* room_owner
    # group commit
    CommitWaiter* commit_head
    CommitWaiter* commit_tail
    Io commit_io
    bint commit_running
    seq_t commit_seq            # what the running flush will make stable
    Deferred commit_work
    void (*after_flush)(Journal* journal) noexcept nogil     # journal.pyx's: waiters, reclaim, close
    uint64_t flushes_begun      # numbers of flushes: the running or last one
    uint64_t flushes_done
    bint flush_wanted           # a flush for room, without a waiter
    bint room_short             # a reservation found no room: reclaim asks for its flushes at once
    bint unrecovered            # opened after a stop in disorder: no reservation before a rebuild or journal_reset
    bint detached               # closed: nothing is begun any more
    bint released               # and the loop does not touch this memory any more
    bint chunks_blank           # a large chunk table, of which nothing was written since it was cleared
    Command* close_command
    int lock_fd                 # the descriptor that holds the file's lock, -1: none
    int fault                   # E_IO for ever after a failed flush or a lost page: nothing is acknowledged as stable
    bint room_kept              # after a fault: what is dead gives no room, for a power cut may still need it
    const int* lost_pages       # of the mapping (sigbus); NULL: not watched
    int lost_noticed            # of them
    # the look at data that recovery took without one (scrub.pyx)
    Timer scrub_timer
    seq_t scrub_next            # entries from here to scrub_end have not been looked at
    seq_t scrub_end
    scrub_corrupt_fn scrub_corrupt
    void* scrub_owner
    # figures
    uint64_t scrubbed_bytes
    uint64_t scrubbed_corrupt   # entries that the scrub found damaged
    uint64_t repaired_headers   # by recovery: one flipped bit, or state or flag out of shape
    uint64_t live_bytes         # data bytes of entries with live blocks
    uint64_t sealed_entries
    uint64_t sealed_bytes
    uint64_t commits
    # pages that are there before they are written (journal_memory.pyx)
    uint64_t ready_position     # of the data ring: up to here
    bint readies                # a mapped file, and a kernel that can

# Room for `length_bytes` (at most PART_BYTES_MAX) in one piece. `first` gets the number of the first reservation;
# E_FULL when the ring or the table has no room now.
cdef int journal_reserve(Journal* journal, uint64_t length_bytes, uint64_t* first, uint8_t** data) noexcept nogil
cdef void journal_abort(Journal* journal, uint64_t first, uint64_t length_bytes) noexcept nogil
# Seals [lba, lba + blocks) whose data lie at reservation `first`; answers first and last sequence number. The caller
# then marks the snapshot for each entry (journal_header(seq)) and calls journal_reflect.
cdef int journal_seal(Journal* journal, uint64_t first, lba_t lba, blocks_t blocks, seq_t* seq_first,
                      seq_t* seq_last) noexcept nogil
# An entry that reads as zeros; takes no data room. E_FULL when the table is full.
cdef int journal_seal_zero(Journal* journal, lba_t lba, blocks_t blocks, seq_t* seq) noexcept nogil
cdef void journal_reflect(Journal* journal, seq_t seq) noexcept nogil
# done() when waiter.seq is stable (at once is later in this turn; never from inside the call).
cdef void journal_commit(Journal* journal, CommitWaiter* waiter) noexcept nogil
# done() when all that is in the mapping now is stable: superblock, chunk table, entry states. waiter.seq is not used.
cdef void journal_sync(Journal* journal, CommitWaiter* waiter) noexcept nogil
cdef inline uint64_t journal_slot(const Journal* journal, seq_t seq) noexcept nogil:
    return seq % journal.entry_slots
cdef inline EntryHeader* journal_header(const Journal* journal, uint64_t slot) noexcept nogil:
    return &journal.entries[slot]
cdef inline uint32_t journal_live(const Journal* journal, uint64_t slot) noexcept nogil:
    # Blocks of the entry that the index points to.
    return journal.slot_live[slot] if journal.slot_live[slot] < LIVE_MANY else journal.slot_live_many[slot]
cdef inline void journal_live_set(Journal* journal, uint64_t slot, uint32_t blocks) noexcept nogil:
    if blocks >= LIVE_MANY:
        journal.slot_live_many[slot] = blocks
    journal.slot_live[slot] = <uint8_t>min(blocks, <uint32_t>LIVE_MANY)
# Checksum of the entry's data against its header: OK or E_CORRUPT.
cdef int journal_verify(const Journal* journal, uint64_t slot) noexcept nogil
# Where block `lba` of the entry lies in the mapping; NULL for ENTRY_ZERO.
cdef const uint8_t* journal_data(const Journal* journal, uint64_t slot, lba_t lba) noexcept nogil
# The entry's room is not used again before the unpin. False: too many are pinned now, it is not.
cdef bint journal_pin(Journal* journal, uint64_t slot) noexcept nogil
cdef void journal_unpin(Journal* journal, uint64_t slot) noexcept nogil
# The index lost `blocks` of the entry because newer data replaced them (flushed false) or because they are on main
# (flushed true). An entry without live blocks is marked ENTRY_FLUSHED when its last blocks went because of a flush,
# or when everything that replaced it was flushed; its data room is free as soon as journal_reclaim passes it.
cdef void journal_drop_live(Journal* journal, uint32_t slot, blocks_t blocks, bint flushed) noexcept nogil
# Takes back room from the tails; answers bytes of data room won by this call. What is dead becomes room only after one
# or two flushes of the media (rule 3: a power cut must not resurrect it, nor miss what replaced it), so the answer is
# often 0 although room is coming: journal_room_coming_bytes; on_room(room_owner) tells when it has come. A flush is
# asked for here when room is short. journal_reserve calls it by itself.
cdef uint64_t journal_reclaim(Journal* journal) noexcept nogil
cdef uint64_t journal_room_coming_bytes(const Journal* journal) noexcept nogil
# Larger of data room and table room taken, as data bytes.
cdef uint64_t journal_used_bytes(const Journal* journal) noexcept nogil
cdef uint64_t journal_room_bytes(const Journal* journal) noexcept nogil      # what could be reserved now
# phase, PIT, tail: into the copy that is neither newest nor stable, with checksum. `clean` says that nothing is live.
cdef void journal_super_write(Journal* journal) noexcept nogil
# Forgets all entries (home, or a new detour) and clears the chunk table: new generation, rings empty after the next
# flush. Nothing may be open or pinned. A caller that then writes a phase in which the chunk table counts does so after
# a journal_sync, else a power cut could leave the new phase beside an old table.
cdef void journal_reset(Journal* journal, uint32_t generation) noexcept nogil

# For recovery: forgets what the rings hold, and what the tables beside the file say of some slots; then [tail_position,
# head_position) is where the entries with room lie, and `segments` knows them.
cdef void journal_rings_begin(Journal* journal) noexcept nogil
cdef void journal_rings_clear(Journal* journal, uint64_t slot, uint64_t slots) noexcept nogil
cdef void journal_rings_adopt(Journal* journal, uint64_t tail_position, uint64_t head_position,
                              seq_t next_seq) noexcept nogil
# Writes a header without a range into the slot of a lost entry, so that its absence is known from now on.
cdef void journal_tombstone(Journal* journal, seq_t seq) noexcept nogil

# What Python holds. `media=` takes the FLUSHes in place of a FileStore on the path (tests).
#   JournalHandle.create(reactor, path, size_bytes, block_bytes, volume_blocks, note=b"", replace=False, media=None)
#       -> preallocated, mapped; a path that holds an unfinished detour is refused unless `replace`
#   JournalHandle.open(reactor, path, media=None) -> reads the superblock; raises CorruptError, or UsageError
#   JournalHandle.in_memory(reactor, size_bytes, block_bytes, volume_blocks, media, image=None, note=b"")
#       -> in anonymous memory, for simulations; `image`: bytes of a journal to open
#   .entries() -> numpy structured array of the entry table (read-only view)    .chunks() -> the chunk table
#   .superblock -> dict    .set_note(bytes) -> ticket    .sync() -> ticket    .close() -> ticket
#   .path .size_bytes .used_bytes .needs_recovery .stats -> dict
cdef class JournalHandle:
    cdef Journal* journal
    cdef readonly Reactor reactor
    cdef readonly StoreHandle media
    cdef readonly Mapping mapping
    cdef readonly object path
    cdef readonly tuple healed          # what was wrong with superblock copies and is right again, a sentence each
    cdef readonly bint closed
    cdef bint media_own
    cdef int attach(self, int newest) except -1
    cdef Journal* usable(self) except NULL
