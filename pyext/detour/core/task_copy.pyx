# EXTENDED COPY(LID1) between the logical units of this target, and RECEIVE COPY RESULTS(LID1) (SPC-4 6.4, 6.32).
#
# A segment is copied in steps of at most COPY_STEP_BYTES: a READ of the source (parts[0]) into scratch memory, then a
# WRITE of the destination (parts[1]). Both go through the devices' seam like any other request, past reservations,
# write protection and atomic commands.
#
# Owns: the task's CopyJob; the CopyRecords of a session, in a ring of COPIES_KEPT.
# Invariants: a command holds no pool buffer while it waits for another one; at most COPIES_MAX copies are at work in a
# target; a target that drains ends a copy between two steps with BUSY, so that a cutover waits for one step and the host
# asks again. A copy that is done again ends the same, for source and destination of a segment do not depend on it.
# Cost: two copies of the data in memory; no host's link.
from libc.stdlib cimport calloc
from libc.string cimport memcmp, memcpy, memset

from detour.core.copy_list cimport *
from detour.core.device cimport *
from detour.core.endian cimport put_be16, put_be32
from detour.core.scsi cimport *
from detour.core.task_in cimport in_settle, part_failed, part_fill, part_submit
from detour.core.task_info cimport own_answer, send_own
from detour.core.task_step cimport gather_open, refuse, take

cdef enum:
    COPY_STEP_BYTES = 1048576
    ACTION_COPY_STATUS = 0
    ACTION_RECEIVE_DATA = 1
    ACTION_OPERATING_PARAMETERS = 3
    ACTION_FAILED_DETAILS = 4


# ---- EXTENDED COPY: begin --------------------------------------------------------------------------------------------

cdef void begin_copy(Task* task) noexcept nogil:
    if task.command.length_bytes == 0:
        in_settle(task)
    elif task.command.length_bytes > COPY_LIST_BYTES_MAX:
        refuse(task, SENSE_PARAMETER_LIST_LENGTH)
    elif not task.wants_write or task.expected_bytes < task.command.length_bytes:
        refuse(task, SENSE_INVALID_FIELD_IN_INFORMATION_UNIT)
    else:
        take(task, task.command.length_bytes, 1, gather_open, list_full)


cdef void list_full(Task* task) noexcept nogil:
    cdef CopyHeader header
    cdef CopyJob* job
    cdef uint32_t sense = copy_list_check(task.gather, task.gather_bytes, &header)
    if sense == 0 and header.kept and find_running(task.session, header.list_id):
        sense = SENSE_OPERATION_IN_PROGRESS
    if sense != 0:
        refuse(task, sense)
        return
    job = <CopyJob*>calloc(1, sizeof(CopyJob)) if task.session.target.copies_open < COPIES_MAX else NULL
    if job == NULL:
        task_fail_status(task, STATUS_BUSY)
        in_settle(task)
        return
    task.copy = job
    task.session.target.copies_open += 1
    task.device_begun = True
    job.cscds_count = header.cscds_count
    job.segment_at = header.segments_at
    job.segments_end = header.segments_end
    if not scratch_take(task, COPY_STEP_BYTES):
        task_fail_status(task, STATUS_BUSY)
        in_settle(task)
        return
    if header.kept:
        job.record = new_record(task.session, header.list_id)
    next_segment(task)


cdef bint find_running(Session* session, uint8_t list_id) noexcept nogil:
    cdef CopyRecord* record = find_record(session, list_id)
    return record != NULL and record.state == COPY_RUNNING


cdef CopyRecord* find_record(Session* session, uint8_t list_id) noexcept nogil:
    cdef int i
    for i in range(COPIES_KEPT):
        if session.copies[i].used and session.copies[i].list_id == list_id:
            return &session.copies[i]
    return NULL


cdef CopyRecord* new_record(Session* session, uint8_t list_id) noexcept nogil:
    # There is one that is not running, for COPIES_MAX and this very copy are not more than COPIES_KEPT.
    cdef CopyRecord* record = find_record(session, list_id)
    while record == NULL or (record.used and record.state == COPY_RUNNING):
        record = &session.copies[session.copies_next]
        session.copies_next = (session.copies_next + 1) % COPIES_KEPT
    memset(record, 0, sizeof(CopyRecord))
    record.used = True
    record.list_id = list_id
    record.state = COPY_RUNNING
    return record


# ---- EXTENDED COPY: segments -----------------------------------------------------------------------------------------

cdef void next_segment(Task* task) noexcept nogil:
    cdef CopyJob* job = task.copy
    cdef uint32_t sense = SENSE_NONE
    while job.left_bytes == 0 and job.segment_at < job.segments_end and sense == 0:
        sense = open_segment(task)
        if sense == 0 and job.left_bytes == 0:
            end_segment(job)
    if sense != 0:
        task_fail(task, sense)
        point_at_segment(task)
    if task.failed or job.left_bytes == 0:
        end_copy(task)
    else:
        copy_step(task)


cdef void end_segment(CopyJob* job) noexcept nogil:
    job.segment_at += COPY_SEGMENT_BYTES
    job.segments_done += 1
    if job.record != NULL:
        job.record.segments_done = job.segments_done


cdef void point_at_segment(Task* task) noexcept nogil:
    # SPC-4 4.5.2.4.5: segment pointer, the field pointer relative to the parameter list.
    task.sense[15] = 0x80
    put_be16(task.sense + 16, <uint16_t>task.copy.segment_at)


cdef Device* find_device(Target* target, const CopyCscd* cscd) noexcept nogil:
    cdef Device* device
    cdef int lun
    for lun in range(TARGET_LUNS_MAX):
        device = target.luns[lun]
        if device != NULL and cscd.naa != NULL and device.naa_bytes > 0 and device.naa_bytes == cscd.naa_bytes \
                and memcmp(device.naa, cscd.naa, cscd.naa_bytes) == 0:
            return device
    return NULL


cdef uint32_t open_cscd(Task* task, uint16_t index, Device** device) noexcept nogil:
    cdef CopyCscd cscd
    if index >= task.copy.cscds_count:
        return SENSE_COPY_UNREACHABLE
    copy_list_cscd(task.gather, index, &cscd)
    device[0] = find_device(task.session.target, &cscd)
    if cscd.device_type != 0:
        return SENSE_COPY_DEVICE_TYPE
    if device[0] == NULL:
        return SENSE_COPY_NO_DEVICE
    return SENSE_INVALID_FIELD_IN_PARAMETERS if cscd.block_bytes != device[0].block_bytes else SENSE_NONE


cdef uint32_t open_segment(Task* task) noexcept nogil:
    cdef CopyJob* job = task.copy
    cdef CopySegment segment
    cdef uint32_t sense
    copy_list_segment(task.gather + job.segment_at, &segment)
    sense = open_cscd(task, segment.source, &job.source)
    if sense == 0:
        sense = open_cscd(task, segment.destination, &job.destination)
    if sense != 0:
        return sense
    job.left_bytes = <uint64_t>segment.blocks * (job.destination.block_bytes if segment.counts_destination
                                                 else job.source.block_bytes)
    sense = check_segment(task, &segment, job.left_bytes)
    if sense != 0:
        job.left_bytes = 0
        return sense
    job.source_at_bytes = segment.source_lba * job.source.block_bytes
    job.destination_at_bytes = segment.destination_lba * job.destination.block_bytes
    job.backwards = job.source == job.destination and job.source_at_bytes < job.destination_at_bytes \
        and job.destination_at_bytes < job.source_at_bytes + job.left_bytes
    return SENSE_NONE


cdef uint32_t check_segment(Task* task, const CopySegment* segment, uint64_t length_bytes) noexcept nogil:
    cdef CopyJob* job = task.copy
    cdef uint64_t source_blocks = length_bytes // job.source.block_bytes
    cdef uint64_t destination_blocks = length_bytes // job.destination.block_bytes
    if length_bytes % job.source.block_bytes != 0 or length_bytes % job.destination.block_bytes != 0:
        return SENSE_COPY_GRANULARITY
    if segment.source_lba > job.source.blocks or source_blocks > job.source.blocks - segment.source_lba:
        return SENSE_COPY_ABORTED
    if segment.destination_lba > job.destination.blocks \
            or destination_blocks > job.destination.blocks - segment.destination_lba:
        return SENSE_COPY_ABORTED
    if job.destination.read_only or job.destination.software_protected:
        return SENSE_COPY_DEVICE_FAILED
    return SENSE_NONE


cdef bint is_allowed(Task* task) noexcept nogil:
    # Asked before each step: a host whose registration another has preempted writes no more.
    if is_forbidden(task, task.copy.source, 0x88) or is_forbidden(task, task.copy.destination, 0x8A):
        task_fail_status(task, STATUS_RESERVATION_CONFLICT)
        return False
    return True


cdef bint is_forbidden(Task* task, Device* device, uint8_t opcode) noexcept nogil:
    # Whether a reservation keeps this host from a READ(16) or WRITE(16) of the device.
    cdef uint8_t cdb[16]
    cdef ScsiCommand command
    if device.ops.conflicts == NULL:
        return False
    memset(cdb, 0, 16)
    cdb[0] = opcode
    scsi_decode(cdb, 16, &command)
    return device.ops.conflicts(device, &task.session.nexus, &command)


# ---- EXTENDED COPY: steps --------------------------------------------------------------------------------------------

cdef inline uint64_t step_bytes(const CopyJob* job) noexcept nogil:
    return job.left_bytes if job.left_bytes < COPY_STEP_BYTES else <uint64_t>COPY_STEP_BYTES


cdef inline uint64_t step_offset(const CopyJob* job) noexcept nogil:
    return job.left_bytes - step_bytes(job) if job.backwards else 0


cdef void fill(Part* part, Device* device, uint8_t op, uint64_t at_bytes, uint64_t length_bytes,
               part_fn finished) noexcept nogil:
    # A request to a device that need not be the command's own.
    part_fill(part, op, at_bytes // device.block_bytes, length_bytes // device.block_bytes, finished)
    part.request.device = device
    part.request.data_bytes = length_bytes
    part.request.flags = 0


cdef void copy_step(Task* task) noexcept nogil:
    cdef CopyJob* job = task.copy
    if task.session.target.dropping:
        task_fail_status(task, STATUS_BUSY)
    if task.failed or not is_allowed(task):
        end_copy(task)
        return
    fill(&task.parts[0], job.source, REQUEST_READ, job.source_at_bytes + step_offset(job), step_bytes(job), step_read)
    task.parts[0].request.memory = task.scratch
    part_submit(&task.parts[0])


cdef void step_read(Part* part) noexcept nogil:
    cdef Task* task = part.task
    cdef CopyJob* job = task.copy
    cdef Part* write = &task.parts[1]
    cdef int status
    if part.request.status < 0:
        step_failed(part, False)
        return
    if part.request.data != task.scratch:
        memcpy(task.scratch, part.request.data, part.request.data_bytes)
    part_release(part)
    fill(write, job.destination, REQUEST_WRITE, job.destination_at_bytes + step_offset(job), step_bytes(job),
         step_written)
    write.request.ready = step_ready
    status = job.destination.ops.begin_write(job.destination, &write.request)
    if status == OK:
        step_write(write)
    elif status == PENDING:
        write.state = PART_PLACING
    else:
        task_fail(task, SENSE_COPY_DEVICE_FAILED)
        point_at_segment(task)
        end_copy(task)


cdef void step_ready(Request* request) noexcept nogil:
    cdef Part* part = <Part*>request.owner
    if request.data == NULL:
        part.state = PART_IDLE
        task_fail(part.task, SENSE_COPY_DEVICE_FAILED)
        point_at_segment(part.task)
        end_copy(part.task)
        return
    step_write(part)


cdef void step_write(Part* part) noexcept nogil:
    memcpy(part.request.data, part.task.scratch, part.request.data_bytes)
    part_submit(part)


cdef void step_written(Part* part) noexcept nogil:
    cdef Task* task = part.task
    cdef CopyJob* job = task.copy
    cdef uint64_t length_bytes = part.request.data_bytes
    if part.request.status < 0:
        step_failed(part, True)
        return
    part_release(part)
    job.copied_bytes += length_bytes
    if job.record != NULL:
        job.record.copied_bytes = job.copied_bytes
    job.left_bytes -= length_bytes
    if not job.backwards:
        job.source_at_bytes += length_bytes
        job.destination_at_bytes += length_bytes
    if job.left_bytes > 0:
        copy_step(task)
        return
    end_segment(job)
    next_segment(task)


cdef void step_failed(Part* part, bint writing) noexcept nogil:
    # SPC-4 6.4.3: whatever a segment fails of is COPY ABORTED; but what a host sends again it shall send again.
    cdef Task* task = part.task
    cdef uint32_t sense = scsi_sense_of(part.request.status, writing)
    if part.request.status == E_BUSY or sense == SENSE_ABORTED_COMMAND:
        part_failed(part, writing)
    else:
        part_release(part)
        task_fail(task, SENSE_COPY_DEVICE_FAILED)
        point_at_segment(task)
    end_copy(task)


cdef void end_copy(Task* task) noexcept nogil:
    cdef CopyRecord* record = task.copy.record
    if record != NULL:
        record.state = COPY_FAILED if task.failed else COPY_DONE
        record.status = task.status
        record.sense_bytes = task.sense_bytes
        memcpy(record.sense, task.sense, task.sense_bytes)
    in_settle(task)


# ---- RECEIVE COPY RESULTS --------------------------------------------------------------------------------------------

cdef void begin_copy_results(Task* task) noexcept nogil:
    cdef uint8_t action = task.command.service_action
    cdef CopyRecord* record = find_record(task.session, task.bhs[32 + 2])
    cdef uint8_t* out
    if action == ACTION_OPERATING_PARAMETERS:
        out = own_answer(task)
        if out != NULL:
            send_own(task, put_parameters(out))
        return
    # No data are ever held for RECEIVE DATA; details are kept of a copy that failed.
    if record == NULL or (action != ACTION_COPY_STATUS and action != ACTION_FAILED_DETAILS) \
            or (action == ACTION_FAILED_DETAILS and record.state != COPY_FAILED):
        refuse(task, SENSE_INVALID_FIELD_IN_CDB)
        return
    out = own_answer(task)
    if out == NULL:
        return
    send_own(task, put_status(out, record) if action == ACTION_COPY_STATUS else put_details(out, record))
    if action == ACTION_FAILED_DETAILS:
        record.used = False


cdef uint32_t put_status(uint8_t* out, const CopyRecord* record) noexcept nogil:
    put_be32(out, 8)
    out[4] = record.state
    put_be16(out + 5, record.segments_done)
    out[7] = 1                                  # the transfer count is in KiB
    put_be32(out + 8, <uint32_t>(record.copied_bytes >> 10))
    return 12


cdef uint32_t put_details(uint8_t* out, const CopyRecord* record) noexcept nogil:
    put_be32(out, 56 + record.sense_bytes)
    out[56] = record.status
    put_be16(out + 58, record.sense_bytes)
    memcpy(out + 60, record.sense, record.sense_bytes)
    return 60 + record.sense_bytes


cdef uint32_t put_parameters(uint8_t* out) noexcept nogil:
    put_be32(out, 42)
    out[4] = 0x01                               # SNLID: a list identifier need not be given
    put_be16(out + 8, COPY_CSCDS_MAX)
    put_be16(out + 10, COPY_SEGMENTS_MAX)
    put_be32(out + 12, COPY_DESCRIPTORS_BYTES_MAX)
    put_be32(out + 16, COPY_SEGMENT_BYTES_MAX)
    put_be16(out + 34, COPIES_MAX)
    out[36] = COPIES_MAX
    out[37] = 9                                 # data segment granularity: 512 bytes
    out[43] = 2
    out[44] = COPY_SEGMENT_TYPE
    out[45] = COPY_CSCD_TYPE
    return 46
