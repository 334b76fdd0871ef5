# Writes, flushes and unmaps of a detoured volume: see write_path.pyx.
from detour.core.device cimport Device, Request
from detour.core.overlay cimport Volume
from detour.core.store cimport Io
from detour.core.types cimport *

cdef int write_place(Volume* volume, Request* request) noexcept nogil        # OK: request.data; PENDING: ready() comes
cdef void write_place_later(Volume* volume, Request* request) noexcept nogil # the same for one that waited
cdef void write_run(Volume* volume, Request* request) noexcept nogil         # the payload is in its place
cdef void write_zero(Volume* volume, Request* request) noexcept nogil        # UNMAP
cdef void flush_run(Volume* volume, Request* request) noexcept nogil
cdef void write_abort(Device* device, Request* request) noexcept nogil       # begun and never submitted
cdef void write_give_back(Volume* volume, Request* request) noexcept nogil   # its place
cdef void write_through_done(Io* io) noexcept nogil                          # end of what went straight to main
cdef void write_wait_for_room(Volume* volume, Request* request) noexcept nogil
cdef void write_room(Volume* volume) noexcept nogil                          # room may have come: who waits goes on
cdef void write_room_run(void* owner) noexcept nogil
cdef void write_throttle_run(void* owner) noexcept nogil
cdef void write_throttle_set(Volume* volume, uint64_t bytes_s, ns_t delay_ns_max) noexcept nogil
