# See lba_status.pxd. Owns nothing: all three parts lie in one buffer of the request.
#
# What the overlay has is noted before main is asked and not at the answer, because a piece that a round flushes meanwhile
# leaves the overlay, while main may have answered before. What the host unmapped or zeroed is deallocated where main is
# thin provisioned: a round brings it there as UNMAP. The answer ends where main's answer or the notes do; a host asks on
# from there. Cost: one walk over at most NOTES_MAX runs.
from libc.string cimport memset

from detour.core.endian cimport get_be32, get_be64, put_be32, put_be64
from detour.core.format cimport ENTRY_ZERO
from detour.core.journal cimport journal_header
from detour.core.snapshot cimport Run, snapshot_run

cdef enum:
    HEADER_BYTES = 8
    DESCRIPTOR_BYTES = 16
    DESCRIPTORS_MAX = (LBA_STATUS_MAIN_BYTES - HEADER_BYTES) // DESCRIPTOR_BYTES
    NOTES_MAX = 256
    NOTES_AT = LBA_STATUS_MAIN_BYTES
    ANSWER_AT = LBA_STATUS_BUFFER_BYTES - LBA_STATUS_MAIN_BYTES
    BLOCKS_MAX = 0xFFFFFFFF             # of one descriptor
    STATUS_MAPPED = 0                   # or not known
    STATUS_DEALLOCATED = 1
    STATUS_OF_MAIN = 0xFF               # the overlay has nothing there

cdef struct Note:
    lba_t end
    uint8_t status

cdef struct Notes:                      # neighbours, from the LBA that was asked for on
    uint32_t count
    Note items[NOTES_MAX]

cdef extern from *:
    """
    _Static_assert(4096 + 16 * 256 + 8 <= 16384 - 4096, "the notes reach into the answer");
    """


cdef uint8_t status_of(Volume* volume, const Run* run) noexcept nogil:
    if run.slot < 0:
        return STATUS_OF_MAIN
    if volume.thin and journal_header(volume.journal, <uint64_t>run.slot).kind == ENTRY_ZERO:
        return STATUS_DEALLOCATED
    return STATUS_MAPPED


cdef void lba_status_note(Volume* volume, lba_t lba, uint8_t* buffer) noexcept nogil:
    cdef Notes* notes = <Notes*>(buffer + NOTES_AT)
    cdef Run run
    cdef uint8_t status
    notes.count = 0
    while lba < volume.device.blocks:
        snapshot_run(&volume.snapshot, lba, volume.device.blocks, &run)
        status = status_of(volume, &run)
        lba += run.blocks
        if notes.count > 0 and notes.items[notes.count - 1].status == status:
            notes.items[notes.count - 1].end = lba
            continue
        if notes.count == NOTES_MAX:
            break
        notes.items[notes.count].end = lba
        notes.items[notes.count].status = status
        notes.count += 1


cdef uint32_t put(uint8_t* answer, uint32_t count, lba_t lba, uint64_t blocks, uint8_t status) noexcept nogil:
    """One more descriptor, or the last one grows; answers how many there are."""
    cdef uint8_t* last = answer + HEADER_BYTES + count * DESCRIPTOR_BYTES
    cdef uint64_t before
    if count > 0:
        before = get_be32(last - DESCRIPTOR_BYTES + 8)
        if (last - DESCRIPTOR_BYTES)[12] == status and before + blocks <= BLOCKS_MAX:
            put_be32(last - DESCRIPTOR_BYTES + 8, <uint32_t>(before + blocks))
            return count
    put_be64(last, lba)
    put_be32(last + 8, <uint32_t>blocks)
    last[12] = status
    return count + 1


cdef uint8_t* lba_status_merge(Volume* volume, lba_t lba, uint8_t* buffer, uint32_t main_bytes,
                               uint32_t* length_bytes) noexcept nogil:
    cdef const Notes* notes = <Notes*>(buffer + NOTES_AT)
    cdef uint8_t* answer = buffer + ANSWER_AT
    cdef const uint8_t* told = buffer + HEADER_BYTES
    cdef const uint8_t* told_end = buffer + main_bytes
    cdef uint32_t count = 0, index = 0
    cdef lba_t end
    cdef uint8_t status
    memset(answer, 0, LBA_STATUS_MAIN_BYTES)
    while index < notes.count and count < DESCRIPTORS_MAX:
        end = notes.items[index].end
        status = notes.items[index].status
        if status == STATUS_OF_MAIN:
            while told + DESCRIPTOR_BYTES <= told_end and get_be64(told) + get_be32(told + 8) <= lba:
                told += DESCRIPTOR_BYTES
            if told + DESCRIPTOR_BYTES > told_end or get_be64(told) > lba:
                break
            end = min(end, get_be64(told) + get_be32(told + 8))
            status = told[12] & 0x0F
        end = min(end, lba + BLOCKS_MAX)
        count = put(answer, count, lba, end - lba, status)
        lba = end
        if lba == notes.items[index].end:
            index += 1
    # Main tells nothing of the first block: that it is mapped is never wrong.
    if count == 0 and notes.count > 0:
        count = put(answer, count, lba, min(notes.items[0].end - lba, <lba_t>BLOCKS_MAX), STATUS_MAPPED)
    length_bytes[0] = HEADER_BYTES + count * DESCRIPTOR_BYTES
    put_be32(answer, length_bytes[0] - 4)
    return answer
