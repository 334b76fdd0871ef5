# Task management (RFC 7143 11.5, 11.6) and Logout (11.14, 11.15).
#
# Owns: a task of kind TASK_MANAGEMENT for each function that waits.
# Invariants: an answer is sent only when no aborted task in the function's reach is open at the device, so that it is
# a barrier: nothing of these tasks touches the medium afterwards. Outstanding R2Ts are not waited for: hosts with
# FastAbort stop answering them, and late Data-Out find no task and are discarded.
# What a function is about: ABORT TASK and ABORT TASK SET, tasks of this nexus; CLEAR TASK SET and LUN reset, the tasks of
# all nexuses at the device, also those that came by another target; target resets, all of these for every LUN. With
# TAS 0 in the control mode page the aborted tasks of others are not answered: these nexuses learn of a reset by its unit
# attention, of CLEAR TASK SET by 2F/00, once and only if they had tasks.
# Cost: of no concern; the sweep walks all open tasks, only while a function waits.
from detour.core.conn cimport conn_close_after_flush, conn_tx_queue
from detour.core.device cimport *
from detour.core.endian cimport get_be16, get_be32
from detour.core.iscsi cimport *
from detour.core.pdu cimport sn_le, sn_lt
from detour.core.scsi cimport scsi_lun_of
from detour.core.task_abort cimport device_event, preempt_sweep, target_has, task_target

cdef enum Function:
    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_TASK_SET = 4
    LUN_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8

cdef enum Response:
    RESPONSE_COMPLETE = 0
    RESPONSE_NO_TASK = 1
    RESPONSE_NO_LUN = 2
    RESPONSE_NO_REASSIGN = 4
    RESPONSE_NOT_SUPPORTED = 5

cdef enum LogoutReason:
    LOGOUT_SESSION = 0
    LOGOUT_CONNECTION = 1

cdef enum LogoutResponse:
    LOGOUT_DONE = 0
    LOGOUT_NO_CONNECTION = 1
    LOGOUT_NO_RECOVERY = 2


cdef inline bint is_logout(const Task* task) noexcept nogil:
    return task.bhs[0] & 0x3F == OP_LOGOUT_REQUEST


cdef inline uint8_t function_of(const Task* task) noexcept nogil:
    return task.bhs[1] & 0x7F


cdef bint reaches(const Task* function, const Task* task) noexcept nogil:
    # Whether the function is about this task.
    cdef uint8_t code = function_of(function)
    cdef Target* target = function.session.target
    if task.kind != TASK_COMMAND or task.state == TASK_ANSWERED:
        return False
    if is_logout(function):
        return task.session == function.session
    if code == ABORT_TASK:
        return task.session == function.session and task.itt == get_be32(function.bhs + 20)
    if code == TARGET_WARM_RESET or code == TARGET_COLD_RESET:
        return task.session.target == target or (task_target(task) != NULL and target_has(target, task_target(task)))
    if task.session == function.session or function.device == NULL or function.device == target.fallback:
        if scsi_lun_of(task.bhs + 8) != scsi_lun_of(function.bhs + 8):
            return False
        return task.session == function.session or (code != ABORT_TASK_SET and task.session.target == target)
    return code != ABORT_TASK_SET and task_target(task) == function.device


cdef bint is_earlier(const Task* function, const Task* task) noexcept nogil:
    # Commands that the host sent after the function are left alone.
    return task.session != function.session or task.immediate or sn_lt(task.cmd_sn, function.cmd_sn)


cdef uint32_t abort_reached_of(Task* function, Session* session) noexcept nogil:
    # How many tasks of one session were aborted.
    cdef Task* task = session.tasks
    cdef Task* following
    cdef uint32_t count = 0
    while task != NULL:
        following = task.next
        if not task.aborted and reaches(function, task) and is_earlier(function, task):
            count += 1
            task_abort(task)
        task = following
    return count


cdef void abort_reached(Task* function) noexcept nogil:
    cdef Target* target = <Target*>function.session.target.loop.targets
    cdef Device* device = function.device
    cdef bint tell = function_of(function) == CLEAR_TASK_SET and not is_logout(function) and device != NULL
    cdef Session* session
    while target != NULL:
        session = target.sessions
        while session != NULL:
            if abort_reached_of(function, session) > 0 and tell and session != function.session:
                if device.ops.nexus_event != NULL:
                    device.ops.nexus_event(device, &session.nexus, NEXUS_CLEARED)
            session = session.next
        target = target.next_with_sessions


cdef bint still_open(Task* function) noexcept nogil:
    cdef Target* target = <Target*>function.session.target.loop.targets
    cdef Session* session
    cdef Task* task
    while target != NULL:
        session = target.sessions
        while session != NULL:
            task = session.tasks
            while task != NULL:
                if task.aborted and task_at_device(task) and reaches(function, task):
                    return True
                task = task.next
            session = session.next
        target = target.next_with_sessions
    return False


cdef void target_nexus_event(Target* target, Device* device, int event) noexcept nogil:
    cdef Session* session = target.sessions
    if device == NULL or device.ops.nexus_event == NULL:
        return
    while session != NULL:
        device.ops.nexus_event(device, &session.nexus, event)
        session = session.next


cdef void reset_devices(Task* function) noexcept nogil:
    cdef Target* target = function.session.target
    cdef uint8_t code = function_of(function)
    cdef uint32_t addressed = scsi_lun_of(function.bhs + 8)
    cdef int lun
    if code == LUN_RESET:
        if addressed < TARGET_LUNS_MAX:             # else it is of the fallback, which may be in `luns` itself
            device_event(target.loop, target.luns[addressed], NEXUS_LUN_RESET)
    elif code == TARGET_WARM_RESET or code == TARGET_COLD_RESET:
        for lun in range(TARGET_LUNS_MAX):
            device_event(target.loop, target.luns[lun], NEXUS_TARGET_RESET)


cdef uint8_t check_function(Task* function) noexcept nogil:
    cdef uint8_t code = function_of(function)
    cdef uint32_t lun = scsi_lun_of(function.bhs + 8)
    if code == TASK_REASSIGN:
        return RESPONSE_NO_REASSIGN
    if code == ABORT_TASK:
        return check_abort_task(function)
    if code == TARGET_WARM_RESET or code == TARGET_COLD_RESET:
        return RESPONSE_COMPLETE
    if code != ABORT_TASK_SET and code != CLEAR_TASK_SET and code != LUN_RESET:
        return RESPONSE_NOT_SUPPORTED
    function.device = function.session.target.luns[lun] if lun < TARGET_LUNS_MAX else NULL
    if function.device == NULL:
        function.device = function.session.target.fallback      # which LUNs it has is not known here
    return RESPONSE_NO_LUN if function.device == NULL else RESPONSE_COMPLETE


cdef uint8_t check_abort_task(Task* function) noexcept nogil:
    # RFC 7143 11.6.1: a command that has not come, though its CmdSN is before the function's, counts as come and aborted.
    cdef Session* session = function.session
    cdef uint32_t referenced = get_be32(function.bhs + 32)
    cdef Task* placeholder
    cdef Task* task = task_find(session, get_be32(function.bhs + 20))
    cdef bint same_lun
    if task != NULL:
        same_lun = scsi_lun_of(task.bhs + 8) == scsi_lun_of(function.bhs + 8)
        return RESPONSE_COMPLETE if same_lun else RESPONSE_NO_TASK
    if not (sn_le(session.exp_cmd_sn, referenced) and sn_lt(referenced, function.cmd_sn)):
        return RESPONSE_NO_TASK
    placeholder = task_new(session, function.bhs)
    if placeholder == NULL:
        return RESPONSE_NO_TASK
    placeholder.kind = TASK_VOID
    placeholder.cmd_sn = referenced
    task_queue(placeholder)
    return RESPONSE_COMPLETE


cdef void management_begin(Session* session, const uint8_t* bhs) noexcept nogil:
    cdef Task* function = task_new(session, bhs)
    if function == NULL:
        session_reject(session, bhs, REJECT_IMMEDIATE)
        return
    function.kind = TASK_MANAGEMENT
    function.state = TASK_BEGUN
    if is_logout(function):
        function.status = check_logout(function)
        if function.status != LOGOUT_DONE:
            answer_logout(function)
            return
    else:
        function.status = check_function(function)
        if function.status != RESPONSE_COMPLETE:
            answer_function(function)
            return
        reset_devices(function)
    abort_reached(function)
    if still_open(function):
        session.target.sweep_wanted = True
    else:
        answer(function)


cdef void answer(Task* function) noexcept nogil:
    if is_logout(function):
        answer_logout(function)
    else:
        answer_function(function)


cdef void answer_function(Task* function) noexcept nogil:
    cdef Session* session = function.session
    cdef Session* other = session.target.sessions
    cdef TxPdu* pdu = session_tx(session, OP_TASK_MANAGEMENT_RESPONSE, FLAG_FINAL, function.itt)
    if pdu != NULL:
        pdu.header[2] = function.status
        session_put_sn(session, pdu.header, True)
        conn_tx_queue(&session.conn, pdu, 0)
    if function.status == RESPONSE_COMPLETE and function_of(function) == TARGET_COLD_RESET:
        while other != NULL:
            if other != session and other.conn.open:
                session_async(other, ASYNC_DROP_SESSION, 0, 0, 0)
            conn_close_after_flush(&other.conn)
            other = other.next
    task_free(function)


cdef uint8_t check_logout(Task* function) noexcept nogil:
    cdef uint8_t reason = function_of(function)
    if reason == LOGOUT_SESSION:
        return LOGOUT_DONE
    if reason != LOGOUT_CONNECTION:
        return LOGOUT_NO_RECOVERY
    if get_be16(function.bhs + 20) != function.session.conn.params.cid:
        return LOGOUT_NO_CONNECTION
    return LOGOUT_DONE


cdef void answer_logout(Task* function) noexcept nogil:
    cdef Session* session = function.session
    cdef TxPdu* pdu = session_tx(session, OP_LOGOUT_RESPONSE, FLAG_FINAL, function.itt)
    if pdu != NULL:
        pdu.header[2] = function.status
        session_put_sn(session, pdu.header, True)
        conn_tx_queue(&session.conn, pdu, 0)
    if function.status == LOGOUT_DONE:
        conn_close_after_flush(&session.conn)
    task_free(function)


cdef bint management_sweep(Target* target) noexcept nogil:
    cdef Session* session = target.sessions
    cdef Task* task
    cdef Task* following
    cdef bint waiting = preempt_sweep(target)
    while session != NULL:
        task = session.tasks
        while task != NULL:
            following = task.next
            if task.kind == TASK_MANAGEMENT and task.state == TASK_BEGUN:
                if still_open(task):
                    waiting = True
                else:
                    answer(task)
            task = following
        session = session.next
    return waiting
