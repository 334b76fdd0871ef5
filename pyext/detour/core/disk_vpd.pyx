# INQUIRY, vital product data and capacity of a plain disk.
#
# Owns: the figures of disk_limits. Page B0h shows Device.limits, which are what the target side refuses by.
# Invariants: no page is longer than INFO_BYTES_MAX; each page tells only what other commands keep: 86h the task attributes
# and no group numbers, B2h what UNMAP and WRITE SAME do.
# Cost: of no concern; these commands are rare.
from libc.string cimport memcpy, memset, strlen

from detour.core.copy_list cimport copy_list_page
from detour.core.disk_identity cimport answer_cut, clamp32
from detour.core.disk_opcodes cimport disk_offers
from detour.core.endian cimport get_be16, put_be16, put_be32, put_be64
from detour.core.scsi cimport *

cdef enum:
    UNMAP_DESCRIPTORS_MAX = 256
    UNMAP_BLOCKS_MAX = 0x100000
    COMPARE_BLOCKS_MAX = 255    # the field has a byte
    TRANSFER_BYTES_MAX = 67108864   # told where an atomic length is: that must not be the longer one
    PAGE_BYTES = 4096           # what files and memory are allocated in
    NO_BOUND = 0xFFFFFFFF
    PORT = 1                    # relative target port identifier: a disk has one


# ---- INQUIRY ---------------------------------------------------------------------------------------------------------

cdef void inquiry_standard(const DiskView* view, InfoAnswer* answer, uint32_t allocation_bytes) noexcept nogil:
    cdef const DiskIdentity* identity = view.identity
    cdef uint8_t* out = answer.data
    out[1] = 0x80 if identity.removable else 0      # RMB
    out[2] = 0x06                                   # SPC-4
    out[3] = 0x12                                   # HISUP, response data format 2
    out[4] = 96 - 5
    out[5] = 0x08 if disk_offers(view, 0x83, 0x00) or disk_offers(view, 0x83, 0x01) else 0       # 3PC; TPGS 0
    out[7] = 0x02                                   # CMDQUE
    memcpy(out + 8, identity.vendor, 8)
    memcpy(out + 16, identity.product, 16)
    memcpy(out + 32, identity.revision, 4)
    put_be16(out + 58, 0x00A0)                      # SAM-5
    put_be16(out + 60, 0x0960)                      # iSCSI
    put_be16(out + 62, 0x0460)                      # SPC-4
    put_be16(out + 64, 0x04C0)                      # SBC-3
    answer_cut(answer, 96, allocation_bytes)


cdef uint32_t put_designator(uint8_t* out, uint8_t code_set, uint8_t kind, const void* value,
                             uint32_t value_bytes, uint32_t room_bytes) noexcept nogil:
    # SPC-4 7.8.6; `room_bytes` of which the rest is NUL. Answers the length.
    out[0] = code_set
    out[1] = kind
    out[3] = <uint8_t>room_bytes
    memcpy(out + 4, value, value_bytes)
    return 4 + room_bytes


cdef uint32_t vpd_identification(const DiskIdentity* identity, uint8_t* out) noexcept nogil:
    cdef uint32_t serial_bytes = <uint32_t>strlen(identity.serial)
    cdef uint32_t name_bytes = <uint32_t>strlen(identity.port_name)
    cdef uint8_t port[4]
    cdef uint32_t at = 4
    at += put_designator(out + at, 0x01, 0x03, identity.naa, 8, 8)              # NAA of the logical unit
    memcpy(out + at + 4 + 8, identity.serial, serial_bytes)
    at += put_designator(out + at, 0x02, 0x01, identity.vendor, 8, 8 + serial_bytes)    # T10 vendor identification
    put_be32(port, PORT)
    at += put_designator(out + at, 0x51, 0x94, port, 4, 4)                      # iSCSI, PIV, of the target port
    if name_bytes > 0:                                                          # SCSI name string, NUL at the end
        at += put_designator(out + at, 0x53, 0x98, identity.port_name, name_bytes, (name_bytes + 4) & ~<uint32_t>3)
    return at


cdef uint32_t vpd_extended(const DiskIdentity* identity, uint8_t* out) noexcept nogil:
    out[5] = 0x07                                   # HEADSUP, ORDSUP, SIMPSUP
    out[6] = 0x01                                   # V_SUP: there may be a volatile cache (caching mode page)
    return 64


cdef void disk_limits(const DiskIdentity* identity, DeviceLimits* limits) noexcept nogil:
    # What is compared as one is one request: at most PART_BYTES_MAX. What is atomic depends on the store (disk.pyx).
    cdef uint32_t part_blocks = PART_BYTES_MAX // identity.block_bytes
    memset(limits, 0, sizeof(DeviceLimits))
    limits.compare_blocks_max = part_blocks if part_blocks < COMPARE_BLOCKS_MAX else COMPARE_BLOCKS_MAX
    if identity.thin:
        limits.unmap_blocks_max = UNMAP_BLOCKS_MAX
        limits.unmap_descriptors_max = UNMAP_DESCRIPTORS_MAX


cdef uint32_t vpd_block_limits(const DiskView* view, uint8_t* out) noexcept nogil:
    cdef const DeviceLimits* limits = &view.device.limits
    cdef uint32_t block_bytes = view.identity.block_bytes
    cdef uint32_t page_blocks = PAGE_BYTES // block_bytes if block_bytes < PAGE_BYTES else 1
    out[4] = 0x01 if limits.write_same_zero_refused else 0          # WSNZ
    out[5] = <uint8_t>limits.compare_blocks_max
    put_be16(out + 6, <uint16_t>page_blocks)                        # optimal transfer length granularity
    put_be32(out + 12, PART_BYTES_MAX // block_bytes)               # optimal transfer length
    if view.identity.thin:
        put_be32(out + 20, limits.unmap_blocks_max if limits.unmap_blocks_max != 0 else <uint32_t>NO_BOUND)
        put_be32(out + 24, limits.unmap_descriptors_max if limits.unmap_descriptors_max != 0 else <uint32_t>NO_BOUND)
        put_be32(out + 28, page_blocks)                             # optimal unmap granularity
        put_be32(out + 32, 0x80000000)                              # its alignment: 0
    if limits.atomic_blocks_max != 0:
        put_be32(out + 8, TRANSFER_BYTES_MAX // block_bytes)        # maximum transfer length
    put_be64(out + 36, limits.write_same_blocks_max)
    put_be32(out + 44, limits.atomic_blocks_max)
    put_be32(out + 48, limits.atomic_alignment_blocks)
    put_be32(out + 52, limits.atomic_granularity_blocks)            # then, with atomic boundary: none
    return 64


cdef uint32_t vpd_page(const DiskView* view, uint8_t page, uint8_t* out) noexcept nogil:
    # Answers the length of the page, or 0: there is none.
    cdef const DiskIdentity* identity = view.identity
    cdef uint32_t length
    if page == 0x00:
        memcpy(out + 4, b"\x00\x80\x83\x86\x8f\xb0\xb1\xb2", 8)
        return 12
    if page == 0x80:
        length = <uint32_t>strlen(identity.serial)
        memcpy(out + 4, identity.serial, length)
        return 4 + length
    if page == 0x83:
        return vpd_identification(identity, out)
    if page == 0x86:
        return vpd_extended(identity, out)
    if page == 0x8F:
        return copy_list_page(out)
    if page == 0xB0:
        return vpd_block_limits(view, out)
    if page == 0xB1:
        put_be16(out + 4, 0x0001)                   # no rotation
        out[7] = 0x40 if identity.thin else 0       # WABEREQ: after SANITIZE BLOCK ERASE blocks read as zeros
        return 64
    if page == 0xB2:
        out[5] = 0xE4 if identity.thin else 0       # LBPU, LBPWS, LBPWS10, LBPRZ
        out[6] = 0x02 if identity.thin else 0       # thin provisioned
        return 8
    return 0


cdef void disk_inquiry(const DiskView* view, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    cdef uint32_t allocation_bytes = get_be16(cdb + 3)
    cdef uint32_t length
    if not cdb[1] & 0x01:
        if cdb[2] != 0 or cdb[1] & 0x02:
            answer.sense = SENSE_INVALID_FIELD_IN_CDB
        else:
            inquiry_standard(view, answer, allocation_bytes)
        return
    length = vpd_page(view, cdb[2], answer.data)
    if length == 0:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    answer.data[1] = cdb[2]
    put_be16(answer.data + 2, <uint16_t>(length - 4))
    answer_cut(answer, length, allocation_bytes)


# ---- capacity --------------------------------------------------------------------------------------------------------

cdef void disk_read_capacity_10(const DiskView* view, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil:
    if not cdb[8] & 0x01 and (cdb[2] | cdb[3] | cdb[4] | cdb[5]) != 0:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    put_be32(answer.data, clamp32(view.identity.blocks - 1))
    put_be32(answer.data + 4, view.identity.block_bytes)
    answer.data_bytes = 8


cdef uint8_t physical_exponent(const DiskIdentity* identity) noexcept nogil:
    cdef uint8_t exponent = 0
    while identity.block_bytes << exponent < identity.physical_bytes:
        exponent += 1
    return exponent


cdef void disk_read_capacity_16(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                                InfoAnswer* answer) noexcept nogil:
    cdef uint32_t at
    cdef uint8_t address = 0
    for at in range(2, 10):
        address |= cdb[at]
    if not cdb[14] & 0x01 and address != 0:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    put_be64(answer.data, view.identity.blocks - 1)
    put_be32(answer.data + 8, view.identity.block_bytes)
    answer.data[13] = physical_exponent(view.identity)
    answer.data[14] = 0xC0 if view.identity.thin else 0             # LBPME, LBPRZ
    answer_cut(answer, 32, command.length_bytes)
