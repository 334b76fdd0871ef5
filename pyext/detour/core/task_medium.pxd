# Target side, fourth layer: WRITE, WRITE AND VERIFY, VERIFY.
from detour.core.task cimport *

cdef void begin_write_command(Task* task) noexcept nogil        # and WRITE AND VERIFY
cdef void begin_verify(Task* task) noexcept nogil
# open_place of commands whose data go straight to their place at the device: parts[0] is the WRITE.
cdef int write_open(Task* task) noexcept nogil
# A turn of the session's compare buffer has come (Session.compare_work).
cdef void compare_next(void* owner) noexcept nogil
