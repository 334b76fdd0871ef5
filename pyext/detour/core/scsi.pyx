# CDBs and sense data (SPC-4, SBC-3): one table from (opcode, service action) to class, length and place of the fields.
#
# Owns: a table of 256 rows and a short list of service actions, filled when the module is loaded and never changed.
# Invariants: a row with class SCSI_UNKNOWN is an opcode that no one here knows; fields that a CDB does not have stay 0.
# Cost: one table look-up and a few loads for each command; service actions are a list of at most ROWS_MAX.
from libc.string cimport memcpy, memset

from detour.core.endian cimport get_be16, get_be24, get_be32, get_be64
from detour.core.types cimport *

cdef enum Layout:               # where a CDB keeps its address and length
    LAYOUT_NONE = 0
    LAYOUT_RW6 = 1              # 21-bit LBA, byte 4 (0 is 256 blocks)
    LAYOUT_RW10 = 2             # LBA 2-5, blocks 7-8
    LAYOUT_RW12 = 3             # LBA 2-5, blocks 6-9
    LAYOUT_RW16 = 4             # LBA 2-9, blocks 10-13
    LAYOUT_RW16_SHORT = 5       # LBA 2-9, blocks 12-13 (WRITE ATOMIC)
    LAYOUT_COMPARE = 6          # LBA 2-9, blocks 13
    LAYOUT_STATUS16 = 7         # LBA 2-9, allocation length 10-13
    LAYOUT_LENGTH_4 = 8         # one byte at 4
    LAYOUT_LENGTH_3_16 = 9      # two bytes at 3
    LAYOUT_LENGTH_7_16 = 10     # two bytes at 7
    LAYOUT_LENGTH_6_24 = 11     # three bytes at 6
    LAYOUT_LENGTH_5_32 = 12     # four bytes at 5
    LAYOUT_LENGTH_6_32 = 13     # four bytes at 6
    LAYOUT_LENGTH_10_32 = 14    # four bytes at 10

cdef enum:
    DIRECTION_NONE = 0
    DIRECTION_IN = 1
    DIRECTION_OUT = 2
    ACTIONS_MAX = 48
    SENSE_FIXED_BYTES = 18
    SENSE_DESCRIBED_BYTES = 48
    SENSE_FIXED_CURRENT = 0x70
    LUN_NONE = 0xFFFFFFFF

cdef struct Row:
    uint8_t cls
    uint8_t cdb_bytes
    uint8_t layout
    uint8_t direction
    bint has_actions            # byte 1, bits 0-4 is a service action; rows of `actions` hold the rest

cdef struct ActionRow:
    uint8_t opcode
    uint8_t action
    Row row

cdef Row rows[256]
cdef ActionRow actions[ACTIONS_MAX]
cdef uint32_t actions_count = 0


cdef void add(int opcode, int cls, int cdb_bytes, int layout, int direction) noexcept nogil:
    rows[opcode].cls = <uint8_t>cls
    rows[opcode].cdb_bytes = <uint8_t>cdb_bytes
    rows[opcode].layout = <uint8_t>layout
    rows[opcode].direction = <uint8_t>direction


cdef void add_action(int opcode, int action, int cls, int cdb_bytes, int layout, int direction) noexcept nogil:
    global actions_count
    cdef ActionRow* item = &actions[actions_count]
    actions_count += 1
    rows[opcode].has_actions = True
    item.opcode = <uint8_t>opcode
    item.action = <uint8_t>action
    item.row.cls = <uint8_t>cls
    item.row.cdb_bytes = <uint8_t>cdb_bytes
    item.row.layout = <uint8_t>layout
    item.row.direction = <uint8_t>direction


cdef void fill_medium() noexcept nogil:
    add(0x08, SCSI_READ, 6, LAYOUT_RW6, DIRECTION_IN)
    add(0x28, SCSI_READ, 10, LAYOUT_RW10, DIRECTION_IN)
    add(0xA8, SCSI_READ, 12, LAYOUT_RW12, DIRECTION_IN)
    add(0x88, SCSI_READ, 16, LAYOUT_RW16, DIRECTION_IN)
    add(0x0A, SCSI_WRITE, 6, LAYOUT_RW6, DIRECTION_OUT)
    add(0x2A, SCSI_WRITE, 10, LAYOUT_RW10, DIRECTION_OUT)
    add(0xAA, SCSI_WRITE, 12, LAYOUT_RW12, DIRECTION_OUT)
    add(0x8A, SCSI_WRITE, 16, LAYOUT_RW16, DIRECTION_OUT)
    add(0x2E, SCSI_WRITE_VERIFY, 10, LAYOUT_RW10, DIRECTION_OUT)
    add(0xAE, SCSI_WRITE_VERIFY, 12, LAYOUT_RW12, DIRECTION_OUT)
    add(0x8E, SCSI_WRITE_VERIFY, 16, LAYOUT_RW16, DIRECTION_OUT)
    add(0x2F, SCSI_VERIFY, 10, LAYOUT_RW10, DIRECTION_NONE)      # direction by BYTCHK
    add(0xAF, SCSI_VERIFY, 12, LAYOUT_RW12, DIRECTION_NONE)
    add(0x8F, SCSI_VERIFY, 16, LAYOUT_RW16, DIRECTION_NONE)
    add(0x35, SCSI_SYNCHRONIZE, 10, LAYOUT_RW10, DIRECTION_NONE)
    add(0x91, SCSI_SYNCHRONIZE, 16, LAYOUT_RW16, DIRECTION_NONE)
    add(0x41, SCSI_WRITE_SAME, 10, LAYOUT_RW10, DIRECTION_OUT)
    add(0x93, SCSI_WRITE_SAME, 16, LAYOUT_RW16, DIRECTION_OUT)
    add(0x42, SCSI_UNMAP, 10, LAYOUT_LENGTH_7_16, DIRECTION_OUT)
    add(0x89, SCSI_COMPARE_AND_WRITE, 16, LAYOUT_COMPARE, DIRECTION_OUT)
    add(0x8B, SCSI_ORWRITE, 16, LAYOUT_RW16, DIRECTION_OUT)
    add(0x34, SCSI_PREFETCH, 10, LAYOUT_RW10, DIRECTION_NONE)
    add(0x90, SCSI_PREFETCH, 16, LAYOUT_RW16, DIRECTION_NONE)
    add(0x9C, SCSI_WRITE_ATOMIC, 16, LAYOUT_RW16_SHORT, DIRECTION_OUT)
    add(0x04, SCSI_FORMAT, 6, LAYOUT_NONE, DIRECTION_OUT)
    add(0x48, SCSI_SANITIZE, 10, LAYOUT_LENGTH_7_16, DIRECTION_OUT)
    rows[0x48].has_actions = True
    add_action(0x83, 0x00, SCSI_EXTENDED_COPY, 16, LAYOUT_LENGTH_10_32, DIRECTION_OUT)
    # What else writes the medium on some disks: known, so that it is refused by name and never forwarded.
    add(0x07, SCSI_OTHER_MEDIUM, 6, LAYOUT_NONE, DIRECTION_OUT)               # REASSIGN BLOCKS
    add(0x3B, SCSI_OTHER_MEDIUM, 10, LAYOUT_LENGTH_6_24, DIRECTION_OUT)       # WRITE BUFFER
    add(0x3F, SCSI_OTHER_MEDIUM, 10, LAYOUT_LENGTH_7_16, DIRECTION_OUT)       # WRITE LONG(10)
    add(0x9F, SCSI_OTHER_MEDIUM, 16, LAYOUT_NONE, DIRECTION_OUT)              # WRITE LONG(16)


cdef void fill_info() noexcept nogil:
    add(0x00, SCSI_INFO, 6, LAYOUT_NONE, DIRECTION_NONE)                # TEST UNIT READY
    add(0x03, SCSI_INFO, 6, LAYOUT_LENGTH_4, DIRECTION_IN)              # REQUEST SENSE
    add(0x12, SCSI_INFO, 6, LAYOUT_LENGTH_3_16, DIRECTION_IN)           # INQUIRY
    add(0x15, SCSI_INFO, 6, LAYOUT_LENGTH_4, DIRECTION_OUT)             # MODE SELECT(6)
    add(0x16, SCSI_INFO, 6, LAYOUT_NONE, DIRECTION_NONE)                # RESERVE(6)
    add(0x17, SCSI_INFO, 6, LAYOUT_NONE, DIRECTION_NONE)                # RELEASE(6)
    add(0x1A, SCSI_INFO, 6, LAYOUT_LENGTH_4, DIRECTION_IN)              # MODE SENSE(6)
    add(0x1B, SCSI_INFO, 6, LAYOUT_NONE, DIRECTION_NONE)                # START STOP UNIT
    add(0x1C, SCSI_INFO, 6, LAYOUT_LENGTH_3_16, DIRECTION_IN)           # RECEIVE DIAGNOSTIC RESULTS
    add(0x1D, SCSI_INFO, 6, LAYOUT_LENGTH_3_16, DIRECTION_OUT)          # SEND DIAGNOSTIC
    add(0x1E, SCSI_INFO, 6, LAYOUT_NONE, DIRECTION_NONE)                # PREVENT ALLOW MEDIUM REMOVAL
    add(0x25, SCSI_INFO, 10, LAYOUT_NONE, DIRECTION_IN)                 # READ CAPACITY(10)
    add(0x37, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_IN)          # READ DEFECT DATA(10)
    add(0x3C, SCSI_INFO, 10, LAYOUT_LENGTH_6_24, DIRECTION_IN)          # READ BUFFER
    add(0x4C, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_OUT)         # LOG SELECT
    add(0x4D, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_IN)          # LOG SENSE
    add(0x55, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_OUT)         # MODE SELECT(10)
    add(0x56, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_OUT)         # RESERVE(10)
    add(0x57, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_OUT)         # RELEASE(10)
    add(0x5A, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_IN)          # MODE SENSE(10)
    add(0x5E, SCSI_INFO, 10, LAYOUT_LENGTH_7_16, DIRECTION_IN)          # PERSISTENT RESERVE IN
    add(0x5F, SCSI_INFO, 10, LAYOUT_LENGTH_5_32, DIRECTION_OUT)         # PERSISTENT RESERVE OUT
    rows[0x5E].has_actions = True
    rows[0x5F].has_actions = True
    add(0x84, SCSI_COPY_RESULTS, 16, LAYOUT_LENGTH_10_32, DIRECTION_IN)
    rows[0x84].has_actions = True
    add(0xA0, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)          # REPORT LUNS
    add(0xB7, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)          # READ DEFECT DATA(12)
    add_action(0x9E, 0x10, SCSI_INFO, 16, LAYOUT_LENGTH_10_32, DIRECTION_IN)             # READ CAPACITY(16)
    add_action(0x9E, 0x12, SCSI_GET_LBA_STATUS, 16, LAYOUT_STATUS16, DIRECTION_IN)
    add_action(0xA3, 0x05, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)              # REPORT IDENTIFYING INFO
    add_action(0xA3, 0x0A, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)              # REPORT TARGET PORT GROUPS
    add_action(0xA3, 0x0B, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)              # REPORT ALIASES
    add_action(0xA3, 0x0C, SCSI_REPORT_OPCODES, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)
    add_action(0xA3, 0x0D, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)              # REPORT SUPPORTED TMFS
    add_action(0xA3, 0x0F, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_IN)              # REPORT TIMESTAMP
    add_action(0xA4, 0x0A, SCSI_INFO, 12, LAYOUT_LENGTH_6_32, DIRECTION_OUT)             # SET TARGET PORT GROUPS


fill_medium()
fill_info()


cdef const Row* find_row(const uint8_t* cdb) noexcept nogil:
    cdef const Row* row = &rows[cdb[0]]
    cdef uint8_t action
    cdef uint32_t i
    if not row.has_actions or row.cls != SCSI_UNKNOWN:
        return row
    action = cdb[1] & 0x1F
    for i in range(actions_count):
        if actions[i].opcode == cdb[0] and actions[i].action == action:
            return &actions[i].row
    return row


cdef void read_fields(const uint8_t* cdb, uint8_t layout, ScsiCommand* out) noexcept nogil:
    if layout == LAYOUT_RW6:
        out.lba = get_be24(cdb + 1) & 0x1FFFFF
        out.blocks = 256 if cdb[4] == 0 else cdb[4]
    elif layout == LAYOUT_RW10:
        out.lba = get_be32(cdb + 2)
        out.blocks = get_be16(cdb + 7)
    elif layout == LAYOUT_RW12:
        out.lba = get_be32(cdb + 2)
        out.blocks = get_be32(cdb + 6)
    elif layout == LAYOUT_RW16:
        out.lba = get_be64(cdb + 2)
        out.blocks = get_be32(cdb + 10)
    elif layout == LAYOUT_RW16_SHORT:
        out.lba = get_be64(cdb + 2)
        out.blocks = get_be16(cdb + 12)
    elif layout == LAYOUT_COMPARE:
        out.lba = get_be64(cdb + 2)
        out.blocks = cdb[13]
    elif layout == LAYOUT_STATUS16:
        out.lba = get_be64(cdb + 2)
        out.length_bytes = get_be32(cdb + 10)
    elif layout == LAYOUT_LENGTH_4:
        out.length_bytes = cdb[4]
    elif layout == LAYOUT_LENGTH_3_16:
        out.length_bytes = get_be16(cdb + 3)
    elif layout == LAYOUT_LENGTH_7_16:
        out.length_bytes = get_be16(cdb + 7)
    elif layout == LAYOUT_LENGTH_6_24:
        out.length_bytes = get_be24(cdb + 6)
    elif layout == LAYOUT_LENGTH_5_32:
        out.length_bytes = get_be32(cdb + 5)
    elif layout == LAYOUT_LENGTH_6_32:
        out.length_bytes = get_be32(cdb + 6)
    elif layout == LAYOUT_LENGTH_10_32:
        out.length_bytes = get_be32(cdb + 10)


cdef void read_flags(const uint8_t* cdb, ScsiCommand* out) noexcept nogil:
    cdef uint8_t flags = cdb[1]
    if out.cdb_bytes == 6:
        return
    if out.cls in (SCSI_READ, SCSI_WRITE, SCSI_ORWRITE, SCSI_COMPARE_AND_WRITE, SCSI_WRITE_ATOMIC):
        out.protect = flags >> 5
        out.dpo = (flags & 0x10) != 0
        out.fua = (flags & 0x08) != 0
        if out.cls == SCSI_WRITE_ATOMIC:
            out.atomic_boundary = get_be16(cdb + 10)
    elif out.cls in (SCSI_VERIFY, SCSI_WRITE_VERIFY):
        out.protect = flags >> 5
        out.dpo = (flags & 0x10) != 0
        out.bytchk = (flags >> 1) & 3
        if out.cls == SCSI_VERIFY and out.bytchk in (1, 3):
            out.direction = DIRECTION_OUT
    elif out.cls == SCSI_WRITE_SAME:
        out.protect = flags >> 5
        out.anchor = (flags & 0x10) != 0
        out.unmap = (flags & 0x08) != 0
        out.ndob = cdb[0] == 0x93 and (flags & 0x01) != 0
        if out.ndob:
            out.direction = DIRECTION_NONE
    elif out.cls == SCSI_UNMAP:
        out.anchor = (flags & 0x01) != 0
    elif out.cls in (SCSI_SYNCHRONIZE, SCSI_PREFETCH):
        out.immed = (flags & 0x02) != 0
    elif out.cls == SCSI_SANITIZE:
        out.immed = (flags & 0x80) != 0


cdef int scsi_decode(const uint8_t* cdb, uint32_t available_bytes, ScsiCommand* out) noexcept nogil:
    cdef const Row* row
    memset(out, 0, sizeof(ScsiCommand))
    if available_bytes < 6:
        return E_UNSUPPORTED
    out.opcode = cdb[0]
    row = find_row(cdb)
    if rows[cdb[0]].has_actions:
        out.service_action = cdb[1] & 0x1F
    if row.cls == SCSI_UNKNOWN or row.cdb_bytes > available_bytes:
        return E_UNSUPPORTED
    out.cls = row.cls
    out.cdb_bytes = row.cdb_bytes
    out.direction = row.direction
    read_fields(cdb, row.layout, out)
    read_flags(cdb, out)
    return OK


cdef bint scsi_has_actions(uint8_t opcode) noexcept nogil:
    return rows[opcode].has_actions


cdef bint scsi_is_unknown_action(const uint8_t* cdb) noexcept nogil:
    return rows[cdb[0]].has_actions and find_row(cdb).cls == SCSI_UNKNOWN


cdef uint32_t scsi_sense(uint8_t* out, uint32_t sense, bint information_valid, uint32_t information) noexcept nogil:
    memset(out, 0, SENSE_FIXED_BYTES)
    out[0] = SENSE_FIXED_CURRENT
    if information_valid:
        out[0] |= 0x80
        out[3] = <uint8_t>(information >> 24)
        out[4] = <uint8_t>(information >> 16)
        out[5] = <uint8_t>(information >> 8)
        out[6] = <uint8_t>information
    out[2] = <uint8_t>((sense >> 16) & 0x0F)
    out[7] = SENSE_FIXED_BYTES - 8
    out[12] = <uint8_t>(sense >> 8)
    out[13] = <uint8_t>sense
    return SENSE_FIXED_BYTES


cdef uint32_t scsi_sense_describe(uint8_t* sense, uint32_t sense_bytes) noexcept nogil:
    cdef uint8_t fixed[SENSE_FIXED_BYTES]
    cdef uint32_t at = 8
    if sense_bytes < SENSE_FIXED_BYTES or sense[0] & 0x7E != SENSE_FIXED_CURRENT:
        return sense_bytes
    memcpy(fixed, sense, SENSE_FIXED_BYTES)
    memset(sense, 0, SENSE_DESCRIBED_BYTES)
    sense[0] = 0x72 | (fixed[0] & 0x01)
    sense[1] = fixed[2] & 0x0F
    sense[2] = fixed[12]
    sense[3] = fixed[13]
    if fixed[0] & 0x80:                                  # information
        sense[at + 1] = 0x0A
        sense[at + 2] = 0x80
        memcpy(sense + at + 8, fixed + 3, 4)
        at += 12
    if get_be32(fixed + 8) != 0:                         # command specific information
        sense[at] = 0x01
        sense[at + 1] = 0x0A
        memcpy(sense + at + 8, fixed + 8, 4)
        at += 12
    if fixed[15] & 0x80:                                 # sense key specific: field pointer, progress, segment
        sense[at] = 0x02
        sense[at + 1] = 0x06
        memcpy(sense + at + 4, fixed + 15, 3)
        at += 8
    if fixed[2] & 0x20:                                  # ILI: block commands
        sense[at] = 0x05
        sense[at + 1] = 0x02
        sense[at + 3] = 0x20
        at += 4
    sense[7] = <uint8_t>(at - 8)
    return at


cdef uint32_t scsi_sense_of(int status, bint writing) noexcept nogil:
    if status >= 0:
        return SENSE_NONE
    if status == E_RANGE:
        return SENSE_LBA_OUT_OF_RANGE
    if status == E_UNSUPPORTED:
        return SENSE_INVALID_OPCODE
    if status == E_INVALID:
        return SENSE_INVALID_FIELD_IN_CDB
    if status == E_MISCOMPARE:
        return SENSE_MISCOMPARE
    if status in (E_ABORTED, E_CLOSED, E_TIMEOUT, E_NOMEM, E_FULL):
        return SENSE_ABORTED_COMMAND                     # hosts send such a command again
    if status == E_DIGEST:
        return SENSE_DIGEST_ERROR
    if status in (E_IO, E_CORRUPT, E_CHECK):
        return SENSE_MEDIUM_WRITE_ERROR if writing else SENSE_MEDIUM_READ_ERROR
    return SENSE_HARDWARE_FAILURE


cdef uint32_t scsi_lun_of(const uint8_t* lun) noexcept nogil:
    # SAM-5 4.7: peripheral addressing (bus 0) or flat addressing in the first level, nothing in the others.
    if get_be32(lun + 2) != 0 or get_be16(lun + 6) != 0:
        return LUN_NONE
    if lun[0] == 0:
        return lun[1]
    if lun[0] >> 6 == 1:
        return get_be16(lun) & 0x3FFF
    return LUN_NONE


cdef void scsi_lun_put(uint8_t* lun, uint32_t number) noexcept nogil:
    memset(lun, 0, 8)
    if number >= 256:
        lun[0] = <uint8_t>(0x40 | ((number >> 8) & 0x3F))
    lun[1] = <uint8_t>number
