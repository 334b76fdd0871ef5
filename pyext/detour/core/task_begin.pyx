# What each SCSI command does: checks, then the steps at the device, by class of the command table.
#
# Owns: the use of a task's step cursor and gather buffer, the session's compare buffer.
# Invariants: nothing is asked of the device before the CDB is checked whole (range, rights, protection bits); a step
# that fails ends the command with the sense of the first failure; what the medium keeps of a failed WRITE is undefined,
# as SBC-3 has it. Task attributes are not told apart: the control mode page says unrestricted reordering.
# Cost: READ and WRITE go to the device in parts of 1 MiB with no copy; VERIFY with data receives into one buffer of the
# session, so that waiting for the device's own read buffers can never use up the pool; WRITE SAME copies its block into
# each place.
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy, memset

from detour.core.crc32c cimport crc32c_update
from detour.core.device cimport *
from detour.core.endian cimport get_be16, get_be32, get_be64, put_be32
from detour.core.pool cimport pool_get, pool_wait
from detour.core.scsi cimport *
from detour.core.task_in cimport in_read, in_send, in_settle, part_failed, part_fill, part_submit
from detour.core.task_out cimport out_advance, out_begin, out_place_ready

cdef enum:
    OWN_ANSWER_BYTES = 4096
    UNMAP_HEADER_BYTES = 8
    UNMAP_DESCRIPTOR_BYTES = 16
    NACA = 0x04

# ---- checks ----------------------------------------------------------------------------------------------------------

cdef inline bint is_data_class(uint8_t cls) noexcept nogil:
    return SCSI_READ <= cls <= SCSI_UNMAP or cls == SCSI_PREFETCH


cdef inline bint writes_medium(uint8_t cls) noexcept nogil:
    return cls == SCSI_WRITE or cls == SCSI_WRITE_VERIFY or cls == SCSI_WRITE_SAME or cls == SCSI_UNMAP


cdef uint32_t check_cdb(Task* task) noexcept nogil:
    # The Sense with which the command is refused, or 0.
    cdef ScsiCommand* command = &task.command
    cdef Device* device = task.device
    if task.wants_read and task.wants_write:
        return SENSE_INVALID_FIELD_IN_CDB           # no command here moves data both ways
    if task.bhs[32 + command.cdb_bytes - 1] & NACA:
        return SENSE_INVALID_FIELD_IN_CDB
    if not is_data_class(command.cls):
        return 0
    if command.protect != 0 or command.anchor:
        return SENSE_INVALID_FIELD_IN_CDB
    if device.read_only and writes_medium(command.cls):
        return SENSE_WRITE_PROTECTED
    if command.lba > device.blocks or command.blocks > device.blocks - command.lba:
        return SENSE_LBA_OUT_OF_RANGE
    if command.bytchk == 2 or (command.bytchk == 3 and command.cls == SCSI_WRITE_VERIFY):
        return SENSE_INVALID_FIELD_IN_CDB
    return 0


cdef inline bint is_offered(uint8_t cls) noexcept nogil:
    # COMPARE AND WRITE, ORWRITE, WRITE ATOMIC, FORMAT, SANITIZE and the like are not.
    return is_data_class(cls) or cls == SCSI_GET_LBA_STATUS or cls == SCSI_INFO or cls == SCSI_REPORT_OPCODES


cdef bint admitted(Task* task) noexcept nogil:
    cdef Device* device = task.device
    cdef uint8_t status = STATUS_GOOD
    cdef uint32_t sense
    if device.ops.admit == NULL:
        return True
    sense = device.ops.admit(device, &task.session.nexus, &task.command, &status)
    if sense == 0 and status == STATUS_GOOD:
        return True
    if sense != 0:
        task_fail(task, sense)
    else:
        task_fail_status(task, status)
    return False


# ---- begin -----------------------------------------------------------------------------------------------------------

cdef void task_begin(Task* task) noexcept nogil:
    cdef Target* target = task.session.target
    cdef uint32_t lun = scsi_lun_of(task.bhs + 8)
    cdef int decoded = scsi_decode(task.bhs + 32, 16, &task.command)
    cdef uint32_t sense
    task.state = TASK_BEGUN
    if task.failed:
        out_advance(task)
        return
    if lun < TARGET_LUNS_MAX:
        task.device = target.luns[lun]
    if task.command.opcode == 0xA0 or task.device == NULL:
        begin_elsewhere(task)
        return
    if decoded < 0 or not is_offered(task.command.cls):
        refuse(task, SENSE_INVALID_OPCODE)
        return
    if not admitted(task):
        out_advance(task)
        return
    sense = check_cdb(task)
    if sense != 0:
        refuse(task, sense)
        return
    begin_class(task)


cdef void refuse(Task* task, uint32_t sense) noexcept nogil:
    task_fail(task, sense)
    out_advance(task)


cdef void begin_class(Task* task) noexcept nogil:
    cdef uint8_t cls = task.command.cls
    if cls == SCSI_READ:
        task.total_bytes = task.command.blocks * task.device.block_bytes
        task.room_bytes = task.total_bytes
        if task.room_bytes > task.expected_bytes:
            task.room_bytes = task.expected_bytes
        if not task.wants_read:
            task.room_bytes = 0
        in_read(task)
    elif cls == SCSI_WRITE or cls == SCSI_WRITE_VERIFY:
        take(task, task.command.blocks * task.device.block_bytes, write_open, write_full)
    elif cls == SCSI_SYNCHRONIZE:
        part_fill(&task.parts[0], REQUEST_FLUSH, 0, 0, step_last)
        part_submit(&task.parts[0])
    elif cls == SCSI_VERIFY:
        begin_verify(task)
    elif cls == SCSI_WRITE_SAME:
        begin_same(task)
    elif cls == SCSI_UNMAP:
        begin_unmap(task)
    elif cls == SCSI_PREFETCH:
        in_settle(task)
    else:
        begin_info(task)


cdef void take(Task* task, uint64_t total_bytes, task_place_fn open_place, task_fn place_full) noexcept nogil:
    # Data-out of `total_bytes`, of which as many whole blocks as the host sends are used.
    task.total_bytes = total_bytes
    task.take_bytes = total_bytes if total_bytes < task.expected_bytes else task.expected_bytes
    if not task.wants_write:
        task.take_bytes = 0
    if is_data_class(task.command.cls) and task.command.cls != SCSI_UNMAP:
        task.take_bytes -= task.take_bytes % task.device.block_bytes
    task.open_place = open_place
    task.place_full = place_full
    if task.take_bytes == 0:
        in_settle(task)
    else:
        out_begin(task)


cdef void step_last(Part* part) noexcept nogil:
    # The only or last request of a command without data.
    if part.request.status < 0:
        part_failed(part, part.request.op != REQUEST_READ)
    else:
        part_release(part)
    in_settle(part.task)


# ---- WRITE, WRITE AND VERIFY -----------------------------------------------------------------------------------------

cdef int write_open(Task* task) noexcept nogil:
    cdef Part* part = &task.parts[0]
    cdef uint32_t block_bytes = task.device.block_bytes
    cdef int status
    part.start_bytes = task.place_end
    part.length_bytes = task.take_bytes - part.start_bytes
    if part.length_bytes > PART_BYTES_MAX:
        part.length_bytes = PART_BYTES_MAX
    part_fill(part, REQUEST_WRITE, task.command.lba + part.start_bytes // block_bytes,
              part.length_bytes // block_bytes, write_done)
    if task.command.cls == SCSI_WRITE_VERIFY:
        part.request.flags |= REQUEST_FUA
    part.request.ready = write_ready
    status = task.device.ops.begin_write(task.device, &part.request)
    if status == OK:
        part.state = PART_PLACED
        task.place = part.request.data
        task.place_start = part.start_bytes
        task.place_end = part.start_bytes + part.length_bytes
    elif status == PENDING:
        part.state = PART_PLACING
    return status


cdef void write_ready(Request* request) noexcept nogil:
    cdef Part* part = <Part*>request.owner
    part.state = PART_PLACED
    if request.data == NULL:
        task_fail(part.task, scsi_sense_of(request.status, True))
    out_place_ready(part.task, request.data, part.start_bytes, part.start_bytes + part.length_bytes)


cdef void write_full(Task* task) noexcept nogil:
    cdef Part* part = &task.parts[0]
    if task.command.cls == SCSI_WRITE_VERIFY:
        task.check_crc = crc32c_update(0, part.request.data, part.length_bytes)
    part_submit(part)


cdef void write_done(Part* part) noexcept nogil:
    cdef Task* task = part.task
    if part.request.status < 0:
        part_failed(part, True)
        out_advance(task)
        return
    part_release(part)
    if task.command.cls == SCSI_WRITE_VERIFY and not task.failed:
        part_fill(part, REQUEST_READ, part.request.lba, part.request.blocks, written_read)
        part_submit(part)
        return
    next_place(task)


cdef void written_read(Part* part) noexcept nogil:
    cdef Task* task = part.task
    if part.request.status < 0:
        part_failed(part, False)
    else:
        if crc32c_update(0, part.request.data, part.length_bytes) != task.check_crc:
            task_fail(task, SENSE_MISCOMPARE)
        part_release(part)
    next_place(task)


cdef void next_place(Task* task) noexcept nogil:
    if task.failed or task.place_end < task.take_bytes:
        out_advance(task)
    else:
        in_settle(task)


# ---- VERIFY ----------------------------------------------------------------------------------------------------------

cdef void begin_verify(Task* task) noexcept nogil:
    if task.command.bytchk == 0:
        verify_step(task)
    elif task.command.blocks == 0:
        in_settle(task)
    elif task.command.bytchk == 1:
        take(task, task.command.blocks * task.device.block_bytes, compare_open, compare_full)
    else:
        take(task, task.device.block_bytes, gather_open, verify_step)


cdef int compare_open(Task* task) noexcept nogil:
    cdef Session* session = task.session
    if session.compare_buffer == NULL:
        session.compare_buffer = <uint8_t*>malloc(PART_BYTES_MAX)
        if session.compare_buffer == NULL:
            return E_NOMEM
    if session.compare_owner != NULL and session.compare_owner != task:
        task.compare_queued = True
        task.queue_next = NULL
        if session.compare_tail != NULL:
            session.compare_tail.queue_next = task
        else:
            session.compare_head = task
        session.compare_tail = task
        return PENDING
    session.compare_owner = task
    task.place = session.compare_buffer
    task.place_start = task.place_end
    task.place_end = compare_end(task)
    return OK


cdef uint64_t compare_end(const Task* task) noexcept nogil:
    cdef uint64_t end = task.place_start + PART_BYTES_MAX
    return end if end < task.take_bytes else task.take_bytes


cdef void compare_next(void* owner) noexcept nogil:
    cdef Session* session = <Session*>owner
    cdef Task* task = session.compare_head
    if session.compare_owner != NULL or task == NULL:
        return
    session.compare_head = task.queue_next
    if session.compare_head == NULL:
        session.compare_tail = NULL
    task.queue_next = NULL
    task.compare_queued = False
    session.compare_owner = task
    task.place_start = task.place_end
    out_place_ready(task, session.compare_buffer, task.place_start, compare_end(task))


cdef void compare_full(Task* task) noexcept nogil:
    cdef Part* part = &task.parts[0]
    cdef uint32_t block_bytes = task.device.block_bytes
    part.start_bytes = task.place_start
    part.length_bytes = task.place_end - task.place_start
    part_fill(part, REQUEST_READ, task.command.lba + part.start_bytes // block_bytes, part.length_bytes // block_bytes,
              compare_done)
    part_submit(part)


cdef void compare_done(Part* part) noexcept nogil:
    cdef Task* task = part.task
    if part.request.status < 0:
        part_failed(part, False)
    else:
        if memcmp(part.request.data, task.session.compare_buffer, part.length_bytes) != 0:
            task_fail(task, SENSE_MISCOMPARE)
        part_release(part)
    next_place(task)


cdef inline uint64_t step_size(const Task* task, uint64_t total_blocks) noexcept nogil:
    cdef uint64_t blocks = PART_BYTES_MAX // task.device.block_bytes
    cdef uint64_t rest = total_blocks - task.step_blocks
    return blocks if blocks < rest else rest


cdef void verify_step(Task* task) noexcept nogil:
    # Reads the medium part by part: without data-out to see that it can be read, with one block to compare it with each.
    cdef Part* part = &task.parts[0]
    cdef uint64_t blocks = step_size(task, task.command.blocks)
    if task.failed or blocks == 0:
        in_settle(task)
        return
    part_fill(part, REQUEST_READ, task.command.lba + task.step_blocks, blocks, verify_read)
    part_submit(part)


cdef void verify_read(Part* part) noexcept nogil:
    cdef Task* task = part.task
    cdef uint32_t block_bytes = task.device.block_bytes
    cdef uint64_t i
    if part.request.status < 0:
        part_failed(part, False)
        in_settle(task)
        return
    if task.gather != NULL:
        for i in range(part.request.blocks):
            if memcmp(part.request.data + i * block_bytes, task.gather, block_bytes) != 0:
                task_fail(task, SENSE_MISCOMPARE)
                break
    task.step_blocks += part.request.blocks
    part_release(part)
    verify_step(task)


# ---- gathering a parameter list --------------------------------------------------------------------------------------

cdef int gather_open(Task* task) noexcept nogil:
    if task.take_bytes > PART_BYTES_MAX:
        return E_INVALID
    task.gather = pool_get(&task.session.target.loop.buffers, task.take_bytes)
    if task.gather == NULL:
        task.gather_waiter.ready = gather_ready
        task.gather_waiter.owner = task
        pool_wait(&task.session.target.loop.buffers, &task.gather_waiter)
        return PENDING
    task.gather_bytes = <uint32_t>task.take_bytes
    task.place = task.gather
    task.place_start = 0
    task.place_end = task.take_bytes
    return OK


cdef void gather_ready(void* owner) noexcept nogil:
    cdef Task* task = <Task*>owner
    task.place_waiting = False
    out_advance(task)


# ---- WRITE SAME, UNMAP -----------------------------------------------------------------------------------------------

cdef void begin_same(Task* task) noexcept nogil:
    if task.command.blocks == 0:
        task.command.blocks = task.device.blocks - task.command.lba
    if task.command.ndob:
        same_full(task)
    elif not task.wants_write or task.expected_bytes != task.device.block_bytes:
        refuse(task, SENSE_INVALID_FIELD_IN_INFORMATION_UNIT)
    else:
        take(task, task.device.block_bytes, gather_open, same_full)


cdef bint all_zero(const uint8_t* data, uint32_t length_bytes) noexcept nogil:
    return data[0] == 0 and memcmp(data, data + 1, length_bytes - 1) == 0


cdef void same_full(Task* task) noexcept nogil:
    # From here on the command is begun for a drain, even while it waits for a place.
    task.device_begun = True
    if task.gather == NULL or all_zero(task.gather, task.device.block_bytes):
        task.command.unmap = True
    same_step(task)


cdef void same_step(Task* task) noexcept nogil:
    cdef Part* part = &task.parts[0]
    cdef uint64_t blocks = step_size(task, task.command.blocks)
    cdef int status
    if task.failed or blocks == 0:
        in_settle(task)
        return
    part_fill(part, REQUEST_UNMAP if task.command.unmap else REQUEST_WRITE, task.command.lba + task.step_blocks, blocks,
              same_done)
    if task.command.unmap:
        part_submit(part)
        return
    part.request.ready = same_ready
    status = task.device.ops.begin_write(task.device, &part.request)
    if status == OK:
        same_fill(part)
    elif status == PENDING:
        part.state = PART_PLACING
    else:
        task_fail(task, scsi_sense_of(status, True))
        in_settle(task)


cdef void same_ready(Request* request) noexcept nogil:
    cdef Part* part = <Part*>request.owner
    if request.data == NULL:
        part.state = PART_IDLE
        task_fail(part.task, scsi_sense_of(request.status, True))
        in_settle(part.task)
        return
    same_fill(part)


cdef void same_fill(Part* part) noexcept nogil:
    cdef uint32_t block_bytes = part.task.device.block_bytes
    cdef uint64_t i
    for i in range(part.request.blocks):
        memcpy(part.request.data + i * block_bytes, part.task.gather, block_bytes)
    part_submit(part)


cdef void same_done(Part* part) noexcept nogil:
    cdef Task* task = part.task
    if part.request.status < 0:
        part_failed(part, True)
        in_settle(task)
        return
    task.step_blocks += part.request.blocks
    part_release(part)
    same_step(task)


cdef void begin_unmap(Task* task) noexcept nogil:
    if task.command.length_bytes != 0 and task.command.length_bytes < UNMAP_HEADER_BYTES:
        refuse(task, SENSE_PARAMETER_LIST_LENGTH)
    else:
        take(task, task.command.length_bytes, gather_open, unmap_full)


cdef uint32_t unmap_descriptors(const Task* task) noexcept nogil:
    # Complete ones, within what was told and what came.
    cdef uint32_t told = get_be16(task.gather + 2)
    cdef uint32_t came = task.gather_bytes - UNMAP_HEADER_BYTES
    return (told if told < came else came) // UNMAP_DESCRIPTOR_BYTES


cdef void unmap_full(Task* task) noexcept nogil:
    cdef const uint8_t* descriptor
    cdef uint32_t i
    cdef lba_t lba
    cdef uint64_t blocks
    if task.gather_bytes < UNMAP_HEADER_BYTES:
        refuse(task, SENSE_PARAMETER_LIST_LENGTH)
        return
    for i in range(unmap_descriptors(task)):
        descriptor = task.gather + UNMAP_HEADER_BYTES + i * UNMAP_DESCRIPTOR_BYTES
        lba = get_be64(descriptor)
        blocks = get_be32(descriptor + 8)
        if lba > task.device.blocks or blocks > task.device.blocks - lba:
            refuse(task, SENSE_LBA_OUT_OF_RANGE)
            return
    task.device_begun = True
    unmap_step(task)


cdef void unmap_step(Task* task) noexcept nogil:
    cdef Part* part = &task.parts[0]
    cdef const uint8_t* descriptor
    cdef uint64_t blocks = 0
    while task.step_index < unmap_descriptors(task):
        descriptor = task.gather + UNMAP_HEADER_BYTES + task.step_index * UNMAP_DESCRIPTOR_BYTES
        blocks = step_size(task, get_be32(descriptor + 8))
        if blocks > 0:
            part_fill(part, REQUEST_UNMAP, get_be64(descriptor) + task.step_blocks, blocks, unmap_done)
            part_submit(part)
            return
        task.step_index += 1
        task.step_blocks = 0
    in_settle(task)


cdef void unmap_done(Part* part) noexcept nogil:
    cdef Task* task = part.task
    if part.request.status < 0:
        part_failed(part, True)
        in_settle(task)
        return
    task.step_blocks += part.request.blocks
    part_release(part)
    unmap_step(task)


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
        take(task, task.command.length_bytes, gather_open, info_full)
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
