# Target side, fourth layer: EXTENDED COPY(LID1) within the target, RECEIVE COPY RESULTS(LID1).
from detour.core.task cimport *

cdef void begin_copy(Task* task) noexcept nogil
cdef void begin_copy_results(Task* task) noexcept nogil
