# What is aborted on behalf of another command or nexus: tasks at one device, over all targets and sessions of the loop.
#
# Owns nothing. A device may be a LUN of several targets (two paths to one disk), so that "all tasks of a logical unit" is
# asked by device, not by LUN number; the loop's chain of targets with sessions finds them.
# Invariant: an answer that stands for an abort goes out only when no aborted task is open at the device.
# Cost: of no concern; walks over all open tasks, only while something is aborted.
from detour.core.device cimport Device
from detour.core.scsi cimport scsi_lun_of
from detour.core.task cimport *


cdef Device* task_target(const Task* task) noexcept nogil:
    cdef Target* target = task.session.target
    cdef uint32_t lun
    if task.device != NULL:
        return task.device
    lun = scsi_lun_of(task.bhs + 8)
    if lun < TARGET_LUNS_MAX and target.luns[lun] != NULL:
        return target.luns[lun]
    return target.fallback


cdef bint target_has(const Target* target, const Device* device) noexcept nogil:
    cdef int lun
    for lun in range(TARGET_LUNS_MAX):
        if target.luns[lun] == device:
            return True
    return target.fallback == device


cdef void device_event(Loop* loop, Device* device, int event) noexcept nogil:
    cdef Target* target = <Target*>loop.targets
    cdef Session* session
    if device == NULL or device.ops.nexus_event == NULL:
        return
    while target != NULL:
        session = target.sessions if target_has(target, device) else NULL
        while session != NULL:
            device.ops.nexus_event(device, &session.nexus, event)
            session = session.next
        target = target.next_with_sessions


# ---- PREEMPT AND ABORT -----------------------------------------------------------------------------------------------

cdef bint copies_at(const Task* task, const Device* device) noexcept nogil:
    # An EXTENDED COPY that another logical unit was asked for reads or writes this one.
    return task.copy != NULL and (task.copy.source == device or task.copy.destination == device)


cdef bint has_request_at(const Task* task, const Device* device) noexcept nogil:
    cdef int i
    for i in range(PARTS):
        if task.parts[i].state == PART_SUBMITTED and task.parts[i].request.device == device:
            return True
    return False


cdef void abort_session_at(Session* session, const Device* device, const Task* but) noexcept nogil:
    cdef Task* task = session.tasks
    cdef Task* following
    while task != NULL:
        following = task.next
        if task.kind == TASK_COMMAND and task.state != TASK_ANSWERED and not task.aborted and task != but:
            if task_target(task) == device or copies_at(task, device):
                task_abort(task)
        task = following


cdef bint aborting_at(Loop* loop, const Device* device) noexcept nogil:
    cdef Target* target = <Target*>loop.targets
    cdef Session* session
    cdef Task* task
    while target != NULL:
        session = target.sessions
        while session != NULL:
            task = session.tasks
            while task != NULL:
                if task.aborted and task.kind == TASK_COMMAND and has_request_at(task, device):
                    return True
                task = task.next
            session = session.next
        target = target.next_with_sessions
    return False


cdef bint preempt_begin(Task* task) noexcept nogil:
    cdef Loop* loop = task.session.target.loop
    cdef Target* target = <Target*>loop.targets
    cdef Session* session
    while target != NULL:
        session = target.sessions
        while session != NULL:
            if session.nexus.abort_wanted:
                session.nexus.abort_wanted = False
                abort_session_at(session, task.device, task)
            session = session.next
        target = target.next_with_sessions
    if task.aborted or not aborting_at(loop, task.device):
        return False
    task.preempting = True
    task.session.target.sweep_wanted = True
    return True


cdef bint preempt_sweep(Target* target) noexcept nogil:
    cdef Session* session = target.sessions
    cdef Task* task
    cdef Task* following
    cdef bint waiting = False
    while session != NULL:
        task = session.tasks
        while task != NULL:
            following = task.next
            if task.preempting and aborting_at(target.loop, task.device):
                waiting = True
            elif task.preempting:
                task.preempting = False
                task.parts[0].finished(&task.parts[0])
            task = following
        session = session.next
    return waiting
