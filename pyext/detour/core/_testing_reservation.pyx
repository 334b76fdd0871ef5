# Opens nexus.pyx, reservation.pyx, registrants.pyx and rights.pyx to the tests: one device's table and reservations, with
# nexuses that are made here. Built always, used by tests only.
#
# Owns: the table, the reservations and the nexuses; everything runs in the thread of the caller.
cimport cython
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from detour.core.device cimport NEXUS_LOGIN, Nexus
from detour.core.nexus cimport *
from detour.core.registrants cimport (DUMP_BYTES_MAX, RESERVATION_ANSWER_BYTES, TransportId, get_transport_id)
from detour.core.reservation cimport *
from detour.core.rights cimport RIGHT_BY_CDB, right_by_cdb, right_of
from detour.core.scsi cimport ScsiCommand, scsi_decode
from detour.core.types cimport *


cdef int decode(bytes cdb, uint8_t* room, ScsiCommand* command) except -1:
    memset(room, 0, 32)
    memcpy(room, <const char*>cdb, len(cdb) if len(cdb) < 32 else 32)
    if scsi_decode(room, 16, command) < 0:
        command.opcode = room[0]        # unknown to the table: the rights still know it
    return 0


def right(bytes cdb) -> int:
    """Right of a CDB; what is told by its bits is looked up."""
    cdef uint8_t room[32]
    cdef ScsiCommand command
    decode(cdb, room, &command)
    return right_by_cdb(room) if right_of(&command) == RIGHT_BY_CDB else right_of(&command)


def transport_id(bytes data):
    """(length, name, ISID or None), or None."""
    cdef TransportId identity
    cdef uint8_t* copy = <uint8_t*>malloc(len(data) if data else 1)      # of exactly that length, for the sanitizer
    cdef uint32_t length
    memcpy(copy, <const char*>data, len(data))
    length = get_transport_id(copy, <uint32_t>len(data), &identity)
    free(copy)
    if length == 0:
        return None
    return length, (<bytes>identity.initiator_name).decode(), identity.isid[:6] if identity.has_isid else None


@cython.final
cdef class Bench:
    """A device with nexuses by number. `nexuses`: (initiator name, ISID)."""
    cdef NexusTable table
    cdef Reservations reservations
    cdef Nexus* nexuses
    cdef uint32_t count

    def __cinit__(self, list nexuses, bint durable=False):
        cdef uint32_t i
        cdef bytes name
        nexus_table_init(&self.table)
        self.nexuses = <Nexus*>calloc(len(nexuses), sizeof(Nexus))
        self.count = <uint32_t>len(nexuses)
        if self.nexuses == NULL or reservations_init(&self.reservations, &self.table, durable) < 0:
            raise MemoryError("no memory for reservations")
        for i, (text, isid) in enumerate(nexuses):
            name = text.encode()[:223]
            memcpy(self.nexuses[i].initiator_name, <const char*>name, len(name))
            memcpy(self.nexuses[i].isid, <const char*>(<bytes>isid), 6)

    def __dealloc__(self):
        reservations_free(&self.reservations)
        nexus_table_free(&self.table)
        free(self.nexuses)

    cdef Nexus* nexus(self, uint32_t number) except NULL:
        if number >= self.count:
            raise IndexError(number)
        return &self.nexuses[number]

    def event(self, uint32_t number, int event) -> bool:
        """Whether the table knows the nexus afterwards."""
        cdef Nexus* nexus = self.nexus(number)
        cdef NexusEntry* entry = nexus_event(&self.table, nexus, event)
        reservations_event(&self.reservations, nexus, event)
        return entry != NULL

    def login_all(self) -> int:
        """Logs all in and takes what each is told; answers how many the table knows."""
        cdef uint32_t i
        for i in range(self.count):
            self.event(i, NEXUS_LOGIN)
            attention_take(&self.table, &self.nexuses[i])
        return self.table.count

    def attend(self, uint32_t number, uint32_t sense) -> None:
        attention_add(&self.table, nexus_find(&self.table, self.nexus(number)), sense)

    def attend_others(self, uint32_t but, uint32_t sense) -> None:
        attention_others(&self.table, self.nexus(but), sense)

    def attentions(self, uint32_t number) -> list:
        """Takes all that is pending."""
        cdef Nexus* nexus = self.nexus(number)
        cdef uint32_t sense = attention_take(&self.table, nexus)
        cdef list found = []
        while sense != 0:
            found.append(sense)
            sense = attention_take(&self.table, nexus)
        return found

    @property
    def pending(self) -> int:
        return self.table.pending

    @property
    def restricting(self) -> bool:
        return self.reservations.restricting

    def admit(self, uint32_t number, bytes cdb) -> tuple:
        """(status, sense)."""
        cdef uint8_t room[32]
        cdef ScsiCommand command
        cdef uint8_t status = 0
        cdef uint32_t sense
        decode(cdb, room, &command)
        sense = reservations_admit(&self.reservations, self.nexus(number), &command, &status)
        if status == 0 and reservations_conflict_cdb(&self.reservations, self.nexus(number), room):
            status = 0x18
        return status, sense

    def command(self, uint32_t number, bytes cdb, bytes parameters=b"") -> tuple:
        """(status, sense, data, whether it waits for commit, whether nexuses are to be aborted)."""
        cdef uint8_t room[32]
        cdef ScsiCommand command
        cdef ReservationAnswer answer
        cdef uint8_t* copy = <uint8_t*>malloc(len(parameters) if parameters else 1)
        cdef int status
        decode(cdb, room, &command)
        memset(&answer, 0, sizeof(answer))
        memcpy(copy, <const char*>parameters, len(parameters))
        answer.data = <uint8_t*>calloc(1, RESERVATION_ANSWER_BYTES)
        status = reservations_command(&self.reservations, self.nexus(number), &command, room, copy,
                                      <uint32_t>len(parameters), &answer)
        found = (answer.scsi_status, answer.sense, answer.data[:answer.data_bytes], status == PENDING, answer.aborts)
        free(answer.data)
        free(copy)
        return found

    def aborted(self) -> list:
        """Numbers of the nexuses that are marked; takes the marks away."""
        cdef uint32_t i
        cdef list found = []
        for i in range(self.count):
            if self.nexuses[i].abort_wanted:
                found.append(i)
            self.nexuses[i].abort_wanted = False
        return found

    def commit(self) -> bool:
        return reservations_commit(&self.reservations)

    def revert(self) -> None:
        reservations_revert(&self.reservations)

    def dump(self) -> bytes:
        cdef uint8_t* room = <uint8_t*>malloc(DUMP_BYTES_MAX)
        cdef bytes found = room[:reservations_dump(&self.reservations, room)]
        free(room)
        return found

    def load(self, bytes data) -> int:
        return reservations_load(&self.reservations, <const uint8_t*><const char*>data, <uint32_t>len(data))

    def load_status(self, bytes data) -> int:
        cdef uint8_t* copy = <uint8_t*>malloc(len(data) if data else 1)
        cdef int status
        memcpy(copy, <const char*>data, len(data))
        status = reservations_load_status(&self.reservations, copy, <uint32_t>len(data))
        free(copy)
        return status
