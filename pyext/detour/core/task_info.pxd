# Target side, fourth layer: what the device answers itself (COMMANDs), and LUNs that are not here.
from detour.core.task cimport *
from detour.core.types cimport *

cdef void begin_info(Task* task) noexcept nogil
cdef void begin_elsewhere(Task* task) noexcept nogil    # REPORT LUNS, and everything for a LUN without a device
# An answer of the target side's own: zeroed room (NULL: the task was told BUSY), then how much of it to send, as cut by
# the allocation length.
cdef uint8_t* own_answer(Task* task) noexcept nogil
cdef void send_own(Task* task, uint32_t length_bytes) noexcept nogil
