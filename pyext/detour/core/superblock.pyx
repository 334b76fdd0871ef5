# The superblock of a journal that is not open yet: which copy counts, and what an empty journal begins with.
#
# Owns nothing; looks at a Mapping, on Python's side of the border. What lies in the file is checked, never trusted.
# Cost: once for each open or create.
from libc.string cimport memcmp, memcpy, memset

from detour.core.format cimport (JOURNAL_VERSION, SUPERBLOCK_BYTES, SUPERBLOCK_COPIES, Geometry, Superblock,
                                 geometry_compute, superblock_check, superblock_seal)

import os


cdef const Superblock* copy_at(Mapping mapping, int copy) noexcept:
    return <const Superblock*>(mapping.map + copy * SUPERBLOCK_BYTES)


cdef int newest_copy(Mapping mapping) except -1:
    """Index of the superblock copy that counts. Raises UsageError where there is no journal, CorruptError where it is
    damaged."""
    from detour.errors import CorruptError, UsageError
    cdef int copy, status
    cdef int found = -1
    cdef int worst = E_INVALID
    if mapping.map_bytes < SUPERBLOCK_COPIES * SUPERBLOCK_BYTES:
        raise UsageError(f"{mapping.path} has {mapping.map_bytes} bytes: no journal")
    for copy in range(SUPERBLOCK_COPIES):
        status = superblock_check(copy_at(mapping, copy), mapping.map_bytes)
        if status == OK and (found < 0 or copy_at(mapping, copy).write_count > copy_at(mapping, found).write_count):
            found = copy
        elif status < 0 and (status != E_CORRUPT or memcmp(copy_at(mapping, copy).magic, b"DETOURJ1", 8) == 0):
            worst = status
    if found >= 0:
        return found
    if worst == E_UNSUPPORTED:
        raise UsageError(f"the journal {mapping.path} was written in another version of the format")
    if worst == E_RANGE:
        raise CorruptError(f"the journal {mapping.path} has areas outside of its {mapping.map_bytes} bytes: it was cut")
    if worst == E_CORRUPT:
        raise CorruptError(f"the journal {mapping.path}: the checksum of every superblock copy is wrong")
    raise UsageError(f"{mapping.path} is no journal")


def refuse_unfinished(Mapping mapping) -> None:
    """Raises UsageError when the mapping holds a journal that some detour still needs."""
    from detour.errors import CorruptError, UsageError
    try:
        copy = newest_copy(mapping)
    except UsageError:
        return
    except CorruptError as error:
        raise UsageError(f"{error}; it may hold a host's writes, so it is not formatted anew") from error
    if not copy_at(mapping, copy).clean:
        raise UsageError(f"the journal {mapping.path} holds a detour that is not finished; open it instead")


cdef int format_mapping(Mapping mapping, uint64_t size_bytes, uint32_t block_bytes, uint64_t volume_blocks,
                        bytes note) except -1:
    """Writes an empty journal: the first superblock copy, and zeros before the data where something else was."""
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
    superblock_seal(&block)
    memcpy(mapping.map, &block, sizeof(block))
    return 0
