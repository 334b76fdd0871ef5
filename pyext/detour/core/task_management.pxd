# Target side, beside task_begin: task management functions and Logout, which end tasks and are answered when the device
# has ended them too.
from detour.core.task cimport *

# A Task Management Function Request or Logout Request whose turn has come.
cdef void management_begin(Session* session, const uint8_t* bhs) noexcept nogil
# Answers those that wait for nothing any more; True: some still wait.
cdef bint management_sweep(Target* target) noexcept nogil
cdef void target_nexus_event(Target* target, Device* device, int event) noexcept nogil     # for each live session
