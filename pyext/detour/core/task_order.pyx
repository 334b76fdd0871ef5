# Task attributes: the order of the commands of one nexus at one logical unit (SAM-5 8.4 to 8.8).
#
#   SIMPLE, untagged   begins when no ORDERED command is before it
#   ORDERED            begins when no command at all is before it
#   HEAD OF QUEUE      begins at once, and nothing waits longer because of it but ORDERED commands that came after it
#   ACA, reserved      refused: there is no ACA condition here (05/49/00, INVALID MESSAGE ERROR)
# A command counts from its turn of CmdSN until it is answered, or when aborted until the device gave it back.
# The task set is one for all nexuses (TST 0), but commands of two of them are not put in order: which of two open
# commands of different hosts came first neither can tell, and a host that owes data to an ORDERED command would stop all
# others.
# Owns: Task.order, .in_set, .dormant; the counters of Session. set_leave (task.pyx) takes a command out.
# Cost: two tests a command while the host sends no ORDERED ones; else a walk over the session's open tasks
# for each.
from detour.core.scsi cimport SENSE_INVALID_MESSAGE, scsi_lun_of
from detour.core.task cimport *
from detour.core.task_begin cimport task_begin

cdef enum:
    ATTRIBUTE_MASK = 0x07


cdef bint must_wait(const Task* task) noexcept nogil:
    cdef const Task* other = task.session.tasks
    if task.attribute == ATTRIBUTE_HEAD_OF_QUEUE:
        return False
    while other != NULL:
        if other.in_set and other.lun == task.lun and other.order < task.order:
            if task.attribute == ATTRIBUTE_ORDERED or other.attribute == ATTRIBUTE_ORDERED:
                return True
        other = other.next
    return False


cdef void order_begin(Task* task) noexcept nogil:
    cdef Session* session = task.session
    task.lun = scsi_lun_of(task.bhs + 8)
    task.attribute = task.bhs[1] & ATTRIBUTE_MASK
    if task.attribute >= ATTRIBUTE_ACA:
        task_fail(task, SENSE_INVALID_MESSAGE)
        task_begin(task)
        return
    session.commands_begun += 1
    task.order = session.commands_begun
    task.in_set = True
    if task.attribute == ATTRIBUTE_ORDERED:
        session.ordered_open += 1
    if session.ordered_open > 0 and must_wait(task):
        task.state = TASK_HELD
        task.dormant = True
        session.dormant += 1
    else:
        task_begin(task)


cdef Task* next_dormant(Session* session, uint64_t after) noexcept nogil:
    # The oldest that waits, of those that came later than `after`.
    cdef Task* task = session.tasks
    cdef Task* oldest = NULL
    while task != NULL:
        if task.dormant and task.order > after and (oldest == NULL or task.order < oldest.order):
            oldest = task
        task = task.next
    return oldest


cdef bint order_sweep(Target* target) noexcept nogil:
    cdef Session* session = target.sessions
    cdef Task* task
    cdef uint64_t order
    cdef bint waiting = False
    while session != NULL:
        task = next_dormant(session, 0) if session.dormant > 0 and session.conn.open else NULL
        while task != NULL:
            order = task.order
            if target.dropping or must_wait(task):
                waiting = True
            else:
                task.dormant = False
                session.dormant -= 1
                task_begin(task)
            task = next_dormant(session, order)
        session = session.next
    return waiting
