# Room during the copy (DESIGN.md section 2, the ladder): the oldest entries of the journal go to main as soon as the
# copy holds the PIT content of their LBAs; their chunks are copied first.
from detour.core.overlay cimport Volume

cdef void evictor_init(Volume* volume) noexcept nogil
cdef void evictor_stop(Volume* volume) noexcept nogil           # the volume is being closed; it is idle
cdef void evictor_kick(Volume* volume) noexcept nogil           # the level of the journal, or what is held, has changed
cdef bint evictor_idle(const Volume* volume) noexcept nogil
