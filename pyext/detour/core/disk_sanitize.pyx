# See disk_sanitize.pxd.
#
# Owns: its Io, its timer and the memory of the pattern.
# Invariants: the first step waits until nothing is at the store, and from then on the disk gives no other write to it, so
# that nothing old lands behind an overwritten block. What is not aborted by task management goes on: resets, aborts and
# closed sessions end the wait for its answer, not the operation. A restart of the process ends it, and what it had not
# reached is as it was.
# A thin disk is erased, which frees its blocks; overwriting would take all of them. A thick one is overwritten.
# Cost: one Io at a time, so that other disks on the loop do not starve.
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from detour.core.device cimport REQUEST_COMMAND, REQUEST_FLUSH
from detour.core.endian cimport get_be16
from detour.core.reactor cimport loop_timer, loop_timer_stop
from detour.core.scsi cimport *
from detour.core.store cimport STORE_FLUSH, STORE_UNMAP, STORE_WRITE, store_submit

cdef enum:
    ACTION_OVERWRITE = 0x01
    ACTION_BLOCK_ERASE = 0x02
    ACTION_EXIT_FAILURE_MODE = 0x1F
    SANITIZE_STEP_BYTES = 1048576
    ERASE_STEP_BYTES = 67108864
    IDLE_RETRY_NS = 1000000
    PARAMETER_HEADER_BYTES = 4


cdef void sanitize_init(Sanitizer* sanitizer, Device* device, Store* store, bint thin, sanitize_answer_fn answer,
                        Request* const* delayed) noexcept nogil:
    memset(sanitizer, 0, sizeof(Sanitizer))
    sanitizer.device = device
    sanitizer.store = store
    sanitizer.thin = thin
    sanitizer.answer = answer
    sanitizer.delayed = delayed
    sanitizer.timer.run = on_timer
    sanitizer.timer.owner = sanitizer


# ---- the command -----------------------------------------------------------------------------------------------------

cdef uint32_t check_cdb(const Sanitizer* sanitizer, const uint8_t* cdb, uint8_t action) noexcept nogil:
    cdef uint32_t block_bytes = sanitizer.device.block_bytes
    cdef uint16_t length_bytes = get_be16(cdb + 7)
    if cdb[1] & 0x40 or (cdb[2] | cdb[3] | cdb[4] | cdb[5] | cdb[6]) != 0:
        return SENSE_INVALID_FIELD_IN_CDB
    if action == ACTION_OVERWRITE and not sanitizer.thin:
        if length_bytes <= PARAMETER_HEADER_BYTES or length_bytes > block_bytes + PARAMETER_HEADER_BYTES:
            return SENSE_INVALID_FIELD_IN_CDB
    elif (action != ACTION_EXIT_FAILURE_MODE and (action != ACTION_BLOCK_ERASE or not sanitizer.thin)) \
            or length_bytes != 0:
        return SENSE_INVALID_FIELD_IN_CDB
    if sanitizer.device.read_only:
        return SENSE_WRITE_PROTECTED
    return SENSE_SOFTWARE_PROTECTED if sanitizer.device.software_protected else SENSE_NONE


cdef uint32_t take_pattern(Sanitizer* sanitizer, const uint8_t* parameters, uint32_t parameter_bytes) noexcept nogil:
    # SBC-4 5.34.3: each block begins with the pattern anew.
    cdef uint32_t block_bytes = sanitizer.device.block_bytes
    cdef uint32_t pattern_bytes, at
    if parameter_bytes <= PARAMETER_HEADER_BYTES:
        return SENSE_INVALID_FIELD_IN_CDB
    pattern_bytes = get_be16(parameters + 2)
    if parameters[0] & 0x60 or parameters[1] != 0 or parameters[0] & 0x1F == 0 or pattern_bytes == 0 \
            or pattern_bytes > block_bytes or pattern_bytes > parameter_bytes - PARAMETER_HEADER_BYTES:
        return SENSE_INVALID_FIELD_IN_PARAMETERS
    sanitizer.pattern = <uint8_t*>malloc(SANITIZE_STEP_BYTES)
    if sanitizer.pattern == NULL:
        return SENSE_ABORTED_COMMAND
    for at in range(block_bytes):
        sanitizer.pattern[at] = parameters[PARAMETER_HEADER_BYTES + at % pattern_bytes]
    at = block_bytes
    while at < SANITIZE_STEP_BYTES:
        memcpy(sanitizer.pattern + at, sanitizer.pattern, block_bytes)
        at += block_bytes
    sanitizer.inverts = (parameters[0] & 0x80) != 0
    sanitizer.passes = parameters[0] & 0x1F
    return SENSE_NONE


cdef void refuse(Sanitizer* sanitizer, Request* request, uint32_t sense) noexcept nogil:
    request.scsi_status = STATUS_CHECK_CONDITION
    request.sense_bytes = <uint16_t>scsi_sense(request.sense, sense, False, 0)
    sanitizer.answer(sanitizer.device, request)


cdef void sanitize_begin(Sanitizer* sanitizer, Request* request, const uint8_t* parameters,
                         uint32_t parameter_bytes) noexcept nogil:
    cdef uint8_t action = request.command.service_action
    cdef uint32_t sense = check_cdb(sanitizer, request.cdb, action)
    if sense == 0 and action == ACTION_EXIT_FAILURE_MODE:
        if sanitizer.failed and not sanitizer.exit_allowed:
            sense = SENSE_INVALID_FIELD_IN_CDB
        else:
            sanitizer.failed = False
            sanitizer.answer(sanitizer.device, request)
            return
    sanitizer.erasing = action == ACTION_BLOCK_ERASE
    sanitizer.passes = 1
    sanitizer.inverts = False
    if sense == 0 and not sanitizer.erasing:
        sense = take_pattern(sanitizer, parameters, parameter_bytes)
    if sense != 0:
        refuse(sanitizer, request, sense)
        return
    sanitizer.running = True
    sanitizer.failed = False
    sanitizer.exit_allowed = (request.cdb[1] & 0x20) != 0
    sanitizer.flushing = False
    sanitizer.passes_left = sanitizer.passes
    sanitizer.at_bytes = 0
    sanitizer.device.sanitize_progress = 0
    if request.command.immed:
        sanitizer.answer(sanitizer.device, request)
    else:
        sanitizer.request = request
    loop_timer(sanitizer.device.loop, &sanitizer.timer, 0)


cdef uint32_t sanitize_refusal(const Sanitizer* sanitizer, const ScsiCommand* command) noexcept nogil:
    if command.opcode == 0x12 or command.opcode == 0xA0 or command.opcode == 0x03:
        return SENSE_NONE
    if sanitizer.running:
        return SENSE_SANITIZING
    return SENSE_SANITIZE_FAILED if sanitizer.failed and command.cls != SCSI_SANITIZE else SENSE_NONE


cdef void sanitize_refuse(Sanitizer* sanitizer, Request* request) noexcept nogil:
    request.status = E_CHECK
    refuse(sanitizer, request, SENSE_SANITIZING)


cdef void sanitize_forget(Sanitizer* sanitizer, Request* request) noexcept nogil:
    if sanitizer.request == request:
        sanitizer.request = NULL
        sanitizer.answer(sanitizer.device, request)


# ---- the operation ---------------------------------------------------------------------------------------------------

cdef void on_timer(void* owner) noexcept nogil:
    cdef Sanitizer* sanitizer = <Sanitizer*>owner
    if sanitizer.at_bytes == 0 and (sanitizer.store.in_flight > 0 or sanitizer.delayed[0] != NULL):
        loop_timer(sanitizer.device.loop, &sanitizer.timer, IDLE_RETRY_NS)
    else:
        step(sanitizer)


cdef double done_part(const Sanitizer* sanitizer) noexcept nogil:
    cdef double size_bytes = <double>sanitizer.store.size_bytes
    cdef double done_bytes = size_bytes * (sanitizer.passes - sanitizer.passes_left) + <double>sanitizer.at_bytes
    return done_bytes / (size_bytes * sanitizer.passes)


cdef void step(Sanitizer* sanitizer) noexcept nogil:
    cdef Io* io = &sanitizer.io
    cdef uint64_t rest_bytes = sanitizer.store.size_bytes - sanitizer.at_bytes
    cdef uint64_t step_bytes = ERASE_STEP_BYTES if sanitizer.erasing else SANITIZE_STEP_BYTES
    memset(io, 0, sizeof(Io))
    io.owner = sanitizer
    io.done = on_step
    io.data = sanitizer.pattern
    io.offset_bytes = sanitizer.at_bytes
    io.length_bytes = rest_bytes if rest_bytes < step_bytes else step_bytes
    io.op = STORE_UNMAP if sanitizer.erasing else STORE_WRITE
    if rest_bytes == 0:
        io.op = STORE_FLUSH
        io.offset_bytes = 0
        sanitizer.flushing = True
    sanitizer.io_open = True
    store_submit(sanitizer.store, io)


cdef void on_step(Io* io) noexcept nogil:
    cdef Sanitizer* sanitizer = <Sanitizer*>io.owner
    sanitizer.io_open = False
    if io.status < 0 or sanitizer.close_command != NULL:
        end(sanitizer, io.status)
        return
    if sanitizer.flushing:
        sanitizer.flushing = False
        sanitizer.passes_left -= 1
        sanitizer.at_bytes = 0
        if sanitizer.passes_left == 0:
            end(sanitizer, OK)
            return
        invert(sanitizer)
    else:
        sanitizer.at_bytes += io.length_bytes
    sanitizer.device.sanitize_progress = <uint16_t>(done_part(sanitizer) * 65535)
    step(sanitizer)


cdef void invert(Sanitizer* sanitizer) noexcept nogil:
    cdef int at
    if sanitizer.inverts:
        for at in range(SANITIZE_STEP_BYTES):
            sanitizer.pattern[at] = ~sanitizer.pattern[at]


cdef void end(Sanitizer* sanitizer, int status) noexcept nogil:
    cdef Request* request = sanitizer.request
    sanitizer.running = False
    sanitizer.failed = status < 0 or sanitizer.passes_left > 0
    sanitizer.request = NULL
    free(sanitizer.pattern)
    sanitizer.pattern = NULL
    if request != NULL and sanitizer.failed:
        refuse(sanitizer, request, SENSE_SANITIZE_FAILED)
    elif request != NULL:
        sanitizer.answer(sanitizer.device, request)
    if sanitizer.close_command != NULL:
        sanitizer.close_command.run(sanitizer.close_command)


cdef bint sanitize_close(Sanitizer* sanitizer, Command* command) noexcept nogil:
    if not sanitizer.running:
        return False
    loop_timer_stop(sanitizer.device.loop, &sanitizer.timer)
    sanitizer.request = NULL            # no target has the disk any more
    if sanitizer.io_open:
        sanitizer.close_command = command
        return True
    end(sanitizer, E_CLOSED)
    return False


cdef void sanitize_free(Sanitizer* sanitizer) noexcept nogil:
    if sanitizer.device != NULL:
        loop_timer_stop(sanitizer.device.loop, &sanitizer.timer)
    free(sanitizer.pattern)
    sanitizer.pattern = NULL
