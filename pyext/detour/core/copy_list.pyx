# The parameter list of EXTENDED COPY(LID1), SPC-4 6.4: checks and fields.
#
# Owns nothing: pure functions over the list as it came.
# Invariants: what copy_list_check has passed can be read by the two others: every descriptor lies inside of the list.
# Cost: of no concern.
from libc.string cimport memcpy

from detour.core.endian cimport get_be16, get_be24, get_be32, get_be64, put_be16, put_be32
from detour.core.scsi cimport *

cdef enum:
    LIST_ID_NONE = 3                # LIST ID USAGE: the list identifier is not used
    DESIGNATOR_BYTES_MAX = 20
    DESIGNATOR_NAA = 3


cdef uint32_t copy_list_check(const uint8_t* data, uint32_t data_bytes, CopyHeader* out) noexcept nogil:
    cdef uint64_t cscds_bytes, segments_bytes, inline_bytes
    cdef uint8_t usage
    if data_bytes < COPY_HEADER_BYTES:
        return SENSE_PARAMETER_LIST_LENGTH
    usage = (data[1] >> 3) & 3
    cscds_bytes = get_be16(data + 2)
    segments_bytes = get_be32(data + 8)
    inline_bytes = get_be32(data + 12)
    if COPY_HEADER_BYTES + cscds_bytes + segments_bytes + inline_bytes > data_bytes:
        return SENSE_PARAMETER_LIST_LENGTH
    if cscds_bytes + segments_bytes > COPY_DESCRIPTORS_BYTES_MAX:
        return SENSE_PARAMETER_LIST_LENGTH
    if usage == LIST_ID_NONE and data[0] != 0:
        return SENSE_INVALID_FIELD_IN_PARAMETERS
    out.list_id = data[0]
    out.kept = usage != LIST_ID_NONE
    out.cscds_count = <uint32_t>(cscds_bytes // COPY_CSCD_BYTES)
    out.segments_at = <uint32_t>(COPY_HEADER_BYTES + cscds_bytes)
    out.segments_end = <uint32_t>(out.segments_at + segments_bytes)
    if cscds_bytes % COPY_CSCD_BYTES != 0:
        return SENSE_PARAMETER_LIST_LENGTH
    if out.cscds_count > COPY_CSCDS_MAX:
        return SENSE_COPY_CSCDS_MAX
    return check_descriptors(data, out, inline_bytes)


cdef uint32_t check_descriptors(const uint8_t* data, const CopyHeader* header, uint64_t inline_bytes) noexcept nogil:
    cdef uint32_t at = COPY_HEADER_BYTES
    cdef uint32_t segments = 0
    while at < header.segments_at:
        if data[at] != COPY_CSCD_TYPE:
            return SENSE_COPY_CSCD_TYPE
        at += COPY_CSCD_BYTES
    while at < header.segments_end:
        if data[at] != COPY_SEGMENT_TYPE:
            return SENSE_COPY_SEGMENT_TYPE
        if header.segments_end - at < COPY_SEGMENT_BYTES:
            return SENSE_PARAMETER_LIST_LENGTH
        if get_be16(data + at + 2) != COPY_SEGMENT_BYTES - 4:
            return SENSE_INVALID_FIELD_IN_PARAMETERS
        segments += 1
        at += COPY_SEGMENT_BYTES
    if segments > COPY_SEGMENTS_MAX:
        return SENSE_COPY_SEGMENTS_MAX
    return SENSE_COPY_INLINE_MAX if inline_bytes > 0 else SENSE_NONE


cdef void copy_list_cscd(const uint8_t* data, uint32_t index, CopyCscd* out) noexcept nogil:
    # SPC-4 6.4.5.6: LU ID TYPE and the NUL bit are ignored, as is the relative initiator port.
    cdef const uint8_t* cscd = data + COPY_HEADER_BYTES + index * COPY_CSCD_BYTES
    out.device_type = cscd[1] & 0x1F
    out.naa = NULL
    out.naa_bytes = cscd[7]
    out.block_bytes = get_be24(cscd + 29)
    if cscd[5] & 0x3F == DESIGNATOR_NAA and out.naa_bytes <= DESIGNATOR_BYTES_MAX:     # association: the logical unit
        out.naa = cscd + 8


cdef void copy_list_segment(const uint8_t* descriptor, CopySegment* out) noexcept nogil:
    out.counts_destination = (descriptor[1] & 0x02) != 0
    out.source = get_be16(descriptor + 4)
    out.destination = get_be16(descriptor + 6)
    out.blocks = get_be16(descriptor + 10)
    out.source_lba = get_be64(descriptor + 12)
    out.destination_lba = get_be64(descriptor + 20)


cdef uint32_t put_descriptor(uint8_t* out, uint16_t kind, uint16_t length_bytes) noexcept nogil:
    # Its head, with a length that is made a multiple of four; answers the whole length.
    length_bytes = (length_bytes + 3) & ~3
    put_be16(out, kind)
    put_be16(out + 2, length_bytes)
    return 4 + length_bytes


cdef uint32_t copy_list_page(uint8_t* out) noexcept nogil:
    cdef uint32_t at = 4
    memcpy(out + at + 4, b"\x08\x83\x01\x00\x84\x03\x00\x03\x04", 9)     # supported commands and their service actions
    at += put_descriptor(out + at, 0x0001, 9)
    put_be16(out + at + 12, COPY_CSCDS_MAX)                                 # parameter data
    put_be16(out + at + 14, COPY_SEGMENTS_MAX)
    put_be32(out + at + 16, COPY_DESCRIPTORS_BYTES_MAX)
    at += put_descriptor(out + at, 0x0004, 28)
    memcpy(out + at + 4, b"\x02\x02\xe4", 3)                               # supported descriptors
    at += put_descriptor(out + at, 0x0008, 3)
    at += put_descriptor(out + at, 0x000C, 2)                               # supported CSCD descriptor IDs: none beside
    put_be32(out + at + 4, COPIES_MAX)                                      # general copy operations: in all, at a time
    put_be32(out + at + 8, COPIES_MAX)
    put_be32(out + at + 12, COPY_SEGMENT_BYTES_MAX)
    out[at + 16] = 9                                                        # data segment granularity: 512 bytes
    at += put_descriptor(out + at, 0x8001, 32)
    return at
