# Answers of a plain disk to commands that touch no medium, from tables.
#
# Owns: the list of commands that the disk offers, with their CDB usage data; REPORT SUPPORTED OPERATION CODES shows it
# and disk_info refuses what is not in it, so that both always agree.
# Invariants: no answer is longer than INFO_BYTES_MAX; nothing that comes from the CDB is used as an index unchecked.
# Cost: of no concern; these commands are rare.
from libc.string cimport memcmp, memcpy, memset, strlen

from detour.core.device cimport DeviceLimits
from detour.core.endian cimport get_be16, put_be16, put_be32, put_be64
from detour.core.scsi cimport *
from detour.core.types cimport *

cdef enum:
    COMMANDS_MAX = 64
    SENSE_SAVING_PARAMETERS = 0x053900
    UNMAP_DESCRIPTORS_MAX = 256
    UNMAP_BLOCKS_MAX = 0x100000
    PAGE_CACHING = 0x08
    PAGE_CONTROL = 0x0A
    PAGE_EXCEPTIONS = 0x1C
    PAGE_ALL = 0x3F

cdef struct Offered:            # one command of the disk
    uint8_t opcode
    bint has_action
    uint8_t action
    uint8_t cdb_bytes
    uint8_t usage[16]           # CDB usage data (SPC-4 6.35): bits that are looked at

cdef Offered offered[COMMANDS_MAX]
cdef uint32_t offered_count = 0


cdef int offer(bytes usage, int action=-1) except -1:
    global offered_count
    cdef Offered* item = &offered[offered_count]
    cdef const uint8_t* source = <const uint8_t*><const char*>usage
    offered_count += 1
    item.opcode = source[0]
    item.has_action = action >= 0
    item.action = <uint8_t>action if action >= 0 else 0
    item.cdb_bytes = <uint8_t>len(usage)
    memcpy(item.usage, source, len(usage))
    return 0


cdef int fill_offered() except -1:
    cdef list plain = [
        "00 00 00 00 00 04", "03 01 00 00 ff 04", "08 1f ff ff ff 04", "0a 1f ff ff ff 04", "12 01 ff ff ff 04",
        "15 11 00 00 ff 04", "1a 08 ff ff ff 04", "1b 01 00 0f f7 04", "1d ff 00 ff ff 04", "1e 00 00 00 03 04",
        "25 00 00 00 00 00 00 00 00 04", "28 f8 ff ff ff ff 1f ff ff 04", "2a f8 ff ff ff ff 1f ff ff 04",
        "2e f6 ff ff ff ff 1f ff ff 04", "2f f6 ff ff ff ff 1f ff ff 04", "34 02 ff ff ff ff 1f ff ff 04",
        "35 02 ff ff ff ff 1f ff ff 04", "41 f8 ff ff ff ff 1f ff ff 04", "42 01 00 00 00 00 1f ff ff 04",
        "4d 01 ff ff 00 ff ff ff ff 04", "55 11 00 00 00 00 00 ff ff 04", "5a 18 ff ff 00 00 00 ff ff 04",
        "88 f8 ff ff ff ff ff ff ff ff ff ff ff ff 1f 04", "8a f8 ff ff ff ff ff ff ff ff ff ff ff ff 1f 04",
        "8e f6 ff ff ff ff ff ff ff ff ff ff ff ff 1f 04", "8f f6 ff ff ff ff ff ff ff ff ff ff ff ff 1f 04",
        "90 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 04", "91 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 04",
        "93 f9 ff ff ff ff ff ff ff ff ff ff ff ff 1f 04", "a0 00 ff 00 00 00 ff ff ff ff 00 04",
        "a8 f8 ff ff ff ff ff ff ff ff 1f 04", "aa f8 ff ff ff ff ff ff ff ff 1f 04",
        "ae f6 ff ff ff ff ff ff ff ff 1f 04", "af f6 ff ff ff ff ff ff ff ff 1f 04",
    ]
    cdef str row
    for row in plain:
        offer(bytes.fromhex(row))
    offer(bytes.fromhex("9e 10 ff ff ff ff ff ff ff ff ff ff ff ff 01 04"), 0x10)
    offer(bytes.fromhex("9e 12 ff ff ff ff ff ff ff ff ff ff ff ff 00 04"), 0x12)
    offer(bytes.fromhex("a3 0c 87 ff ff ff ff ff ff ff 00 04"), 0x0C)
    offer(bytes.fromhex("a3 0d 80 00 00 00 ff ff ff ff 00 04"), 0x0D)
    return 0


fill_offered()


cdef inline bint is_offered(const DiskIdentity* identity, const Offered* command) noexcept nogil:
    return command.opcode != 0x42 or identity.thin


cdef const Offered* find_offered(const DiskIdentity* identity, uint8_t opcode, int action,
                                 bint* opcode_known) noexcept nogil:
    # action -1: an action that no command has.
    cdef uint32_t i
    opcode_known[0] = False
    for i in range(offered_count):
        if offered[i].opcode != opcode or not is_offered(identity, &offered[i]):
            continue
        opcode_known[0] = True
        if not offered[i].has_action or offered[i].action == action:
            return &offered[i]
    return NULL


cdef inline uint32_t clamp32(uint64_t value) noexcept nogil:
    return <uint32_t>0xFFFFFFFF if value > <uint64_t>0xFFFFFFFF else <uint32_t>value


cdef void finish(InfoAnswer* answer, uint32_t data_bytes, uint32_t allocation_bytes) noexcept nogil:
    answer.data_bytes = data_bytes if data_bytes < allocation_bytes else allocation_bytes


# ---- INQUIRY ---------------------------------------------------------------------------------------------------------

cdef void inquiry_standard(const DiskIdentity* identity, InfoAnswer* answer, uint32_t allocation_bytes) noexcept nogil:
    cdef uint8_t* out = answer.data
    out[2] = 0x06                                   # SPC-4
    out[3] = 0x12                                   # HISUP, response data format 2
    out[4] = 96 - 5
    out[7] = 0x02                                   # CMDQUE
    memcpy(out + 8, identity.vendor, 8)
    memcpy(out + 16, identity.product, 16)
    memcpy(out + 32, identity.revision, 4)
    put_be16(out + 58, 0x00A0)                      # SAM-5
    put_be16(out + 60, 0x0960)                      # iSCSI
    put_be16(out + 62, 0x0460)                      # SPC-4
    put_be16(out + 64, 0x04C0)                      # SBC-3
    finish(answer, 96, allocation_bytes)


cdef uint32_t vpd_identification(const DiskIdentity* identity, uint8_t* out) noexcept nogil:
    cdef uint32_t serial_bytes = <uint32_t>strlen(identity.serial)
    cdef uint32_t at = 4
    out[at] = 0x01                                  # binary, NAA, of the logical unit
    out[at + 1] = 0x03
    out[at + 3] = 8
    memcpy(out + at + 4, identity.naa, 8)
    at += 12
    out[at] = 0x02                                  # ASCII, T10 vendor identification, of the logical unit
    out[at + 1] = 0x01
    out[at + 3] = <uint8_t>(8 + serial_bytes)
    memcpy(out + at + 4, identity.vendor, 8)
    memcpy(out + at + 12, identity.serial, serial_bytes)
    return at + 12 + serial_bytes


cdef void disk_limits(const DiskIdentity* identity, DeviceLimits* limits) noexcept nogil:
    memset(limits, 0, sizeof(DeviceLimits))
    if identity.thin:
        limits.unmap_blocks_max = UNMAP_BLOCKS_MAX
        limits.unmap_descriptors_max = UNMAP_DESCRIPTORS_MAX


cdef uint32_t vpd_block_limits(const DiskIdentity* identity, uint8_t* out) noexcept nogil:
    cdef uint32_t page_blocks = 4096 // identity.block_bytes if identity.block_bytes < 4096 else 1
    cdef DeviceLimits limits
    disk_limits(identity, &limits)
    put_be16(out + 6, <uint16_t>page_blocks)                        # optimal transfer length granularity
    put_be32(out + 12, PART_BYTES_MAX // identity.block_bytes)      # optimal transfer length
    if identity.thin:
        put_be32(out + 20, limits.unmap_blocks_max)
        put_be32(out + 24, limits.unmap_descriptors_max)
        put_be32(out + 28, page_blocks)                             # optimal unmap granularity
        put_be32(out + 32, 0x80000000)                              # its alignment: 0
    return 64


cdef void inquiry_vpd(const DiskIdentity* identity, uint8_t page, InfoAnswer* answer,
                      uint32_t allocation_bytes) noexcept nogil:
    cdef uint8_t* out = answer.data
    cdef uint32_t length = 4
    out[1] = page
    if page == 0x00:
        memcpy(out + 4, b"\x00\x80\x83\xb0\xb1\xb2", 6)
        length = 10
    elif page == 0x80:
        length = 4 + <uint32_t>strlen(identity.serial)
        memcpy(out + 4, identity.serial, length - 4)
    elif page == 0x83:
        length = vpd_identification(identity, out)
    elif page == 0xB0:
        length = vpd_block_limits(identity, out)
    elif page == 0xB1:
        put_be16(out + 4, 0x0001)                   # no rotation
        length = 64
    elif page == 0xB2:
        # LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned
        out[5] = 0xE4 if identity.thin else 0
        out[6] = 0x02 if identity.thin else 0
        length = 8
    else:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    put_be16(out + 2, <uint16_t>(length - 4))
    finish(answer, length, allocation_bytes)


cdef void inquiry(const DiskIdentity* identity, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    cdef uint32_t allocation_bytes = get_be16(cdb + 3)
    if cdb[1] & 0x01:
        inquiry_vpd(identity, cdb[2], answer, allocation_bytes)
    elif cdb[2] != 0 or cdb[1] & 0x02:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
    else:
        inquiry_standard(identity, answer, allocation_bytes)


# ---- capacity and blocks ---------------------------------------------------------------------------------------------

cdef void read_capacity_10(const DiskIdentity* identity, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    cdef uint64_t last = identity.blocks - 1
    if not cdb[8] & 0x01 and (cdb[2] | cdb[3] | cdb[4] | cdb[5]) != 0:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    put_be32(answer.data, clamp32(last))
    put_be32(answer.data + 4, identity.block_bytes)
    answer.data_bytes = 8


cdef void read_capacity_16(const DiskIdentity* identity, uint32_t allocation_bytes, InfoAnswer* answer) noexcept nogil:
    put_be64(answer.data, identity.blocks - 1)
    put_be32(answer.data + 8, identity.block_bytes)
    answer.data[14] = 0xC0 if identity.thin else 0                  # LBPME, LBPRZ
    finish(answer, 32, allocation_bytes)


cdef void get_lba_status(const DiskIdentity* identity, const ScsiCommand* command, InfoAnswer* answer) noexcept nogil:
    # The store does not tell holes from data: everything from the asked LBA on is reported as mapped.
    cdef uint64_t rest
    if command.lba >= identity.blocks:
        answer.sense = SENSE_LBA_OUT_OF_RANGE
        return
    rest = identity.blocks - command.lba
    put_be32(answer.data, 20)
    put_be64(answer.data + 8, command.lba)
    put_be32(answer.data + 16, clamp32(rest))
    finish(answer, 24, command.length_bytes)


# ---- mode pages ------------------------------------------------------------------------------------------------------

cdef uint32_t mode_page(const DiskIdentity* identity, uint8_t page, uint8_t control, uint8_t* out) noexcept nogil:
    # One page in the form that `control` asks for (0 current, 1 changeable, 2 default). Nothing is changeable.
    cdef uint32_t length
    if page == PAGE_CACHING:
        length = 20
    elif page == PAGE_CONTROL or page == PAGE_EXCEPTIONS:
        length = 12
    else:
        return 0
    memset(out, 0, length)
    out[0] = page
    out[1] = <uint8_t>(length - 2)
    if control == 1:
        return length
    if page == PAGE_CACHING:
        out[2] = 0x04 if identity.write_cache else 0
    elif page == PAGE_CONTROL:
        out[3] = 0x10                               # unrestricted reordering
        put_be16(out + 8, 0xFFFF)                   # busy timeout period: unlimited
    return length


cdef uint32_t mode_pages(const DiskIdentity* identity, uint8_t page, uint8_t control, uint8_t* out) noexcept nogil:
    cdef uint32_t length
    if page != PAGE_ALL:
        return mode_page(identity, page, control, out)
    length = mode_page(identity, PAGE_CACHING, control, out)
    length += mode_page(identity, PAGE_CONTROL, control, out + length)
    return length + mode_page(identity, PAGE_EXCEPTIONS, control, out + length)


cdef uint32_t mode_block_descriptor(const DiskIdentity* identity, bint long_form, uint8_t* out) noexcept nogil:
    if long_form:
        put_be64(out, identity.blocks)
        put_be32(out + 12, identity.block_bytes)
        return 16
    put_be32(out, clamp32(identity.blocks))
    put_be32(out + 4, identity.block_bytes)
    return 8


cdef void mode_sense(const DiskIdentity* identity, const ScsiCommand* command, const uint8_t* cdb,
                     InfoAnswer* answer) noexcept nogil:
    cdef bint ten = cdb[0] == 0x5A
    cdef bint long_form = ten and cdb[1] & 0x10
    cdef uint32_t header_bytes = 8 if ten else 4
    cdef uint32_t descriptor_bytes = 0
    cdef uint32_t length
    cdef uint8_t device_specific = 0x90 if identity.read_only else 0x10          # WP, DPOFUA
    cdef uint8_t control = cdb[2] >> 6
    if control == 3:
        answer.sense = SENSE_SAVING_PARAMETERS
        return
    if not cdb[1] & 0x08:
        descriptor_bytes = mode_block_descriptor(identity, long_form, answer.data + header_bytes)
    length = mode_pages(identity, cdb[2] & 0x3F, control, answer.data + header_bytes + descriptor_bytes)
    if length == 0 or (cdb[3] != 0 and not (cdb[3] == 0xFF and cdb[2] & 0x3F == PAGE_ALL)):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    length += header_bytes + descriptor_bytes
    if ten:
        put_be16(answer.data, <uint16_t>(length - 2))
        answer.data[3] = device_specific
        answer.data[4] = 0x01 if long_form else 0
        put_be16(answer.data + 6, <uint16_t>descriptor_bytes)
    else:
        answer.data[0] = <uint8_t>(length - 1)
        answer.data[2] = device_specific
        answer.data[3] = <uint8_t>descriptor_bytes
    finish(answer, length, command.length_bytes)


cdef uint32_t mode_select_page(const DiskIdentity* identity, const uint8_t* page, uint32_t rest_bytes,
                               uint32_t* sense) noexcept nogil:
    # Checks one page of a MODE SELECT against what holds now; answers its length.
    cdef uint8_t current[32]
    cdef uint32_t length = 0
    if rest_bytes >= 2:
        length = mode_page(identity, page[0] & 0x3F, 0, current)
    if rest_bytes < 2 or (length != 0 and length > rest_bytes):
        sense[0] = SENSE_PARAMETER_LIST_LENGTH
    elif length == 0 or page[0] & 0x40 or page[1] != current[1] or memcmp(page + 2, current + 2, length - 2) != 0:
        sense[0] = SENSE_INVALID_FIELD_IN_PARAMETERS
    return length


cdef void mode_select(const DiskIdentity* identity, const uint8_t* cdb, const uint8_t* parameters,
                      uint32_t parameter_bytes, InfoAnswer* answer) noexcept nogil:
    # Nothing can be changed: a list that repeats what holds is taken, any other is refused.
    cdef bint ten = cdb[0] == 0x55
    cdef uint32_t header_bytes = 8 if ten else 4
    cdef uint32_t at, length
    if cdb[1] & 0x01:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB           # saving pages is not offered
        return
    if parameter_bytes == 0:
        return
    if parameter_bytes < header_bytes:
        answer.sense = SENSE_PARAMETER_LIST_LENGTH
        return
    at = header_bytes + (get_be16(parameters + 6) if ten else parameters[3])
    if at > parameter_bytes:
        answer.sense = SENSE_PARAMETER_LIST_LENGTH
    while at < parameter_bytes and answer.sense == 0:
        length = mode_select_page(identity, parameters + at, parameter_bytes - at, &answer.sense)
        at += length


# ---- supported commands ----------------------------------------------------------------------------------------------

cdef uint32_t timeouts_descriptor(uint8_t* out) noexcept nogil:
    put_be16(out, 0x000A)                           # nominal and recommended timeouts: none given
    return 12


cdef uint32_t report_all(const DiskIdentity* identity, uint8_t* out, bint with_timeouts) noexcept nogil:
    cdef uint32_t at = 4, i
    for i in range(offered_count):
        if not is_offered(identity, &offered[i]):
            continue
        out[at] = offered[i].opcode
        put_be16(out + at + 2, offered[i].action)
        out[at + 5] = (0x02 if with_timeouts else 0) | (0x01 if offered[i].has_action else 0)
        put_be16(out + at + 6, offered[i].cdb_bytes)
        at += 8
        if with_timeouts:
            at += timeouts_descriptor(out + at)
    put_be32(out, at - 4)
    return at


cdef uint32_t report_one(uint8_t* out, const Offered* command, bint with_timeouts) noexcept nogil:
    cdef uint32_t at
    if command == NULL:
        out[1] = 0x01                               # not supported
        return 4
    out[1] = 0x03 | (0x80 if with_timeouts else 0)
    put_be16(out + 2, command.cdb_bytes)
    memcpy(out + 4, command.usage, command.cdb_bytes)
    at = 4 + command.cdb_bytes
    if with_timeouts:
        at += timeouts_descriptor(out + at)
    return at


cdef void report_opcodes(const DiskIdentity* identity, const ScsiCommand* command, const uint8_t* cdb,
                         InfoAnswer* answer) noexcept nogil:
    cdef uint8_t options = cdb[2] & 0x07
    cdef bint with_timeouts = cdb[2] & 0x80
    cdef bint opcode_known
    cdef uint16_t action = get_be16(cdb + 4)
    cdef const Offered* found = find_offered(identity, cdb[3], action if action <= 0x1F else -1, &opcode_known)
    cdef bint has_actions = opcode_known and (found == NULL or found.has_action)
    if options == 0:
        finish(answer, report_all(identity, answer.data, with_timeouts), command.length_bytes)
        return
    if options > 3 or (options == 1 and has_actions) or (options == 2 and opcode_known and not has_actions):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    if options == 3 and found != NULL and not found.has_action and action != 0:
        found = NULL
    finish(answer, report_one(answer.data, found, with_timeouts), command.length_bytes)


# ---- the rest --------------------------------------------------------------------------------------------------------

cdef void log_sense(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    # The only page is the list of pages.
    if cdb[2] & 0x3F != 0 or cdb[1] & 0x03 or (cdb[3] != 0 and cdb[3] != 0xFF):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    if cdb[3] == 0xFF:
        answer.data[0] = 0x40
        answer.data[1] = 0xFF
        put_be16(answer.data + 2, 2)
        finish(answer, 6, command.length_bytes)
        return
    put_be16(answer.data + 2, 1)
    finish(answer, 5, command.length_bytes)


cdef void disk_info_request_sense(const uint8_t* cdb, uint32_t sense, InfoAnswer* answer) noexcept nogil:
    cdef uint8_t* out = answer.data
    if cdb[1] & 0x01:                               # descriptor format
        out[0] = 0x72
        out[1] = <uint8_t>(sense >> 16) & 0x0F
        out[2] = <uint8_t>(sense >> 8)
        out[3] = <uint8_t>sense
        finish(answer, 8, cdb[4])
        return
    finish(answer, scsi_sense(out, sense, False, 0), cdb[4])


cdef void report_task_management(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    cdef bint extended = cdb[2] & 0x80
    answer.data[0] = 0xDA       # ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET
    if extended:
        answer.data[3] = 12
    finish(answer, 16 if extended else 4, command.length_bytes)


cdef void other_info(const DiskIdentity* identity, const ScsiCommand* command, const uint8_t* cdb,
                     InfoAnswer* answer) noexcept nogil:
    cdef uint8_t opcode = command.opcode
    if opcode == 0x25:
        read_capacity_10(identity, cdb, answer)
    elif opcode == 0x9E and command.service_action == 0x10:
        read_capacity_16(identity, command.length_bytes, answer)
    elif opcode == 0x9E:
        get_lba_status(identity, command, answer)
    elif opcode == 0xA3 and command.service_action == 0x0C:
        report_opcodes(identity, command, cdb, answer)
    elif opcode == 0xA3:
        report_task_management(command, cdb, answer)
    elif opcode == 0x4D:
        log_sense(command, cdb, answer)
    elif opcode == 0x1D and not cdb[1] & 0x04:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB   # only the default self-test is offered


cdef void disk_info(const DiskIdentity* identity, const ScsiCommand* command, const uint8_t* cdb,
                    const uint8_t* parameters, uint32_t parameter_bytes, InfoAnswer* answer) noexcept nogil:
    cdef bint opcode_known
    answer.data_bytes = 0
    answer.sense = 0
    if find_offered(identity, command.opcode, command.service_action, &opcode_known) == NULL:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB if opcode_known else SENSE_INVALID_OPCODE
        return
    if command.opcode == 0x12:
        inquiry(identity, cdb, answer)
    elif command.opcode == 0x1A or command.opcode == 0x5A:
        mode_sense(identity, command, cdb, answer)
    elif command.opcode == 0x15 or command.opcode == 0x55:
        mode_select(identity, cdb, parameters, parameter_bytes, answer)
    elif command.opcode == 0x03:
        disk_info_request_sense(cdb, SENSE_NONE, answer)
    else:
        other_info(identity, command, cdb, answer)  # TEST UNIT READY, START STOP UNIT and the like: GOOD
