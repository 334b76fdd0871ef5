# The reservations of one device: RESERVE and RELEASE (SPC-2), PERSISTENT RESERVE IN and OUT (SPC-4 5.13, 6.15, 6.16).
# A pure state machine over the device's NexusTable: no loop, no store. The device asks `reservations_admit` for each
# command and hands the commands that `reservations_own` names to `reservations_command`.
#
# A change that must outlive power (APTPL) is made in two steps: reservations_command answers PENDING, the owner makes
# reservations_dump durable, then calls reservations_commit, or reservations_revert when that failed. Until then the old
# state holds, and the owner gives no other command to reservations_command (`busy`) but PERSISTENT RESERVE IN.
from detour.core.device cimport Nexus
from detour.core.nexus cimport NexusTable
from detour.core.registrants cimport REGISTRANTS_MAX, RESERVATION_ANSWER_BYTES, ReservationState
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef struct ReservationAnswer:
    uint8_t* data               # RESERVATION_ANSWER_BYTES of room, zeroed (PERSISTENT RESERVE IN; else may be NULL)
    uint32_t data_bytes         # as cut by the allocation length
    uint32_t sense              # not 0: CHECK CONDITION with it
    uint8_t scsi_status
    bint aborts                 # Request.aborts: nexuses have been marked with abort_wanted

cdef struct ReservationEffect:
    uint32_t attention          # Sense to queue, or 0
    bint dropped                # its registration ends
    bint aborted                # its tasks are to be aborted

cdef struct Reservations:
    bint restricting            # a reservation of any kind is held: admit must look. 0 is the usual case
    bint durable                # APTPL is offered (PTPL_C)
    bint busy                   # `next_state` waits for reservations_commit
    NexusTable* nexuses
    const void* reserver        # the nexus that holds the device by RESERVE(6/10), or NULL
    ReservationState* state
    ReservationState* next_state
    ReservationEffect* effects  # for each registrant of `state`, at the commit

cdef int reservations_init(Reservations* reservations, NexusTable* nexuses, bint durable) noexcept nogil   # OK, E_NOMEM
cdef void reservations_free(Reservations* reservations) noexcept nogil
# What happened to a nexus, after nexus_event has told the table: ends SPC-2 reservations, finds registrations again.
cdef void reservations_event(Reservations* reservations, const Nexus* nexus, int event) noexcept nogil
# True: the command conflicts with a reservation (RESERVATION CONFLICT). Cheap when none is held.
cdef bint reservations_conflict(Reservations* reservations, const void* nexus, const ScsiCommand* command) noexcept nogil
# The same for START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL, whose right is told by bits of the CDB:
# reservations_conflict lets them pass, the device asks here when it executes a command (others never conflict here).
cdef bint reservations_conflict_cdb(Reservations* reservations, const void* nexus, const uint8_t* cdb) noexcept nogil
# Both halves of `admit`: the unit attention first, then the conflict. 0 and STATUS_GOOD: go on.
cdef uint32_t reservations_admit(Reservations* reservations, const void* nexus, const ScsiCommand* command,
                                 uint8_t* scsi_status) noexcept nogil
# RESERVE and RELEASE (6, 10), PERSISTENT RESERVE IN and OUT: executed here.
cdef bint reservations_own(const ScsiCommand* command) noexcept nogil
# OK, or PENDING as told above. `parameters`: the data-out that came.
cdef int reservations_command(Reservations* reservations, const Nexus* nexus, const ScsiCommand* command,
                              const uint8_t* cdb, const uint8_t* parameters, uint32_t parameter_bytes,
                              ReservationAnswer* answer) noexcept nogil
# Puts next_state in force, queues the unit attentions. True: nexuses were marked with abort_wanted (Request.aborts).
cdef bint reservations_commit(Reservations* reservations) noexcept nogil
cdef void reservations_revert(Reservations* reservations) noexcept nogil
# The state to make durable (next_state while busy); answers its length. `out` has DUMP_BYTES_MAX of room.
cdef uint32_t reservations_dump(const Reservations* reservations, uint8_t* out) noexcept nogil
# At the start, before any nexus: from a dump. E_CORRUPT, E_UNSUPPORTED (another version).
cdef int reservations_load(Reservations* reservations, const uint8_t* data, uint32_t data_bytes) noexcept nogil
# From the data of another disk's READ FULL STATUS (a gateway mirrors its main): E_PROTOCOL when it makes no sense,
# E_FULL when there are more than REGISTRANTS_MAX. TransportIDs that are not iSCSI's initiator ports are left out.
cdef int reservations_load_status(Reservations* reservations, const uint8_t* data, uint32_t data_bytes) noexcept nogil
