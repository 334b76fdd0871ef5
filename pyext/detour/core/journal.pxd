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
# Room is reused only after the state that makes it free (ENTRY_FLUSHED, tail_seq) is as stable as the caller asked:
# see journal_reclaim.
#
# Fault model: kill -9 loses nothing that was written to the mapping; a power cut may lose or tear anything since the last
# completed commit, which the header's and data's checksums show.
from detour.core.types cimport *
from detour.core.format cimport EntryHeader, Superblock, ChunkState
from detour.core.reactor cimport Loop, Deferred, Reactor
from detour.core.store cimport Store, Io, StoreHandle
from detour.core.bitmap cimport Bitmap

cdef struct Reservation:        # one contiguous piece of the data ring, at most ENTRY_BYTES_MAX; in ring order
    uint64_t place              # offset in the file, bytes
    uint32_t length_bytes       # as taken from the ring (multiple of SECTOR_BYTES)
    uint32_t live_blocks        # blocks that the index points to, once sealed
    uint16_t pins               # sends and flushes that read the place now
    uint8_t state               # ReservationState
    uint8_t reserved
    uint32_t slot               # header slot, once sealed

cdef enum ReservationState:
    RESERVATION_FREE = 0
    RESERVATION_OPEN = 1        # being received
    RESERVATION_SEALED = 2
    RESERVATION_DEAD = 3        # aborted, or padding at the ring's end, or without live blocks
    
ctypedef void (*commit_done_fn)(void* owner, int status) noexcept nogil

cdef struct CommitWaiter:       # lives in its owner
    seq_t seq                   # stable up to here is what it waits for
    commit_done_fn done
    void* owner
    CommitWaiter* next

cdef struct Journal:
    Loop* loop
    Store* media                # takes the FLUSHes (fdatasync) of the mapped file
    uint8_t* map                # the whole file
    uint64_t map_bytes
    Superblock* super_copies[2]
    Superblock super            # working copy; written by journal_super_write
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
    seq_t stable_seq            # sealed up to here are stable
    # data ring, in positions that only grow (position % data_bytes + data_at = place)
    uint64_t head_position
    uint64_t tail_position
    # reservations, ring of records in data order; numbers that only grow (number % reservation_slots = index)
    Reservation* reservations
    uint64_t reservation_slots
    uint64_t reservation_head
    uint64_t reservation_tail
    uint32_t* slot_reservation  # header slot -> reservation number's index; only for live DATA entries
    uint32_t* slot_live         # header slot -> live blocks
    # group commit
    CommitWaiter* commit_head
    CommitWaiter* commit_tail
    Io commit_io
    bint commit_running
    seq_t commit_seq            # what the running flush will make stable
    Deferred commit_work
    int fault                   # Status of a failed flush: E_IO for ever after (nothing is acknowledged as stable)
    # figures
    uint64_t live_bytes         # data bytes of entries with live blocks
    uint64_t sealed_entries
    uint64_t sealed_bytes
    uint64_t commits

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
cdef void journal_commit(Journal* journal, CommitWaiter* waiter) noexcept nogil      # done() when waiter.seq is stable
cdef inline uint64_t journal_slot(const Journal* journal, seq_t seq) noexcept nogil:
    return seq % journal.entry_slots
cdef inline EntryHeader* journal_header(const Journal* journal, uint64_t slot) noexcept nogil:
    return &journal.entries[slot]
# Checksum of the entry's data against its header: OK or E_CORRUPT.
cdef int journal_verify(const Journal* journal, uint64_t slot) noexcept nogil
# Where block `lba` of the entry lies in the mapping; NULL for ENTRY_ZERO.
cdef const uint8_t* journal_data(const Journal* journal, uint64_t slot, lba_t lba) noexcept nogil
cdef void journal_pin(Journal* journal, uint64_t slot) noexcept nogil        # its room is not reused before the unpin
cdef void journal_unpin(Journal* journal, uint64_t slot) noexcept nogil
# The index lost `blocks` of the entry because newer data replaced them (flushed false) or because they are on main
# (flushed true). An entry without live blocks is marked ENTRY_FLUSHED when its last blocks went because of a flush,
# or when everything that replaced it was flushed; its data room is free as soon as journal_reclaim passes it.
cdef void journal_drop_live(Journal* journal, uint32_t slot, blocks_t blocks, bint flushed) noexcept nogil
# Takes back room from the tails; answers bytes of data room won. With `stable` the new tail is first made stable by a
# flush of the media, and the room comes when that has ended (asked for by rule 3: a power cut must not resurrect).
cdef uint64_t journal_reclaim(Journal* journal) noexcept nogil
cdef uint64_t journal_used_bytes(const Journal* journal) noexcept nogil      # larger of data room and table room, as data bytes
cdef uint64_t journal_room_bytes(const Journal* journal) noexcept nogil      # what could be reserved now
cdef void journal_super_write(Journal* journal) noexcept nogil   # phase, PIT, tail: into the older copy, with checksum
# Forgets all entries (home, or a new detour): new generation, empty rings.
cdef void journal_reset(Journal* journal, uint32_t generation) noexcept nogil

# What Python holds.
#   JournalHandle.create(reactor, path, size_bytes, block_bytes, volume_blocks, note=b"") -> preallocated, mapped
#   JournalHandle.open(reactor, path) -> reads the superblock; raises CorruptError, or UsageError naming the reason
#   .entries() -> numpy structured array of the entry table (read-only view)    .superblock -> dict
#   .set_note(bytes) · .close() · .path · .size_bytes · .used_bytes · .needs_recovery
cdef class JournalHandle:
    cdef Journal* journal
    cdef readonly Reactor reactor
    cdef readonly StoreHandle media
    cdef readonly object path
    cdef readonly bint closed
