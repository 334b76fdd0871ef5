# The superblock of a journal that is not open yet: which copy counts, and what an empty journal begins with.
#
# Owns nothing; looks at a Mapping, on Python's side of the border. What lies in the file is checked, never trusted.
# Which copy counts is decided so that damage never leads to an older phase than the one that was acted on (a host whose
# writes are in the journal, while the superblock says that it is home, would lose them; one that is home, while the
# superblock says catching up, would find its newer blocks overwritten):
#   - The whole copy with the largest write_count counts. A copy with one flipped bit is put right first.
#   - Phase, generation, point in time, `clean` and the size that hosts meet count only when two copies have them stably
#     (volume.pyx: store_phase; growth.pyx), and at open all three are brought to them. So whichever single copy is lost,
#     one that is left says the same.
#   - With two copies damaged the third may be older than they were. It counts only if what can be read of the others'
#     heads says the same as it does, or that they are older; else the journal is refused.
#   - What an older copy lacks besides (tail_seq, synced_seq, held_chunks) recovery finds in the entry table, or it only
#     makes the checks less sharp.
# A crash tears less than damage does: all but the note lies in the first sector, which a power cut leaves whole, and a
# kill tears only the copy that was being written. The note changes with the freeze alone, which flushes in between.
# Cost: once for each open or create.
from libc.string cimport memcmp, memcpy, memset

from detour.core.format cimport (JOURNAL_VERSION, SUPERBLOCK_BYTES, SUPERBLOCK_COPIES, Geometry, Superblock,
                                 geometry_compute, superblock_check, superblock_head_whole, superblock_seal)
from detour.core.crc32c cimport crc32c_update
from detour.core.repair cimport repair_superblock

import os

cdef enum CopyState:
    COPY_WHOLE = 0
    COPY_REPAIRED = 1           # one bit was wrong
    COPY_BLANK = 2              # zeros
    COPY_DAMAGED = 3
    COPY_STRANGE = 4            # no magic number: never a superblock, or damaged
    COPY_CUT = 5                # whole, but its areas are not in this file
    COPY_OTHER_VERSION = 6

cdef struct Copies:             # the three as they are read, put right where that can be
    Superblock blocks[3]
    int states[3]
    int newest                  # -1: none counts


cdef Superblock* copy_at(Mapping mapping, int copy) noexcept:
    return <Superblock*>(mapping.map + copy * SUPERBLOCK_BYTES)


cdef bint is_blank(const Superblock* block) noexcept:
    cdef const uint8_t* bytes_of = <const uint8_t*>block
    cdef int at
    for at in range(SUPERBLOCK_BYTES):
        if bytes_of[at]:
            return False
    return True


cdef bint is_version_1(const Superblock* block) noexcept:
    """Whole as version 1 had it: another checksum, the same places of magic, version and `clean`."""
    cdef Superblock plain
    memcpy(&plain, block, sizeof(plain))
    plain.crc = 0
    return memcmp(block.magic, b"DETOURJ1", 8) == 0 and block.version == 1 \
        and crc32c_update(0, &plain, sizeof(plain)) == block.crc


cdef int read_copy(Superblock* block, int copy, uint64_t file_bytes) noexcept:
    """The state of a copy; the block is put right where one bit was wrong."""
    cdef int status = superblock_check(block, copy, file_bytes)
    cdef int state = COPY_WHOLE
    if status == E_CORRUPT:
        if is_blank(block):
            return COPY_BLANK
        if is_version_1(block):
            return COPY_OTHER_VERSION
        if not repair_superblock(block, copy):
            return COPY_DAMAGED if memcmp(block.magic, b"DETOURJ1", 8) == 0 else COPY_STRANGE
        status = superblock_check(block, copy, file_bytes)
        state = COPY_REPAIRED
    if status == OK:
        return state
    return COPY_OTHER_VERSION if status == E_UNSUPPORTED else COPY_CUT if status == E_RANGE else COPY_STRANGE


cdef void read_copies(Mapping mapping, Copies* found) noexcept:
    cdef int copy
    found.newest = -1
    for copy in range(SUPERBLOCK_COPIES):
        memcpy(&found.blocks[copy], copy_at(mapping, copy), sizeof(Superblock))
        found.states[copy] = read_copy(&found.blocks[copy], copy, mapping.map_bytes)
        if found.states[copy] <= COPY_REPAIRED and (
                found.newest < 0 or found.blocks[copy].write_count > found.blocks[found.newest].write_count):
            found.newest = copy


cdef bint same_life(const Superblock* one, const Superblock* other) noexcept:
    """What is acted on is the same."""
    return one.generation == other.generation and one.phase == other.phase and one.clean == other.clean \
        and one.served_blocks == other.served_blocks \
        and memcmp(one.pit_id, other.pit_id, sizeof(one.pit_id)) == 0 \
        and memcmp(one.journal_id, other.journal_id, sizeof(one.journal_id)) == 0


cdef bint may_have_counted(const Copies* found, int copy) noexcept:
    """The copy cannot be read, and may have said something newer than the newest one that can."""
    cdef const Superblock* block = &found.blocks[copy]
    cdef const Superblock* newest = &found.blocks[found.newest]
    if found.states[copy] <= COPY_REPAIRED:
        return False
    if found.states[copy] == COPY_BLANK and newest.write_count == 1:
        return False                    # the journal was just being made
    return not superblock_head_whole(block, copy) \
        or (block.write_count > newest.write_count and not same_life(block, newest))


cdef int raise_unreadable(Mapping mapping, const Copies* found) except -1:
    """No copy counts: says why."""
    from detour.errors import CorruptError, OldFormatError, UsageError
    cdef int copy
    states = {found.states[copy] for copy in range(SUPERBLOCK_COPIES)}
    if COPY_OTHER_VERSION in states:
        if is_clean_old(found):
            raise OldFormatError(f"the journal {mapping.path} was written in an earlier version of the format; nothing "
                                 "in it is unfinished")
        raise UsageError(f"the journal {mapping.path} holds an unfinished detour in another version of the format",
                         hint="End it with the version of detour that began it.")
    if COPY_CUT in states:
        raise CorruptError(f"the journal {mapping.path} has areas outside of its {mapping.map_bytes} bytes: it was cut")
    if COPY_DAMAGED in states:
        raise CorruptError(f"the journal {mapping.path}: the checksum of every superblock copy is wrong")
    raise UsageError(f"{mapping.path} is no journal")


cdef bint is_clean_old(const Copies* found) noexcept:
    """Of a journal of version 1: its newest copy says that nothing is unfinished, and none is damaged."""
    cdef int copy
    cdef int newest = -1
    for copy in range(SUPERBLOCK_COPIES):
        if found.states[copy] == COPY_OTHER_VERSION and found.blocks[copy].version == 1:
            if newest < 0 or found.blocks[copy].write_count > found.blocks[newest].write_count:
                newest = copy
        elif found.states[copy] != COPY_BLANK:
            return False
    return newest >= 0 and found.blocks[newest].clean == 1


cdef int choose(Mapping mapping, Copies* found) except -1:
    """Index of the copy that counts. Raises UsageError where there is no journal, CorruptError where it is damaged."""
    from detour.errors import CorruptError, UsageError
    cdef int copy
    if mapping.map_bytes < SUPERBLOCK_COPIES * SUPERBLOCK_BYTES:
        raise UsageError(f"{mapping.path} has {mapping.map_bytes} bytes: no journal")
    read_copies(mapping, found)
    if found.newest < 0:
        raise_unreadable(mapping, found)
    if sum(may_have_counted(found, copy) for copy in range(SUPERBLOCK_COPIES)) > 1:
        raise CorruptError(f"the journal {mapping.path}: two of the three superblock copies are damaged, and the one that "
                           "is left may be older than they were")
    return found.newest


cdef int newest_copy(Mapping mapping, list healed, bint* failed) except -1:
    from detour.errors import StorageError
    cdef Copies found
    cdef Superblock sealed
    cdef int newest = choose(mapping, &found)
    cdef int copy
    for copy in range(SUPERBLOCK_COPIES):
        if found.states[copy] == COPY_REPAIRED:
            healed.append(f"copy {copy + 1} of the superblock had a flipped bit")
        elif found.states[copy] != COPY_WHOLE:
            healed.append(f"copy {copy + 1} of the superblock could not be read")
        elif same_life(&found.blocks[copy], &found.blocks[newest]):
            continue
        # One at a time, each stable before the next is touched: the one that counts, or its likeness, is always there.
        memcpy(&sealed, &found.blocks[copy if copy == newest else newest], sizeof(sealed))
        superblock_seal(&sealed, copy)
        memcpy(copy_at(mapping, copy), &sealed, sizeof(sealed))
        if not mapping.is_read_only and not failed[0]:
            try:
                mapping.sync()
            except StorageError:
                failed[0] = True
    return newest


def refuse_unfinished(Mapping mapping) -> None:
    """Raises UsageError when the mapping holds a journal that some detour still needs."""
    from detour.errors import CorruptError, OldFormatError, UsageError
    cdef Copies found
    cdef int copy
    try:
        copy = choose(mapping, &found)
    except CorruptError as error:
        raise UsageError(f"{error}; it may hold a host's writes, so it is not formatted anew") from error
    except OldFormatError:
        return
    except UsageError:
        if mapping.map_bytes >= SUPERBLOCK_COPIES * SUPERBLOCK_BYTES \
                and COPY_OTHER_VERSION in [found.states[copy] for copy in range(SUPERBLOCK_COPIES)]:
            raise
        return
    if not found.blocks[copy].clean:
        raise UsageError(f"the journal {mapping.path} holds a detour that is not finished; open it instead")


cdef int format_mapping(Mapping mapping, uint64_t size_bytes, uint32_t block_bytes, uint64_t volume_blocks,
                        bytes note) except -1:
    """Writes an empty journal: the superblock copies, and zeros before the data where something else was."""
    cdef int copy
    cdef Geometry areas
    cdef Superblock block
    cdef bytes random = os.urandom(20)
    if len(note) > <Py_ssize_t>sizeof(block.note):
        from detour.errors import UsageError
        raise UsageError(f"a journal's note has at most {sizeof(block.note)} bytes, not {len(note)}")
    geometry_compute(size_bytes, block_bytes, volume_blocks, &areas)
    if not mapping.fresh:
        memset(mapping.map, 0, areas.data_at)
    memset(&block, 0, sizeof(block))
    memcpy(block.magic, b"DETOURJ1", 8)
    block.version = JOURNAL_VERSION
    block.write_count = 1
    memcpy(&block.generation, <const char*>random, 4)
    memcpy(block.journal_id, <const char*>random + 4, 16)
    block.block_bytes = block_bytes
    block.volume_blocks = volume_blocks
    block.chunks_at = areas.chunks_at
    block.entries_at = areas.entries_at
    block.data_at = areas.data_at
    block.entry_slots = areas.entry_slots
    block.data_bytes = areas.data_bytes
    block.tail_seq = 1
    block.clean = 1
    memcpy(block.note, <const char*>note, len(note))
    for copy in range(SUPERBLOCK_COPIES):
        superblock_seal(&block, copy)
        memcpy(copy_at(mapping, copy), &block, sizeof(block))
    return 0


cdef uint32_t another_generation(uint32_t generation) except? 0:
    cdef uint32_t found = int.from_bytes(os.urandom(4), "little")
    return found if found != generation else generation + 1
