# See initiator_map.pxd. Owns nothing. Anchored blocks (status 2) read as zeros as deallocated ones do; with any other
# status than these two, and where the target tells of other blocks than were asked for, all is taken as mapped.
from detour.core.endian cimport get_be32, get_be64, put_be32, put_be64

cdef enum:
    HEADER_BYTES = 8
    STATUS_DEALLOCATED = 1
    STATUS_ANCHORED = 2


cdef void map_cdb(const Io* io, uint32_t block_bytes, uint8_t* cdb) noexcept nogil:
    cdb[0] = 0x9E
    cdb[1] = 0x12
    put_be64(cdb + 2, io.offset_bytes // block_bytes)
    put_be32(cdb + 10, MAP_REPLY_BYTES)


cdef void map_take(Io* io, uint32_t block_bytes, const uint8_t* reply, uint32_t reply_bytes) noexcept nogil:
    cdef const uint8_t* descriptor = reply + HEADER_BYTES
    cdef lba_t asked = io.offset_bytes // block_bytes
    cdef uint64_t blocks = io.length_bytes // block_bytes
    cdef lba_t lba
    cdef uint64_t told
    cdef uint8_t status
    io.mapped = True
    if reply_bytes < MAP_REPLY_BYTES or get_be32(reply) < MAP_REPLY_BYTES - 4:
        return
    lba = get_be64(descriptor)
    told = get_be32(descriptor + 8)
    if lba > asked or told <= asked - lba:
        return                          # a descriptor may begin before what was asked for, but not after it
    status = descriptor[12] & 0x0F
    io.mapped = status != STATUS_DEALLOCATED and status != STATUS_ANCHORED
    told -= asked - lba
    io.length_bytes = (told if told < blocks else blocks) * block_bytes
