# See forward.pxd. Commands that may pass are those that ask or set state and touch no medium (SCSI_INFO) and REPORT
# SUPPORTED OPERATION CODES, whose answer is filtered. GET LBA STATUS passes too: what main says of its blocks holds where
# the overlay has nothing, and what the overlay has is told to be mapped. Before the freeze and after the release
# everything passes.
#
# A command carries its data through one pool buffer, which the request keeps until its release.
from libc.string cimport memcpy, memset

from detour.core.endian cimport get_be16, get_be32, get_be64, put_be32, put_be64
from detour.core.overlay cimport overlay_finish, overlay_is_on
from detour.core.pool cimport pool_get, pool_put, pool_wait, slab_get, slab_put
from detour.core.scsi cimport (SCSI_GET_LBA_STATUS, SCSI_INFO, SCSI_PREFETCH, SCSI_READ, SCSI_REPORT_OPCODES,
                               SCSI_SYNCHRONIZE, SCSI_UNMAP, SCSI_VERIFY, SCSI_WRITE, SCSI_WRITE_SAME,
                               SCSI_WRITE_VERIFY, ScsiCommand, SENSE_INVALID_OPCODE, STATUS_CHECK_CONDITION,
                               STATUS_GOOD, scsi_decode, scsi_sense, scsi_sense_of)
from detour.core.snapshot cimport Run, snapshot_run
from detour.core.store cimport Io, STORE_COMMAND, STORE_IS_SCSI, ScsiIo, store_submit
from detour.core.types cimport *

cdef enum:
    OPCODE_LIST_BYTES = 16384
    RSOC_DESCRIPTOR_BYTES = 8
    RSOC_TIMEOUTS_BYTES = 12
    LBA_STATUS_HEADER_BYTES = 8
    LBA_STATUS_ONE_BYTES = 24           # header and one descriptor


cdef void forward_submit(Volume* volume, Request* request) noexcept nogil:
    request.begun_ns = volume.device.loop.now_ns
    request.first_error = OK
    request.pinned_slot = -1
    request.buffer = NULL
    volume.open_requests += 1
    if may_pass(volume, request.command):
        pass_on(volume, request)
    else:
        refuse(volume, request, SENSE_INVALID_OPCODE)


cdef void pass_on(Volume* volume, Request* request) noexcept nogil:
    cdef ScsiIo* scsi = <ScsiIo*>slab_get(&volume.scsi_slab)
    if scsi == NULL or not take_buffer(volume, request):
        if scsi != NULL:
            slab_put(&volume.scsi_slab, scsi)
        request.pool_waiter.ready = again
        request.pool_waiter.owner = request
        pool_wait(&volume.device.loop.buffers, &request.pool_waiter)
        return
    if request.command.cls == SCSI_GET_LBA_STATUS:
        note_overlay(volume, request)
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
    pass_on(<Volume*>request.device, request)


cdef bint may_pass(Volume* volume, const ScsiCommand* command) noexcept nogil:
    if not volume.main.flags & STORE_IS_SCSI:
        return False
    return not overlay_is_on(volume) or command.cls in (SCSI_INFO, SCSI_REPORT_OPCODES, SCSI_GET_LBA_STATUS)


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
    elif request.scsi_status == STATUS_GOOD and request.command.cls == SCSI_GET_LBA_STATUS and request.reservation != 0:
        request.data_bytes = overlay_lba_status(request, volume.device.blocks)
    request.data_bytes = min(request.data_bytes, <uint64_t>request.data_in_max)
    if is_opcode_list(request):
        request.data_bytes = min(request.data_bytes, <uint64_t>get_be32(&request.cdb[6]))     # main was asked for all
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
                           SCSI_SYNCHRONIZE, SCSI_WRITE_SAME, SCSI_UNMAP, SCSI_PREFETCH, SCSI_GET_LBA_STATUS)


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


cdef void note_overlay(Volume* volume, Request* request) noexcept nogil:
    """Before main is asked for the status of blocks: how far the overlay has, or has not, the first of them.

    Noted now and not at the answer, because a piece that a round flushes meanwhile leaves the overlay, while main may
    have answered before. A COMMAND has no reservation and no parts: `reservation` holds the length of the run (0: main's
    answer holds as it is), `parts_open` whether the overlay has it.
    """
    cdef Run run
    request.reservation = 0
    request.parts_open = 0
    if not overlay_is_on(volume) or request.command.lba >= volume.device.blocks:
        return
    snapshot_run(&volume.snapshot, request.command.lba, volume.device.blocks, &run)
    request.reservation = run.blocks
    request.parts_open = run.slot >= 0


cdef uint32_t overlay_lba_status(Request* request, uint64_t device_blocks) noexcept nogil:
    """GET LBA STATUS (SBC-3 5.6) with one descriptor: the run that was noted, cut to what main says of it."""
    cdef uint8_t* data = request.data
    cdef uint8_t* descriptor = data + LBA_STATUS_HEADER_BYTES
    cdef uint64_t lba = request.command.lba
    cdef uint64_t blocks = request.reservation
    cdef uint64_t first, length
    cdef uint8_t status = 0                                 # mapped, or not known
    if request.data_bytes < LBA_STATUS_ONE_BYTES:
        return <uint32_t>min(request.data_bytes, <uint64_t>LBA_STATUS_HEADER_BYTES)
    first = get_be64(descriptor)
    length = get_be32(descriptor + 8)
    if not request.parts_open and first <= lba < first + length:
        status = descriptor[12] & 0x0F
        blocks = min(blocks, first + length - lba)
    memset(data, 0, LBA_STATUS_ONE_BYTES)
    put_be32(data, LBA_STATUS_ONE_BYTES - 4)
    put_be64(descriptor, lba)
    put_be32(descriptor + 8, <uint32_t>min(blocks, device_blocks - lba))
    descriptor[12] = status
    return LBA_STATUS_ONE_BYTES
