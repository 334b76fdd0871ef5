# The table of rights, one byte for each operation code and a short list of service actions.
#
# Owns: that table, filled when the module is loaded and never changed.
# Invariants: an opcode that is not named conflicts with every reservation of others, so that a command which is new to
# the command table never slips through.
# Cost: one load for a command; service actions are a list of ACTIONS.
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef enum:
    ACTIONS = 9
    OPCODE_START_STOP = 0x1B
    OPCODE_PREVENT_ALLOW = 0x1E

cdef struct ActionRight:
    uint8_t opcode
    uint8_t action
    uint8_t right

cdef uint8_t rights[256]
cdef bint has_actions[256]
cdef ActionRight action_rights[ACTIONS]


cdef int fill() except -1:
    cdef dict table = {
        RIGHT_ALWAYS: [0x03, 0x12, 0x25, 0x4D, 0xA0],           # REQUEST SENSE, INQUIRY, READ CAPACITY, LOG SENSE, LUNS
        RIGHT_ALWAYS_PERSISTENT: [0x00],                        # TEST UNIT READY
        RIGHT_READ: [0x08, 0x28, 0xA8, 0x88,                    # READ
                     0x2F, 0xAF, 0x8F, 0x34, 0x90,              # VERIFY, PRE-FETCH
                     0x37, 0xB7, 0x1A, 0x5A,                    # READ DEFECT DATA, MODE SENSE
                     0x1C, 0x3C, 0x84],                         # RECEIVE DIAGNOSTIC, READ BUFFER, RECEIVE COPY RESULTS
        RIGHT_OWN: [0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F],
        RIGHT_BY_CDB: [OPCODE_START_STOP, OPCODE_PREVENT_ALLOW],
    }
    cdef list actions = [
        (0x9E, 0x10, RIGHT_ALWAYS),                             # READ CAPACITY(16)
        (0x9E, 0x12, RIGHT_READ),                               # GET LBA STATUS
        (0xA3, 0x05, RIGHT_ALWAYS),                             # REPORT IDENTIFYING INFORMATION
        (0xA3, 0x0A, RIGHT_ALWAYS),                             # REPORT TARGET PORT GROUPS
        (0xA3, 0x0B, RIGHT_ALWAYS),                             # REPORT ALIASES
        (0xA3, 0x0C, RIGHT_READ),                               # REPORT SUPPORTED OPERATION CODES
        (0xA3, 0x0D, RIGHT_READ),                               # REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
        (0xA3, 0x0E, RIGHT_ALWAYS),                             # REPORT PRIORITY
        (0xA3, 0x0F, RIGHT_ALWAYS),                             # REPORT TIMESTAMP
    ]
    cdef int index
    for right, opcodes in table.items():
        for opcode in opcodes:
            rights[<int>opcode] = <uint8_t>right
    for index, (opcode, action, right) in enumerate(actions):
        has_actions[<int>opcode] = True
        action_rights[index].opcode = <uint8_t>opcode
        action_rights[index].action = <uint8_t>action
        action_rights[index].right = <uint8_t>right
    return 0


fill()


cdef uint8_t right_of(const ScsiCommand* command) noexcept nogil:
    cdef int i
    if not has_actions[command.opcode]:
        return rights[command.opcode]
    for i in range(ACTIONS):
        if action_rights[i].opcode == command.opcode and action_rights[i].action == command.service_action:
            return action_rights[i].right
    return RIGHT_WRITE


cdef uint8_t right_by_cdb(const uint8_t* cdb) noexcept nogil:
    if cdb[0] == OPCODE_PREVENT_ALLOW:
        return RIGHT_ALWAYS if cdb[4] & 0x03 == 0 else RIGHT_WRITE
    if cdb[0] == OPCODE_START_STOP:             # passes with START and POWER CONDITION 0
        return RIGHT_ALWAYS if cdb[4] & 0xF1 == 0x01 else RIGHT_WRITE
    return RIGHT_ALWAYS
