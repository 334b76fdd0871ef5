# Target side, fourth layer: WRITE SAME, UNMAP.
from detour.core.task cimport *

cdef void begin_same(Task* task) noexcept nogil
cdef void begin_unmap(Task* task) noexcept nogil
