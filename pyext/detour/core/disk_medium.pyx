# Readiness, removable medium, diagnostics and defect lists of a plain disk.
#
# Owns: DiskState.ejected, NexusEntry.prevents_removal.
# Invariants: a medium is ejected only where there is one, it is removable, and no nexus prevents it. The content stays
# with the store: what is ejected comes back as it was.
# Cost: disk_not_ready is one load for each command; the rest is rare.
from detour.core.disk_identity cimport EFFECT_FLUSH, EFFECT_LOADED, answer_cut
from detour.core.endian cimport get_be16
from detour.core.scsi cimport *

cdef enum:
    START = 0x01                # START STOP UNIT, byte 4
    LOEJ = 0x02
    NO_FLUSH = 0x04
    POWER_START_VALID = 0


# ---- readiness -------------------------------------------------------------------------------------------------------

cdef uint32_t disk_not_ready(const DiskState* state) noexcept nogil:
    return SENSE_MEDIUM_NOT_PRESENT if state.ejected else SENSE_NONE


cdef bint disk_needs_medium(const ScsiCommand* command) noexcept nogil:
    cdef uint8_t opcode = command.opcode
    if command.cls != SCSI_INFO and command.cls != SCSI_REPORT_OPCODES:
        return True
    if opcode == 0x9E:
        return command.service_action == 0x10       # READ CAPACITY(16)
    # TEST UNIT READY, SEND DIAGNOSTIC, READ CAPACITY(10), READ DEFECT DATA
    return opcode == 0x00 or opcode == 0x1D or opcode == 0x25 or opcode == 0x37 or opcode == 0xB7


cdef bint removal_prevented(const NexusTable* nexuses) noexcept nogil:
    cdef const NexusEntry* entry = nexuses.entries
    while entry != NULL and not entry.prevents_removal:
        entry = entry.next
    return entry != NULL


cdef void disk_start_stop(const DiskView* view, const NexusTable* nexuses, const uint8_t* cdb,
                          InfoAnswer* answer) noexcept nogil:
    # A disk without moving parts is ready in every power condition, also when it is stopped: several hosts share it, and
    # one that shuts down stops it for itself only. A stop makes stable what was written, unless it is told not to.
    cdef DiskState* state = view.state
    cdef uint8_t flags = cdb[4]
    cdef bint loads = flags & LOEJ and flags & START and state.ejected
    cdef bint ejects = flags & LOEJ and not flags & START and not state.ejected
    if flags >> 4 != POWER_START_VALID:
        return
    if flags & LOEJ and not view.identity.removable:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
    elif (loads or ejects) and removal_prevented(nexuses):
        answer.sense = SENSE_REMOVAL_PREVENTED      # the door is locked both ways
    elif loads:
        state.ejected = False
        answer.effects |= EFFECT_LOADED
    elif flags & START and state.ejected:
        answer.sense = SENSE_MEDIUM_NOT_PRESENT
    elif not flags & START:
        state.ejected = state.ejected or ejects
        if not flags & NO_FLUSH:
            answer.effects |= EFFECT_FLUSH


cdef void disk_prevent_allow(const DiskView* view, NexusEntry* entry, const uint8_t* cdb,
                             InfoAnswer* answer) noexcept nogil:
    if cdb[4] & 0x02:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB       # what a medium changer would be told
    elif entry != NULL:
        entry.prevents_removal = (cdb[4] & 0x01) != 0


cdef void disk_allow_removal(NexusTable* nexuses) noexcept nogil:
    cdef NexusEntry* entry = nexuses.entries
    while entry != NULL:
        entry.prevents_removal = False
        entry = entry.next


# ---- diagnostics, defects --------------------------------------------------------------------------------------------

cdef void disk_send_diagnostic(const ScsiCommand* command, const uint8_t* cdb, const uint8_t* parameters,
                               uint32_t parameter_bytes, InfoAnswer* answer) noexcept nogil:
    # SPC-4 6.42: the default self-test, which finds nothing wrong, or the page that asks which pages there are.
    cdef bint self_test = cdb[1] & 0x04
    if cdb[1] & 0xE0 or (self_test and command.length_bytes != 0):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
    elif self_test or command.length_bytes == 0:
        return
    elif not cdb[1] & 0x10:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB           # PF clear: a vendor's own format
    elif parameter_bytes < 4 or parameter_bytes < 4 + <uint32_t>get_be16(parameters + 2):
        answer.sense = SENSE_PARAMETER_LIST_LENGTH
    elif parameters[0] != 0 or get_be16(parameters + 2) != 0:
        answer.sense = SENSE_INVALID_FIELD_IN_PARAMETERS


cdef void disk_receive_diagnostic(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    # SPC-4 6.28: the only page is the list of pages, asked for now or by the last SEND DIAGNOSTIC.
    if cdb[2] != 0:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    answer.data[3] = 1
    answer_cut(answer, 5, command.length_bytes)


cdef void disk_defect_data(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    # SBC-3 5.15, 5.16: both lists are empty, in whatever address format.
    cdef bint ten = cdb[0] == 0x37
    cdef uint8_t asked = (cdb[2] if ten else cdb[1]) & 0x1F
    cdef uint8_t form = asked & 0x07
    if form not in (0, 3, 4, 5):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    answer.data[1] = asked
    answer_cut(answer, 4 if ten else 8, command.length_bytes)
