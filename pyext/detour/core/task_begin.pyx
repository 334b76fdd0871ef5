# Begins SCSI commands: checks, then the module that does the work, by class of the command table.
#
# Invariants: nothing is asked of the device before the CDB is checked whole (what is offered, rights, range, limits,
# protection bits). Protection information is not offered: every RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT but 0 is
# refused. GROUP NUMBER is not looked at.
# Cost: a few compares for each command; READ and WRITE have no limits of their own.
from detour.core.device cimport *
from detour.core.endian cimport put_be16
from detour.core.scsi cimport *
from detour.core.task_atomic cimport begin_compare_and_write, begin_orwrite, begin_write_atomic
from detour.core.task_copy cimport begin_copy, begin_copy_results
from detour.core.task_in cimport in_read, in_settle, part_fill, part_submit
from detour.core.task_info cimport begin_elsewhere, begin_info
from detour.core.task_medium cimport begin_verify, begin_write_command
from detour.core.task_out cimport out_advance
from detour.core.task_same cimport begin_same, begin_unmap
from detour.core.task_step cimport refuse, step_last

cdef enum:
    NACA = 0x04

# ---- checks ----------------------------------------------------------------------------------------------------------

cdef inline bint is_data_class(uint8_t cls) noexcept nogil:
    return (SCSI_READ <= cls <= SCSI_PREFETCH) or cls == SCSI_WRITE_ATOMIC


cdef inline bint writes_medium(uint8_t cls) noexcept nogil:
    return cls == SCSI_WRITE or cls == SCSI_WRITE_VERIFY or (SCSI_WRITE_SAME <= cls <= SCSI_ORWRITE) \
        or cls == SCSI_WRITE_ATOMIC


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
        return SENSE_INVALID_FIELD_IN_CDB           # ANC_SUP is 0: no block is anchored
    if writes_medium(command.cls):
        if device.read_only:
            return SENSE_WRITE_PROTECTED
        if device.software_protected:
            return SENSE_SOFTWARE_PROTECTED
    if command.lba > device.blocks or command.blocks > device.blocks - command.lba:
        return SENSE_LBA_OUT_OF_RANGE
    if command.bytchk == 2 or (command.bytchk == 3 and command.cls == SCSI_WRITE_VERIFY):
        return SENSE_INVALID_FIELD_IN_CDB
    if command.cls >= SCSI_WRITE_SAME and exceeds_limits(command, device):
        return SENSE_INVALID_FIELD_IN_CDB
    return 0


cdef bint exceeds_limits(const ScsiCommand* command, const Device* device) noexcept nogil:
    # What the block limits VPD page says of the command (SBC-4 6.6.4).
    cdef const DeviceLimits* limits = &device.limits
    cdef uint64_t blocks = command.blocks
    if command.cls == SCSI_WRITE_SAME:
        if blocks == 0:
            if limits.write_same_zero_refused:
                return True
            blocks = device.blocks - command.lba
        return limits.write_same_blocks_max != 0 and blocks > limits.write_same_blocks_max
    if command.cls == SCSI_COMPARE_AND_WRITE:
        return blocks > limits.compare_blocks_max
    if command.cls != SCSI_WRITE_ATOMIC:
        return False
    if blocks > limits.atomic_blocks_max or command.atomic_boundary != 0:
        return True                                 # MAXIMUM ATOMIC TRANSFER LENGTH WITH ATOMIC BOUNDARY is 0
    if limits.atomic_alignment_blocks > 1 and command.lba % limits.atomic_alignment_blocks != 0:
        return True
    return limits.atomic_granularity_blocks > 1 and blocks % limits.atomic_granularity_blocks != 0


cdef bint is_offered(const Task* task) noexcept nogil:
    # FORMAT UNIT and what else writes the medium on some disks is not.
    cdef const ScsiCommand* command = &task.command
    cdef const Device* device = task.device
    if device.withheld[command.opcode] >> command.service_action & 1:
        return False
    if command.cls == SCSI_COMPARE_AND_WRITE:
        return device.limits.compare_blocks_max > 0
    if command.cls == SCSI_WRITE_ATOMIC:
        return device.limits.atomic_blocks_max > 0
    return command.cls != SCSI_UNKNOWN and command.cls != SCSI_FORMAT and command.cls != SCSI_OTHER_MEDIUM


cdef uint32_t refusal(const Task* task) noexcept nogil:
    # SPC-4 4.3.2: a service action that is not offered, of an opcode that offers others, is an invalid field.
    cdef const uint8_t* cdb = task.bhs + 32
    if task.device.withheld[cdb[0]] == <uint32_t>0xFFFFFFFF:
        return SENSE_INVALID_OPCODE
    if scsi_is_unknown_action(cdb) or scsi_has_actions(cdb[0]):
        return SENSE_INVALID_FIELD_IN_CDB
    return SENSE_INVALID_OPCODE


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
        if sense == SENSE_SANITIZING:               # progress indication
            task.sense[15] = 0x80
            put_be16(task.sense + 16, device.sanitize_progress)
    else:
        task_fail_status(task, status)
    return False


# ---- begin -----------------------------------------------------------------------------------------------------------

cdef void task_begin(Task* task) noexcept nogil:
    cdef Target* target = task.session.target
    cdef int decoded = scsi_decode(task.bhs + 32, 16, &task.command)
    cdef uint32_t sense
    task.state = TASK_BEGUN
    if task.failed:
        out_advance(task)
        return
    if task.lun < TARGET_LUNS_MAX:
        task.device = target.luns[task.lun]
    if task.command.opcode == 0xA0 or task.device == NULL:
        begin_elsewhere(task)
        return
    if decoded < 0 or not is_offered(task):
        refuse(task, refusal(task))
        return
    if not admitted(task):
        out_advance(task)
        return
    sense = check_cdb(task)
    if sense != 0:
        refuse(task, sense)
        return
    begin_class(task)


cdef void begin_class(Task* task) noexcept nogil:
    cdef uint8_t cls = task.command.cls
    if cls == SCSI_READ:
        begin_read(task)
    elif cls == SCSI_WRITE or cls == SCSI_WRITE_VERIFY:
        begin_write_command(task)
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
        in_settle(task)                 # GOOD, not CONDITION MET: there is no cache here that would hold the blocks
    elif cls == SCSI_COMPARE_AND_WRITE:
        begin_compare_and_write(task)
    elif cls == SCSI_ORWRITE:
        begin_orwrite(task)
    elif cls == SCSI_WRITE_ATOMIC:
        begin_write_atomic(task)
    elif cls == SCSI_EXTENDED_COPY:
        begin_copy(task)
    elif cls == SCSI_COPY_RESULTS:
        begin_copy_results(task)
    else:
        begin_info(task)


cdef void begin_read(Task* task) noexcept nogil:
    task.total_bytes = task.command.blocks * task.device.block_bytes
    task.room_bytes = task.total_bytes
    if task.room_bytes > task.expected_bytes:
        task.room_bytes = task.expected_bytes
    if not task.wants_read:
        task.room_bytes = 0
    in_read(task)
