# The reservation commands of a plain disk: one change at a time, each answered only when what must outlive power is
# stored (EVENT_RESERVATIONS to Python, DiskHandle.reservations_stored back).
from detour.core.device cimport Request, request_fn
from detour.core.nexus cimport NexusTable
from detour.core.reactor cimport Loop
from detour.core.reservation cimport Reservations
from detour.core.types cimport *

cdef struct ReserveDesk:
    Reservations reservations
    Loop* loop
    uint64_t id                 # sender of the events
    request_fn finish           # told of each request that has its answer; called inside of reserve_run, reserve_stored
    Request* storing            # a PERSISTENT RESERVE OUT whose state is being stored
    Request* waiting_head       # what changes reservations and came meanwhile
    Request* waiting_tail

# E_NOMEM. `durable`: Python listens to EVENT_RESERVATIONS of this id, so that APTPL is offered.
cdef int reserve_init(ReserveDesk* desk, NexusTable* nexuses, Loop* loop, uint64_t id, request_fn finish,
                      bint durable) noexcept nogil
cdef void reserve_free(ReserveDesk* desk) noexcept nogil
# RESERVE, RELEASE, PERSISTENT RESERVE IN and OUT. request.buffer, when there is one, has request.blocks bytes (blocks is
# free in a COMMAND) and goes back to the pool with the request.
cdef void reserve_run(ReserveDesk* desk, Request* request) noexcept nogil
# What became of the state that the last event gave. E_INVALID: no one waits for it.
cdef int reserve_stored(ReserveDesk* desk, int status) noexcept nogil
