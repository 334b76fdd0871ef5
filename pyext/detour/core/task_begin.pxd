# Target side, fifth layer: begins commands.
from detour.core.task cimport *

# Begins a command whose turn has come (WAITING or HELD -> BEGUN).
cdef void task_begin(Task* task) noexcept nogil
