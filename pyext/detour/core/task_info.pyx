# Commands that the device answers itself, and LUNs that have no device.
#
# Owns: the buffer of an own answer (task.gather).
# Cost: of no concern; these commands are rare.
from libc.string cimport memcpy, memset

from detour.core.device cimport *
from detour.core.endian cimport put_be32
from detour.core.pool cimport pool_get
from detour.core.scsi cimport *
from detour.core.task_in cimport in_send, in_settle, part_failed, part_fill, part_submit
from detour.core.task_out cimport out_advance
from detour.core.task_step cimport gather_open, refuse, take

cdef enum:
    OWN_ANSWER_BYTES = 4096


# ---- what touches no medium ------------------------------------------------------------------------------------------

cdef void begin_info(Task* task) noexcept nogil:
    if task.command.direction == 2 and task.command.length_bytes > PART_BYTES_MAX:
        refuse(task, SENSE_INVALID_FIELD_IN_CDB)
    elif task.command.direction == 2 and task.command.length_bytes > 0:
        take_parameters(task)
    else:
        info_full(task)


cdef void take_parameters(Task* task) noexcept nogil:
    if task.wants_write and task.expected_bytes > 0:
        take(task, task.command.length_bytes, 1, gather_open, info_full)
        return
    task.total_bytes = task.command.length_bytes
    info_full(task)


cdef void info_full(Task* task) noexcept nogil:
    cdef Part* part = &task.parts[0]
    part_fill(part, REQUEST_COMMAND, task.command.lba, 0, info_done)
    part.request.data = task.gather
    part.request.data_bytes = task.gather_bytes
    part.request.data_in_max = 0
    if task.wants_read:
        part.request.data_in_max = <uint32_t>task.expected_bytes
    part_submit(part)


cdef void info_done(Part* part) noexcept nogil:
    cdef Task* task = part.task
    cdef Request* request = &part.request
    if request.status < 0:
        part_failed(part, task.wants_write)
    elif request.scsi_status != STATUS_GOOD:
        task_fail_status(task, request.scsi_status)
        task.sense_bytes = request.sense_bytes if request.sense_bytes <= sizeof(task.sense) else 0
        memcpy(task.sense, request.sense, task.sense_bytes)
        part_release(part)
    elif request.data_bytes > 0 and task.command.direction == 1:
        in_send(task, request.data_bytes)
        return
    else:
        part_release(part)
    in_settle(task)


# ---- LUNs that are not here ------------------------------------------------------------------------------------------

cdef void begin_elsewhere(Task* task) noexcept nogil:
    # REPORT LUNS, and everything for a LUN without a device.
    task.device = task.session.target.fallback
    if task.device != NULL:
        if task.command.cls == SCSI_INFO or task.command.cls == SCSI_REPORT_OPCODES:
            begin_info(task)
        else:
            refuse(task, SENSE_LUN_NOT_SUPPORTED)
        return
    if task.command.opcode == 0xA0:
        report_luns(task)
    elif task.command.opcode == 0x12 and not task.bhs[33] & 0x01:
        answer_no_lun(task, True)
    elif task.command.opcode == 0x03:
        answer_no_lun(task, False)
    else:
        refuse(task, SENSE_LUN_NOT_SUPPORTED)


cdef uint8_t* own_answer(Task* task) noexcept nogil:
    # Zeroed room for an answer of our own; NULL: the task was told BUSY.
    task.gather = pool_get(&task.session.target.loop.buffers, OWN_ANSWER_BYTES)
    if task.gather == NULL:
        task_fail_status(task, STATUS_BUSY)
        out_advance(task)
        return NULL
    task.gather_bytes = OWN_ANSWER_BYTES
    memset(task.gather, 0, OWN_ANSWER_BYTES)
    task.parts[0].request.data = task.gather
    return task.gather


cdef void send_own(Task* task, uint32_t length_bytes) noexcept nogil:
    in_send(task, length_bytes if length_bytes < task.command.length_bytes else task.command.length_bytes)


cdef void report_luns(Task* task) noexcept nogil:
    cdef Target* target = task.session.target
    cdef uint8_t* out
    cdef uint32_t at = 8
    cdef int lun
    if task.bhs[34] > 2 or task.command.length_bytes < 16:
        refuse(task, SENSE_INVALID_FIELD_IN_CDB)
        return
    out = own_answer(task)
    if out == NULL:
        return
    for lun in range(TARGET_LUNS_MAX):
        if target.luns[lun] != NULL and task.bhs[34] != 1:          # 1: well-known units, of which there are none
            scsi_lun_put(out + at, lun)
            at += 8
    put_be32(out, at - 8)
    send_own(task, at)


cdef void answer_no_lun(Task* task, bint inquiry) noexcept nogil:
    # SPC-4 6.4: INQUIRY tells of no device at this LUN; 6.38: REQUEST SENSE tells why.
    cdef uint8_t* out = own_answer(task)
    if out == NULL:
        return
    if not inquiry:
        send_own(task, scsi_sense(out, SENSE_LUN_NOT_SUPPORTED, False, 0))
        return
    out[0] = 0x7F
    out[2] = 0x06
    out[3] = 0x12
    out[4] = 36 - 5
    memset(out + 8, 0x20, 28)
    send_own(task, 36)
