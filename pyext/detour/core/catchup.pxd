# Catch-up (S501-S505): rounds that flush the snapshot duplicate to main in LBA order, in merged runs, while I/O goes on.
from detour.core.overlay cimport Volume
from detour.core.reactor cimport Command

cdef void catchup_init(Volume* volume) noexcept nogil
cdef void catchup_stop(Volume* volume) noexcept nogil            # the volume is being closed; no round runs
# Begins a round; `command` (may be NULL) is answered at its end: bytes, runs, ns. E_BUSY while one runs.
cdef int catchup_round(Volume* volume, Command* command) noexcept nogil
