# The memory that a journal has beside its file, and the lock on that file.
#
# Owns nothing: it takes and gives back what belongs to a Journal.
# Cost: at open, close and reset. The tables are not touched before they are used. While a ring is written, two system
# calls for each READY_STEP_BYTES, which take what the faults of these pages would, one by one. Without them the first
# store into a page that is not in memory waits until the kernel has filled all that it reads ahead of a fault: with 8 MiB
# of read-ahead 15-25 ms, although a preallocated file has nothing to read.
# Invariant: what is made ready is room; pages of what is still needed are not written out once more for it, but for those
# that it shares with room. What cannot be made ready (a failing disk) is left to the store that meets it, and so to
# sigbus.pyx.
from libc.errno cimport EINVAL, errno
from libc.stdlib cimport free
from libc.string cimport memset

from detour.core.format cimport ChunkState, EntryHeader
from detour.core.journal cimport SEGMENT_ENTRIES, Pin, Reservation
from detour.core.journal_pins cimport PINS

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, int64_t offset, int64_t length) noexcept
    int FALLOC_FL_ZERO_RANGE, FALLOC_FL_KEEP_SIZE

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset) noexcept
    int munmap(void* address, size_t length) noexcept
    int madvise(void* address, size_t length, int advice) noexcept
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED, MADV_WILLNEED
    void* MAP_FAILED

cdef extern from "<unistd.h>" nogil:
    int close(int fd) noexcept

cdef extern from "<sys/file.h>" nogil:
    int flock(int fd, int operation) noexcept
    int LOCK_UN

cdef enum:
    TABLE_PAGE_BYTES = 4096
    LARGE_TABLE_BYTES = 16777216    # of a volume of half a TiB
    RESERVATIONS_FIRST = 1024
    READY_AHEAD_BYTES = 1048576     # so far ahead the kernel is told what it may read
    READY_SLOTS = 1024              # headers: as many as a step may have
    MADV_POPULATE_WRITE = 23        # linux/mman.h, since 5.14


cdef void journal_release_lock(Journal* journal) noexcept nogil:
    # By name: the mapping keeps the open file, and so the lock, alive as long as somebody looks at it.
    flock(journal.lock_fd, LOCK_UN)
    close(journal.lock_fd)
    journal.lock_fd = -1


cdef void* journal_memory(uint64_t bytes_wanted) except NULL:
    # Zeros, not touched before they are used: a large journal costs its tables' memory only as it fills.
    cdef void* memory = mmap(NULL, bytes_wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                             -1, 0)
    if memory == MAP_FAILED:
        raise MemoryError(f"no memory for the tables of a journal ({bytes_wanted} bytes)")
    return memory


cdef uint64_t reservation_bytes(const Journal* journal) noexcept nogil:
    # Room for as many as may be taken, a power of two; how many of them are used now is another matter.
    cdef uint64_t slots = RESERVATIONS_FIRST
    while slots < journal.entry_slots + RESERVATION_SPARE:
        slots *= 2
    return slots * sizeof(Reservation)


cdef int journal_tables(Journal* journal) except -1:
    journal.slot_live = <uint8_t*>journal_memory(journal.entry_slots)
    journal.slot_live_many = <uint32_t*>journal_memory(journal.entry_slots * sizeof(uint32_t))
    journal.slot_marks = <uint8_t*>journal_memory(journal.entry_slots)
    # A window of entry_slots numbers touches one segment more than fit into it, and one is begun ahead.
    journal.segments_count = journal.entry_slots // SEGMENT_ENTRIES + 2
    journal.segments = <uint64_t*>journal_memory(journal.segments_count * sizeof(uint64_t))
    journal.reservations = <Reservation*>journal_memory(reservation_bytes(journal))
    journal.reservation_slots = RESERVATIONS_FIRST
    journal.pins = <Pin*>journal_memory(PINS * sizeof(Pin))
    journal.readies = journal.lost_pages != NULL
    return 0


cdef void journal_tables_clear(Journal* journal) noexcept nogil:
    madvise(journal.slot_live, journal.entry_slots, MADV_DONTNEED)
    madvise(journal.slot_live_many, journal.entry_slots * sizeof(uint32_t), MADV_DONTNEED)
    madvise(journal.slot_marks, journal.entry_slots, MADV_DONTNEED)
    madvise(journal.segments, journal.segments_count * sizeof(uint64_t), MADV_DONTNEED)


cdef void journal_more_reservations(Journal* journal) noexcept nogil:
    # Twice as many: those whose number has the new bit move up by as many as there were.
    cdef uint64_t slots = journal.reservation_slots
    cdef uint64_t number
    for number in range(journal.reservation_tail, journal.reservation_head):
        if number & slots:
            journal.reservations[number & (2 * slots - 1)] = journal.reservations[number & (slots - 1)]
    journal.reservation_slots = 2 * slots


cdef void give_back(void* memory, uint64_t bytes_mapped) noexcept:
    if memory != NULL:
        munmap(memory, bytes_mapped)


cdef void journal_free(Journal* journal) noexcept:
    give_back(journal.reservations, reservation_bytes(journal))
    give_back(journal.slot_live, journal.entry_slots)
    give_back(journal.slot_live_many, journal.entry_slots * sizeof(uint32_t))
    give_back(journal.slot_marks, journal.entry_slots)
    give_back(journal.segments, journal.segments_count * sizeof(uint64_t))
    give_back(journal.pins, PINS * sizeof(Pin))
    if journal.lock_fd >= 0:
        journal_release_lock(journal)
    free(journal)


cdef void journal_clear_chunks(Journal* journal) noexcept nogil:
    # The table of a volume of many TiB is some GiB: to write zeros into it, and to make them stable, takes longer than
    # hosts wait at the freeze. File systems that can do it at once are asked to.
    cdef uint64_t length_bytes = journal.chunks_count * sizeof(ChunkState)
    cdef uint64_t whole_bytes = length_bytes // TABLE_PAGE_BYTES * TABLE_PAGE_BYTES
    if journal.chunks_blank:
        return
    if length_bytes >= LARGE_TABLE_BYTES and journal.lock_fd >= 0 and \
            fallocate(journal.lock_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, <int64_t>journal.super.chunks_at,
                      <int64_t>whole_bytes) == 0:
        memset(<uint8_t*>journal.chunks + whole_bytes, 0, length_bytes - whole_bytes)
    else:
        memset(journal.chunks, 0, length_bytes)
    journal.chunks_blank = length_bytes >= LARGE_TABLE_BYTES


# --- pages that are there before they are written

cdef int advise(Journal* journal, uint64_t at, uint64_t length_bytes, int advice) noexcept nogil:
    # Of the whole pages around [at, at + length_bytes) of the file.
    cdef uint64_t first = at // TABLE_PAGE_BYTES * TABLE_PAGE_BYTES
    cdef uint64_t end = min((at + length_bytes + TABLE_PAGE_BYTES - 1) // TABLE_PAGE_BYTES * TABLE_PAGE_BYTES,
                            journal.map_bytes)
    return madvise(journal.map + first, end - first, advice) if end > first else 0


cdef void journal_ready_run(Journal* journal, uint64_t start) noexcept nogil:
    cdef uint64_t begin = start
    cdef uint64_t offset, length
    cdef uint64_t slot = journal.next_seq % journal.entry_slots
    cdef uint64_t slots = min(min(<uint64_t>READY_SLOTS, journal.entry_slots - slot),
                              journal.tail_seq + journal.entry_slots - journal.next_seq)
    if journal.ready_position - start <= journal.head_position - start:
        begin = journal.ready_position              # else the ring has gone on elsewhere: its end, or another life
    offset = begin % journal.data_bytes
    length = min(min(journal.head_position + READY_STEP_BYTES, journal.tail_position + journal.data_bytes) - begin,
                 journal.data_bytes - offset)
    if begin == start:
        advise(journal, journal.data_at + offset, min(<uint64_t>READY_AHEAD_BYTES, journal.data_bytes - offset),
               MADV_WILLNEED)
    elif offset + READY_AHEAD_BYTES < journal.data_bytes:
        advise(journal, journal.data_at + offset + READY_AHEAD_BYTES,
               min(length, journal.data_bytes - offset - READY_AHEAD_BYTES), MADV_WILLNEED)
    if advise(journal, journal.data_at + offset, length, MADV_POPULATE_WRITE) != 0 and errno == EINVAL:
        journal.readies = False                     # not with this kernel
    advise(journal, journal.super.entries_at + slot * sizeof(EntryHeader), slots * sizeof(EntryHeader),
           MADV_POPULATE_WRITE)
    journal.ready_position = begin + length
