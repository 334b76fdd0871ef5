# The desk where a disk's reservation commands are done.
#
# Owns: the disk's reservations, and the requests from reserve_run until they are finished.
# Invariants: at most one change is being stored; PERSISTENT RESERVE IN passes it and tells the state in force, all other
# reservation commands wait behind it in the order they came. A change that cannot be stored is refused and leaves no
# trace, as a disk does whose memory for it fails (HARDWARE ERROR, INTERNAL TARGET FAILURE).
# Cost: of no concern; these commands are rare.
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from detour.core.device cimport Nexus, Request
from detour.core.nexus cimport NexusTable
from detour.core.pool cimport pool_get
from detour.core.reactor cimport EVENT_RESERVATIONS, Command, event_new, event_post
from detour.core.registrants cimport DUMP_BYTES_MAX, RESERVATION_ANSWER_BYTES
from detour.core.reservation cimport *
from detour.core.scsi cimport *
from detour.core.types cimport *

cdef enum:
    OPCODE_PERSISTENT_IN = 0x5E


cdef int reserve_init(ReserveDesk* desk, NexusTable* nexuses, Loop* loop, uint64_t id, request_fn finish,
                      bint durable) noexcept nogil:
    memset(desk, 0, sizeof(ReserveDesk))
    desk.loop = loop
    desk.id = id
    desk.finish = finish
    return reservations_init(&desk.reservations, nexuses, durable)


cdef void reserve_free(ReserveDesk* desk) noexcept nogil:
    reservations_free(&desk.reservations)


cdef void wait_behind(ReserveDesk* desk, Request* request) noexcept nogil:
    request.next = NULL
    if desk.waiting_tail != NULL:
        desk.waiting_tail.next = request
    else:
        desk.waiting_head = request
    desk.waiting_tail = request


cdef void reserve_run(ReserveDesk* desk, Request* request) noexcept nogil:
    if request.command.opcode == OPCODE_PERSISTENT_IN:
        request.buffer = pool_get(&desk.loop.buffers, RESERVATION_ANSWER_BYTES)
        if request.buffer == NULL:
            request.scsi_status = STATUS_BUSY
            desk.finish(request)
            return
        request.blocks = RESERVATION_ANSWER_BYTES
        memset(request.buffer, 0, RESERVATION_ANSWER_BYTES)
    elif desk.storing != NULL:
        wait_behind(desk, request)
        return
    execute(desk, request)


cdef void execute(ReserveDesk* desk, Request* request) noexcept nogil:
    cdef ReservationAnswer answer
    cdef int status
    memset(&answer, 0, sizeof(answer))
    answer.data = request.buffer
    status = reservations_command(&desk.reservations, <const Nexus*>request.nexus, request.command, request.cdb,
                                  request.data, <uint32_t>request.data_bytes, &answer)
    request.data = NULL
    request.data_bytes = 0
    if status == PENDING:
        store(desk, request)
        return
    request.scsi_status = answer.scsi_status
    request.aborts = answer.aborts
    if answer.sense != 0:
        refuse(request, answer.sense)
    elif answer.data_bytes > 0:
        request.data = request.buffer
        request.data_bytes = answer.data_bytes
    desk.finish(request)


cdef inline void refuse(Request* request, uint32_t sense) noexcept nogil:
    request.scsi_status = STATUS_CHECK_CONDITION
    request.sense_bytes = <uint16_t>scsi_sense(request.sense, sense, False, 0)


# ---- changes that must outlive power ---------------------------------------------------------------------------------

cdef void store(ReserveDesk* desk, Request* request) noexcept nogil:
    cdef Command* event = event_new(desk.loop, EVENT_RESERVATIONS, desk.id)
    cdef void* data = malloc(DUMP_BYTES_MAX)
    desk.storing = request
    if event == NULL or data == NULL:
        free(event)
        free(data)
        end_storing(desk, E_NOMEM)
        return
    event.data = data
    event.data_bytes = reservations_dump(&desk.reservations, <uint8_t*>data)
    event_post(desk.loop, event)


cdef void end_storing(ReserveDesk* desk, int status) noexcept nogil:
    cdef Request* request = desk.storing
    desk.storing = NULL
    if status >= 0:
        request.aborts = reservations_commit(&desk.reservations)
    else:
        reservations_revert(&desk.reservations)
        refuse(request, SENSE_HARDWARE_FAILURE)
    desk.finish(request)


cdef int reserve_stored(ReserveDesk* desk, int status) noexcept nogil:
    cdef Request* request
    if desk.storing == NULL:
        return E_INVALID
    end_storing(desk, status)
    while desk.storing == NULL and desk.waiting_head != NULL:
        request = desk.waiting_head
        desk.waiting_head = request.next
        if desk.waiting_head == NULL:
            desk.waiting_tail = NULL
        request.next = NULL
        execute(desk, request)
    return OK
