# The commands of a plain disk, as REPORT SUPPORTED OPERATION CODES shows them.
#
# Owns: the table, filled when the module is loaded. The same rows tell what is refused, so that both always agree.
# Invariants: rows of one opcode either all have service actions or none; usage[0] is the opcode.
# Cost: a search over some 70 rows for each command that is not data; data commands look at Device.withheld instead.
from libc.string cimport memcpy, memset

from detour.core.disk_identity cimport answer_cut
from detour.core.endian cimport get_be16, put_be16, put_be32
from detour.core.scsi cimport *

cdef enum:
    ROWS_MAX = 128

cdef enum Offer:                # when a row is offered
    OFFER_ALWAYS = 0
    OFFER_THIN = 1              # the disk is thin provisioned
    OFFER_THICK = 4             # it is not
    OFFER_COMPARE = 2           # DeviceLimits.compare_blocks_max is given
    OFFER_ATOMIC = 3            # DeviceLimits.atomic_blocks_max is given

cdef struct Row:                # one command of the disk
    uint8_t opcode
    uint8_t offer               # Offer
    bint has_action
    uint8_t action
    uint8_t cdb_bytes
    uint8_t usage[16]           # CDB usage data (SPC-4 6.35.3): the opcode, the service action, and bits that are looked at

cdef Row rows[ROWS_MAX]
cdef uint32_t rows_count = 0


cdef int add(str usage, int action=-1, int offer=OFFER_ALWAYS) except -1:
    global rows_count
    cdef bytes given = bytes.fromhex(usage)
    cdef Row* row = &rows[rows_count]
    if rows_count == ROWS_MAX or len(given) not in (6, 10, 12, 16):
        raise ValueError(f"no room for the command {usage!r}, or a CDB of {len(given)} bytes")
    rows_count += 1
    memcpy(row.usage, <const char*>given, len(given))
    row.opcode = row.usage[0]
    row.offer = <uint8_t>offer
    row.cdb_bytes = <uint8_t>len(given)
    row.has_action = action >= 0
    if row.has_action:
        row.action = <uint8_t>action
        row.usage[1] = (row.usage[1] & 0xE0) | row.action
    return 0


cdef int add_blocks() except -1:
    # SBC-3. The group number (bits 0-4 of its byte) is ignored, GROUP_SUP being 0.
    cdef str usage
    for usage in ("08 1f ff ff ff 04", "0a 1f ff ff ff 04",                                   # READ, WRITE (6)
                  "25 00 ff ff ff ff 00 00 01 04",                                            # READ CAPACITY(10)
                  "28 f8 ff ff ff ff 00 ff ff 04", "2a f8 ff ff ff ff 00 ff ff 04",           # READ, WRITE (10)
                  "2e f6 ff ff ff ff 00 ff ff 04", "2f f6 ff ff ff ff 00 ff ff 04",           # WRITE AND VERIFY, VERIFY
                  "34 02 ff ff ff ff 00 ff ff 04", "35 02 ff ff ff ff 00 ff ff 04",           # PRE-FETCH, SYNCHRONIZE
                  "37 00 1f 00 00 00 00 ff ff 04",                                            # READ DEFECT DATA(10)
                  "41 f8 ff ff ff ff 00 ff ff 04",                                            # WRITE SAME(10)
                  "88 f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # READ(16)
                  "8a f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # WRITE(16)
                  "8b f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # ORWRITE(16)
                  "8e f6 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # WRITE AND VERIFY(16)
                  "8f f6 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # VERIFY(16)
                  "90 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # PRE-FETCH(16)
                  "91 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # SYNCHRONIZE CACHE(16)
                  "93 f9 ff ff ff ff ff ff ff ff ff ff ff ff 00 04",                          # WRITE SAME(16)
                  "a8 f8 ff ff ff ff ff ff ff ff 00 04", "aa f8 ff ff ff ff ff ff ff ff 00 04",
                  "ae f6 ff ff ff ff ff ff ff ff 00 04", "af f6 ff ff ff ff ff ff ff ff 00 04",
                  "b7 1f ff ff ff ff ff ff ff ff 00 04"):                                     # READ DEFECT DATA(12)
        add(usage)
    add("42 00 00 00 00 00 00 ff ff 04", -1, OFFER_THIN)                                      # UNMAP
    add("89 f8 ff ff ff ff ff ff ff ff 00 00 00 ff 00 04", -1, OFFER_COMPARE)                 # COMPARE AND WRITE
    add("9c f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04", -1, OFFER_ATOMIC)                  # WRITE ATOMIC(16)
    add("48 a0 00 00 00 00 00 ff ff 04", 0x01, OFFER_THICK)                                   # SANITIZE: OVERWRITE
    add("48 a0 00 00 00 00 00 ff ff 04", 0x02, OFFER_THIN)                                    # BLOCK ERASE
    add("48 a0 00 00 00 00 00 ff ff 04", 0x1F)                                                # EXIT FAILURE MODE
    add("9e 00 ff ff ff ff ff ff ff ff ff ff ff ff 01 04", 0x10)                              # READ CAPACITY(16)
    add("9e 00 ff ff ff ff ff ff ff ff ff ff ff ff 00 04", 0x12)                              # GET LBA STATUS
    return 0


cdef int add_primary() except -1:
    # SPC-4
    cdef str usage
    for usage in ("00 00 00 00 00 04", "03 01 00 00 ff 04",                                   # TEST UNIT READY, REQUEST SENSE
                  "12 01 ff ff ff 04",                                                        # INQUIRY
                  "16 00 00 00 00 04", "17 00 00 00 00 04",                                   # RESERVE, RELEASE (6)
                  "56 00 00 00 00 00 00 00 00 04", "57 00 00 00 00 00 00 00 00 04",           # RESERVE, RELEASE (10)
                  "15 11 00 00 ff 04", "1a 08 ff ff ff 04",                                   # MODE SELECT, SENSE (6)
                  "1b 01 00 0f f7 04",                                                        # START STOP UNIT
                  "1c 01 ff ff ff 04", "1d f7 00 ff ff 04",                                   # RECEIVE, SEND DIAGNOSTIC
                  "1e 00 00 00 03 04",                                                        # PREVENT ALLOW
                  "4c 03 ff ff 00 00 00 ff ff 04", "4d 01 ff ff 00 ff ff ff ff 04",           # LOG SELECT, SENSE
                  "55 11 00 00 00 00 00 ff ff 04", "5a 18 ff ff 00 00 00 ff ff 04",           # MODE SELECT, SENSE (10)
                  "a0 00 ff 00 00 00 ff ff ff ff 00 04"):                                     # REPORT LUNS
        add(usage)
    for action in range(4):                                           # PERSISTENT RESERVE IN
        add("5e 00 00 00 00 00 00 ff ff 04", action)
    for action in range(8):                                           # PERSISTENT RESERVE OUT
        add("5f 00 ff 00 00 ff ff ff ff 04", action)
    add("83 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 04", 0x00)      # EXTENDED COPY(LID1)
    add("84 00 ff 00 00 00 00 00 00 00 ff ff ff ff 00 04", 0x00)      # RECEIVE COPY STATUS(LID1)
    add("84 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 04", 0x03)      # RECEIVE COPY OPERATING PARAMETERS
    add("84 00 ff 00 00 00 00 00 00 00 ff ff ff ff 00 04", 0x04)      # RECEIVE COPY FAILURE DETAILS(LID1)
    add("a3 00 87 ff ff ff ff ff ff ff 00 04", 0x0C)                  # REPORT SUPPORTED OPERATION CODES
    add("a3 00 80 00 00 00 ff ff ff ff 00 04", 0x0D)                  # REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
    return 0


cdef int add_reservations() except -1:
    # SPC-2 (RESERVE, RELEASE) and SPC-4
    cdef str usage
    cdef int action
    for usage in ("16 11 00 00 00 04", "17 11 00 00 00 04",
                  "56 13 00 00 00 00 00 ff ff 04", "57 13 00 00 00 00 00 ff ff 04"):
        add(usage)
    for action in range(4):
        add("5e 00 00 00 00 00 00 ff ff 04", action)                  # PERSISTENT RESERVE IN
    for action in range(8):
        add("5f 00 ff 00 00 ff ff ff ff 04", action)                  # PERSISTENT RESERVE OUT
    return 0


add_blocks()
add_primary()
add_reservations()


# ---- what is offered -------------------------------------------------------------------------------------------------

cdef bint row_offered(const DiskView* view, const Row* row) noexcept nogil:
    if row.offer == OFFER_THIN:
        return view.identity.thin
    if row.offer == OFFER_THICK:
        return not view.identity.thin
    if row.offer == OFFER_COMPARE:
        return view.device.limits.compare_blocks_max != 0
    if row.offer == OFFER_ATOMIC:
        return view.device.limits.atomic_blocks_max != 0
    return True


cdef const Row* find_row(const DiskView* view, uint8_t opcode, uint16_t action, bint* opcode_known) noexcept nogil:
    cdef uint32_t i
    opcode_known[0] = False
    for i in range(rows_count):
        if rows[i].opcode != opcode or not row_offered(view, &rows[i]):
            continue
        opcode_known[0] = True
        if not rows[i].has_action or rows[i].action == action:
            return &rows[i]
    return NULL


cdef uint32_t disk_refusal(const DiskView* view, const ScsiCommand* command) noexcept nogil:
    cdef bint opcode_known
    if find_row(view, command.opcode, command.service_action, &opcode_known) != NULL:
        return 0
    return SENSE_INVALID_FIELD_IN_CDB if opcode_known else SENSE_INVALID_OPCODE


cdef bint disk_offers(const DiskView* view, uint8_t opcode, uint8_t action) noexcept nogil:
    cdef bint opcode_known
    return find_row(view, opcode, action, &opcode_known) != NULL


cdef void disk_withhold(const DiskView* view, Device* device) noexcept nogil:
    cdef uint32_t i
    memset(device.withheld, 0xFF, sizeof(device.withheld))
    for i in range(rows_count):
        if row_offered(view, &rows[i]):
            device.withheld[rows[i].opcode] &= ~(<uint32_t>1 << rows[i].action)


# ---- the reports -----------------------------------------------------------------------------------------------------

cdef uint32_t timeouts_descriptor(uint8_t* out) noexcept nogil:
    put_be16(out, 0x000A)                           # nominal and recommended timeouts: none given
    return 12


cdef uint32_t report_all(const DiskView* view, uint8_t* out, bint with_timeouts) noexcept nogil:
    cdef uint32_t at = 4, i
    for i in range(rows_count):
        if not row_offered(view, &rows[i]):
            continue
        out[at] = rows[i].opcode
        put_be16(out + at + 2, rows[i].action)
        out[at + 5] = (0x02 if with_timeouts else 0) | (0x01 if rows[i].has_action else 0)
        put_be16(out + at + 6, rows[i].cdb_bytes)
        at += 8
        if with_timeouts:
            at += timeouts_descriptor(out + at)
    put_be32(out, at - 4)
    return at


cdef uint32_t report_one(uint8_t* out, const Row* row, bint with_timeouts) noexcept nogil:
    cdef uint32_t at
    if row == NULL:
        out[1] = 0x01                               # not supported
        return 4
    out[1] = 0x03 | (0x80 if with_timeouts else 0)
    put_be16(out + 2, row.cdb_bytes)
    memcpy(out + 4, row.usage, row.cdb_bytes)
    at = 4 + row.cdb_bytes
    if with_timeouts:
        at += timeouts_descriptor(out + at)
    return at


cdef void disk_report_opcodes(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                              InfoAnswer* answer) noexcept nogil:
    # Reporting options: 0 all, 1 an opcode without service actions, 2 one with the action, 3 either.
    cdef uint8_t options = cdb[2] & 0x07
    cdef bint with_timeouts = cdb[2] & 0x80
    cdef bint opcode_known
    cdef uint16_t action = get_be16(cdb + 4)
    cdef const Row* found = find_row(view, cdb[3], action, &opcode_known)
    cdef bint has_actions = opcode_known and (found == NULL or found.has_action)
    if options == 0:
        answer_cut(answer, report_all(view, answer.data, with_timeouts), command.length_bytes)
        return
    if options > 3 or (options == 1 and has_actions) or (options == 2 and opcode_known and not has_actions):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        answer.wrong_byte = 2                       # the reporting options, not the service action: the command is known
        return
    if options == 3 and found != NULL and not found.has_action and action != 0:
        found = NULL
    answer_cut(answer, report_one(answer.data, found, with_timeouts), command.length_bytes)


cdef void disk_report_task_management(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    cdef bint extended = cdb[2] & 0x80
    answer.data[0] = 0xDA       # ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET
    if extended:
        answer.data[3] = 12
    answer_cut(answer, 16 if extended else 4, command.length_bytes)
