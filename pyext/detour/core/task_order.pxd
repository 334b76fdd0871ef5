# Target side: the order of commands that their task attributes ask for (SAM-5 8.4).
from detour.core.task cimport *

cdef void order_begin(Task* task) noexcept nogil                # begins it, or keeps it until its turn comes
cdef bint order_sweep(Target* target) noexcept nogil            # begins what need not wait any more; True: some still wait
