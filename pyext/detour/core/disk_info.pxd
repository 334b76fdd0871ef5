# What a plain disk answers to commands that touch no medium: INQUIRY and VPD pages, capacity, mode and log pages,
# supported commands (SPC-4, SBC-3). Pure: from an identity and a CDB to bytes or sense, no store and no loop.
from detour.core.device cimport DeviceLimits
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef enum:
    INFO_BYTES_MAX = 4096       # room that every answer has

cdef struct DiskIdentity:
    char vendor[9]              # padded by spaces, NUL at the end
    char product[17]
    char revision[5]
    char serial[33]             # without padding
    uint8_t naa[8]
    bint write_cache            # WCE in the caching mode page
    bint thin                   # UNMAP offered (LBPME)
    bint read_only              # WP in the mode parameter header
    uint64_t blocks
    uint32_t block_bytes

cdef struct InfoAnswer:
    uint8_t* data               # INFO_BYTES_MAX bytes of room, zeroed
    uint32_t data_bytes         # as cut by the allocation length
    uint32_t sense              # not 0: CHECK CONDITION with it, no data

# What the disk bears in one command; the block limits VPD page tells the same.
cdef void disk_limits(const DiskIdentity* identity, DeviceLimits* limits) noexcept nogil
cdef void disk_info(const DiskIdentity* identity, const ScsiCommand* command, const uint8_t* cdb,
                    const uint8_t* parameters, uint32_t parameter_bytes, InfoAnswer* answer) noexcept nogil
# REQUEST SENSE with `sense` to report, in the format that the CDB asks for.
cdef void disk_info_request_sense(const uint8_t* cdb, uint32_t sense, InfoAnswer* answer) noexcept nogil
