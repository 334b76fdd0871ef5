# Target side, fourth layer: COMPARE AND WRITE, ORWRITE, WRITE ATOMIC.
from detour.core.task cimport *

cdef void begin_compare_and_write(Task* task) noexcept nogil
cdef void begin_orwrite(Task* task) noexcept nogil
cdef void begin_write_atomic(Task* task) noexcept nogil
