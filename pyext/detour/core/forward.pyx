# See forward.pxd. Commands that may pass are those that ask or set state and touch no medium (SCSI_INFO) and REPORT
# SUPPORTED OPERATION CODES, whose answer is filtered. Before the freeze and after the release everything passes.
#
# A command carries its data through one pool buffer, which the request keeps until its release.
from libc.string cimport memcpy, memset

from detour.core.endian cimport get_be16, get_be32, put_be32
from detour.core.overlay cimport overlay_finish, overlay_is_on
from detour.core.pool cimport pool_get, pool_put, pool_wait, slab_get, slab_put
from detour.core.scsi cimport (SCSI_INFO, SCSI_PREFETCH, SCSI_READ, SCSI_REPORT_OPCODES, SCSI_SYNCHRONIZE,
                               SCSI_UNMAP, SCSI_VERIFY, SCSI_WRITE, SCSI_WRITE_SAME, SCSI_WRITE_VERIFY, ScsiCommand,
                               SENSE_INVALID_OPCODE, STATUS_CHECK_CONDITION, STATUS_GOOD, scsi_decode, scsi_sense,
                               scsi_sense_of)
from detour.core.store cimport Io, STORE_COMMAND, STORE_IS_SCSI, ScsiIo, store_submit
from detour.core.types cimport *

cdef enum:
    OPCODE_LIST_BYTES = 16384
    RSOC_DESCRIPTOR_BYTES = 8
    RSOC_TIMEOUTS_BYTES = 12


cdef void forward_submit(Volume* volume, Request* request) noexcept nogil:
    cdef ScsiIo* scsi
    request.begun_ns = volume.device.loop.now_ns
    request.first_error = OK
    request.pinned_slot = -1
    request.buffer = NULL
    volume.open_requests += 1
    if not may_pass(volume, request.command):
        refuse(volume, request, SENSE_INVALID_OPCODE)
        return
    scsi = <ScsiIo*>slab_get(&volume.scsi_slab)
    if scsi == NULL or not take_buffer(volume, request):
        if scsi != NULL:
            slab_put(&volume.scsi_slab, scsi)
        volume.open_requests -= 1
        request.pool_waiter.ready = again
        request.pool_waiter.owner = request
        pool_wait(&volume.device.loop.buffers, &request.pool_waiter)
        return
    memcpy(scsi.cdb, request.cdb, 16)
    scsi.cdb_bytes = 16
    if is_opcode_list(request):
        put_be32(&scsi.cdb[6], OPCODE_LIST_BYTES)
    memcpy(scsi.lun, request.lun, 8)
    scsi.lun_given = True
    scsi.direction = 2 if request.data_bytes else 1 if request.data_in_max else 0
    memset(&request.io, 0, sizeof(Io))
    request.io.op = STORE_COMMAND
    request.io.scsi = scsi
    request.io.data = request.buffer
    request.io.length_bytes = request.data_bytes if request.data_bytes else buffer_bytes(request)
    request.io.owner = request
    request.io.done = forward_done
    store_submit(volume.main, &request.io)


cdef void again(void* owner) noexcept nogil:
    cdef Request* request = <Request*>owner
    forward_submit(<Volume*>request.device, request)


cdef bint may_pass(Volume* volume, const ScsiCommand* command) noexcept nogil:
    if not volume.main.flags & STORE_IS_SCSI:
        return False
    return not overlay_is_on(volume) or command.cls == SCSI_INFO or command.cls == SCSI_REPORT_OPCODES


cdef uint64_t buffer_bytes(const Request* request) noexcept nogil:
    """Data-out, or room for data-in; a list of operation codes is always asked for whole, because it is filtered."""
    cdef uint64_t length = max(request.data_bytes, <uint64_t>min(request.data_in_max, <uint32_t>PART_BYTES_MAX))
    if is_opcode_list(request):
        length = max(length, <uint64_t>OPCODE_LIST_BYTES)
    return length


cdef bint is_opcode_list(const Request* request) noexcept nogil:
    return request.command.cls == SCSI_REPORT_OPCODES and (request.cdb[2] & 7) == 0


cdef bint take_buffer(Volume* volume, Request* request) noexcept nogil:
    """One buffer for data-out (copied in) or data-in (bounded by one part)."""
    cdef uint64_t length = buffer_bytes(request)
    if length == 0:
        return True
    request.buffer = pool_get(&volume.device.loop.buffers, length)
    if request.buffer == NULL:
        return False
    if request.data_bytes:
        memcpy(request.buffer, request.data, request.data_bytes)
    return True


cdef void refuse(Volume* volume, Request* request, uint32_t sense) noexcept nogil:
    request.scsi_status = STATUS_CHECK_CONDITION
    request.sense_bytes = <uint16_t>scsi_sense(request.sense, sense, False, 0)
    request.data_bytes = 0
    overlay_finish(volume, request, E_CHECK)


cdef void forward_done(Io* io) noexcept nogil:
    """Main's answer, as it is; only REPORT SUPPORTED OPERATION CODES is made to agree with what the overlay does."""
    cdef Request* request = <Request*>io.owner
    cdef Volume* volume = <Volume*>request.device
    cdef ScsiIo* scsi = io.scsi
    cdef int status = io.status
    if status < 0 and status != E_CHECK and status != E_BUSY:
        slab_put(&volume.scsi_slab, scsi)
        give_back(volume, request)
        refuse(volume, request, scsi_sense_of(status, False))
        return
    request.scsi_status = scsi.scsi_status
    request.sense_bytes = min(scsi.sense_bytes, <uint16_t>252)
    memcpy(request.sense, scsi.sense, request.sense_bytes)
    keep_data_in(volume, request, scsi)
    if request.scsi_status == STATUS_GOOD and request.command.cls == SCSI_REPORT_OPCODES and overlay_is_on(volume):
        request.data_bytes = filter_opcodes(request.data, <uint32_t>request.data_bytes, request.cdb)
    request.data_bytes = min(request.data_bytes, <uint64_t>request.data_in_max)
    slab_put(&volume.scsi_slab, scsi)
    overlay_finish(volume, request, OK if request.scsi_status == STATUS_GOOD else E_CHECK)


cdef void keep_data_in(Volume* volume, Request* request, const ScsiIo* scsi) noexcept nogil:
    cdef uint64_t taken = buffer_bytes(request)
    request.data = NULL
    request.data_bytes = 0
    if scsi.direction == 1:
        request.data = request.buffer
        request.data_bytes = min(<uint64_t>scsi.transferred_bytes, taken)
    # The pool wants its buffer back with the length with which it was taken: `blocks` is free in a COMMAND.
    request.blocks = taken


cdef void give_back(Volume* volume, Request* request) noexcept nogil:
    if request.buffer != NULL:
        pool_put(&volume.device.loop.buffers, request.buffer, buffer_bytes(request))
        request.buffer = NULL


cdef bint offered(uint8_t opcode, uint16_t service_action) noexcept nogil:
    """Whether the gateway lets this command through, or does it on the overlay."""
    cdef uint8_t cdb[16]
    cdef ScsiCommand command
    memset(cdb, 0, 16)
    cdb[0] = opcode
    if opcode == 0x7F:
        return False
    cdb[1] = <uint8_t>(service_action & 0x1F)
    if scsi_decode(cdb, 16, &command) < 0:
        return False
    return command.cls in (SCSI_INFO, SCSI_REPORT_OPCODES, SCSI_READ, SCSI_WRITE, SCSI_WRITE_VERIFY, SCSI_VERIFY,
                           SCSI_SYNCHRONIZE, SCSI_WRITE_SAME, SCSI_UNMAP, SCSI_PREFETCH)


cdef uint32_t filter_opcodes(uint8_t* data, uint32_t length_bytes, const uint8_t* cdb) noexcept nogil:
    """REPORT SUPPORTED OPERATION CODES (SPC-4 6.36): takes out what is refused here; answers the new length."""
    cdef uint32_t total, source = 4, target = 4, step
    if (cdb[2] & 7) != 0:                               # one command: its SUPPORT field
        if length_bytes >= 2 and not offered(cdb[3], get_be16(&cdb[4])):
            data[1] = (data[1] & 0x78) | 1
            if length_bytes >= 4:
                data[2] = 0
                data[3] = 0
            return min(length_bytes, <uint32_t>4)
        return length_bytes
    if length_bytes < 4:
        return length_bytes
    total = min(get_be32(data) + 4, length_bytes)
    while source + RSOC_DESCRIPTOR_BYTES <= total:
        step = RSOC_DESCRIPTOR_BYTES + (RSOC_TIMEOUTS_BYTES if data[source + 5] & 2 else 0)
        if source + step > total:
            break
        if offered(data[source], get_be16(&data[source + 2])):
            if target != source:
                memmove_down(data + target, data + source, step)
            target += step
        source += step
    put_be32(data, target - 4)
    return target


cdef void memmove_down(uint8_t* to, const uint8_t* source, uint32_t length_bytes) noexcept nogil:
    cdef uint32_t index
    for index in range(length_bytes):
        to[index] = source[index]
