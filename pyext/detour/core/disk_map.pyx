# GET LBA STATUS of a plain disk.
#
# Owns: the use of a COMMAND's buffer, io and `parts_open` (descriptors so far) between disk_map and its done.
# Invariants: descriptors follow one another from the LBA that was asked for, and neighbours differ. The answer may end
# before the medium does: at the room that the host gives, or after STEPS_MAX questions to the store; a host asks on.
# Cost: one store request for each run of mapped or unmapped blocks.
from libc.string cimport memset

from detour.core.device cimport Device
from detour.core.disk_identity cimport INFO_BYTES_MAX
from detour.core.endian cimport get_be32, put_be32, put_be64
from detour.core.store cimport STORE_MAP, Io, store_submit

cdef enum:
    HEADER_BYTES = 8
    DESCRIPTOR_BYTES = 16
    BLOCKS_MAX = 0xFFFFFFFF     # of one descriptor
    STEPS_MAX = 1024
    STATUS_MAPPED = 0
    STATUS_DEALLOCATED = 1


cdef uint32_t descriptors_max(const Request* request) noexcept nogil:
    # As many as the allocation length has room for, and one of which a part is sent.
    cdef uint32_t room_bytes = request.command.length_bytes
    if room_bytes > INFO_BYTES_MAX:
        room_bytes = INFO_BYTES_MAX
    return (room_bytes - HEADER_BYTES) // DESCRIPTOR_BYTES if room_bytes >= HEADER_BYTES + DESCRIPTOR_BYTES else 1


cdef bint put_run(Request* request, lba_t lba, uint64_t blocks, uint8_t status) noexcept nogil:
    # The last descriptor grows, or one more is made; False: there is no room for it.
    cdef uint8_t* last = request.buffer + HEADER_BYTES + (request.parts_open - 1) * DESCRIPTOR_BYTES
    if request.parts_open > 0 and last[12] == status and get_be32(last + 8) + blocks <= <uint64_t>BLOCKS_MAX:
        put_be32(last + 8, <uint32_t>(get_be32(last + 8) + blocks))
        return True
    if request.parts_open == descriptors_max(request):
        return False
    last = request.buffer + HEADER_BYTES + request.parts_open * DESCRIPTOR_BYTES
    request.parts_open += 1
    put_be64(last, lba)
    put_be32(last + 8, <uint32_t>blocks)
    last[12] = status
    return True


cdef void ask(Store* store, Request* request) noexcept nogil:
    cdef Device* device = request.device
    cdef Io* io = &request.io
    cdef uint64_t tag = io.tag
    cdef uint64_t blocks = device.blocks - request.lba
    memset(io, 0, sizeof(Io))
    io.op = STORE_MAP
    io.offset_bytes = request.lba * device.block_bytes
    io.length_bytes = (blocks if blocks < <uint64_t>BLOCKS_MAX else <uint64_t>BLOCKS_MAX) * device.block_bytes
    io.tag = tag + 1            # questions so far
    io.done = on_mapped
    io.owner = request
    store_submit(store, io)


cdef void on_mapped(Io* io) noexcept nogil:
    cdef Request* request = <Request*>io.owner
    cdef uint64_t blocks = io.length_bytes // request.device.block_bytes
    cdef uint64_t data_bytes
    request.status = io.status
    if io.status < 0:
        request.done(request)
        return
    if put_run(request, request.lba, blocks, STATUS_MAPPED if io.mapped else STATUS_DEALLOCATED):
        request.lba += blocks
        if request.lba < request.device.blocks and io.tag < STEPS_MAX:
            ask(io.store, request)
            return
    data_bytes = HEADER_BYTES + request.parts_open * DESCRIPTOR_BYTES
    put_be32(request.buffer, <uint32_t>(data_bytes - 4))
    request.data = request.buffer
    request.data_bytes = data_bytes if data_bytes < request.command.length_bytes else request.command.length_bytes
    request.done(request)


cdef int disk_map(Store* store, Request* request) noexcept nogil:
    if request.command.lba >= request.device.blocks:
        return E_RANGE
    request.lba = request.command.lba
    request.parts_open = 0
    request.io.tag = 0
    ask(store, request)
    return OK
