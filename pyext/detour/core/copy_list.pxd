# The parameter list of EXTENDED COPY(LID1), SPC-4 6.4: checks and fields.
from detour.core.types cimport *

cdef enum:
    COPY_CSCDS_MAX = 16
    COPY_SEGMENTS_MAX = 64
    COPY_HEADER_BYTES = 16
    COPY_CSCD_BYTES = 32
    COPY_SEGMENT_BYTES = 28
    COPY_DESCRIPTORS_BYTES_MAX = COPY_CSCDS_MAX * COPY_CSCD_BYTES + COPY_SEGMENTS_MAX * COPY_SEGMENT_BYTES
    COPY_LIST_BYTES_MAX = COPY_HEADER_BYTES + COPY_DESCRIPTORS_BYTES_MAX
    COPY_SEGMENT_BYTES_MAX = 0xFFFF * 4096      # of the largest blocks
    COPIES_MAX = 8                  # at work in one target
    COPY_CSCD_TYPE = 0xE4           # identification descriptor
    COPY_SEGMENT_TYPE = 0x02        # block device to block device

cdef struct CopyHeader:
    uint8_t list_id
    bint kept                       # the host may ask for results
    uint32_t cscds_count
    uint32_t segments_at            # offset of the first segment descriptor
    uint32_t segments_end

cdef struct CopyCscd:
    uint8_t device_type
    const uint8_t* naa              # NULL: named in another way
    uint8_t naa_bytes
    uint32_t block_bytes

cdef struct CopySegment:
    bint counts_destination         # DC: `blocks` are of the destination
    uint16_t source
    uint16_t destination
    uint16_t blocks
    lba_t source_lba
    lba_t destination_lba

# The Sense with which the list is refused, or 0.
cdef uint32_t copy_list_check(const uint8_t* data, uint32_t data_bytes, CopyHeader* out) noexcept nogil
cdef void copy_list_cscd(const uint8_t* data, uint32_t index, CopyCscd* out) noexcept nogil
cdef void copy_list_segment(const uint8_t* descriptor, CopySegment* out) noexcept nogil
# VPD page 8Fh (third-party copy, SPC-4 7.8.17) in `out`; answers its length, with the header.
cdef uint32_t copy_list_page(uint8_t* out) noexcept nogil
