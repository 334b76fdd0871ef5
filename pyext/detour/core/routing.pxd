# What the target side calls, by phase: see routing.pyx.
from detour.core.device cimport Device, Request
from detour.core.journal cimport Journal
from detour.core.overlay cimport Volume
from detour.core.reactor cimport Loop
from detour.core.store cimport Store

# The volume is in phase PASS afterwards. `journal` may be NULL: then it never leaves it.
cdef int routing_init(Volume* volume, Loop* loop, Store* main, Journal* journal) noexcept nogil
cdef void routing_free(Volume* volume) noexcept nogil
cdef int routing_begin_write(Device* device, Request* request) noexcept nogil
cdef void routing_submit(Volume* volume, Request* request) noexcept nogil    # all but COMMAND
cdef void routing_resume_held(Volume* volume) noexcept nogil     # after a phase change: what waited goes on, in order
cdef void routing_abort_held(Volume* volume) noexcept nogil      # the host is gone: nobody waits for an answer
cdef void routing_tick(Volume* volume) noexcept nogil
