# Target side, fourth layer: what each SCSI command does.
from detour.core.task cimport *

# Begins a command whose turn has come (WAITING or HELD -> BEGUN).
cdef void task_begin(Task* task) noexcept nogil
# A turn of the session's compare buffer has come (Session.compare_work).
cdef void compare_next(void* owner) noexcept nogil
