# What a plain disk is (DiskIdentity, fixed when it is made), what hosts have made of it (DiskState), and the answer that
# the modules disk_vpd, disk_mode, disk_log, disk_opcodes and disk_medium write. No code but small helpers.
from detour.core.device cimport Device
from detour.core.types cimport *

cdef enum:
    INFO_BYTES_MAX = 4096       # room that every answer has

cdef struct DiskIdentity:
    char vendor[9]              # padded by spaces, NUL at the end
    char product[17]
    char revision[5]
    char serial[33]             # without padding
    char port_name[256]         # SCSI name of the target port ("iqn.…,t,0x0001"), or "": not known
    uint8_t naa[8]
    bint write_cache            # default of WCE in the caching mode page
    bint volatile_cache         # the store has a cache: with WCE clear every write is made stable before its answer
    bint thin                   # UNMAP offered (LBPME)
    bint removable              # RMB, and the medium can be ejected
    bint read_only              # the medium itself: WP in the mode parameter header
    uint64_t blocks
    uint32_t block_bytes
    uint32_t physical_bytes     # what READ CAPACITY(16) tells hosts to align to; a power of two, at least a block

cdef struct DiskState:
    # mode pages
    bint write_cache            # WCE
    bint software_protected     # SWP
    bint descriptor_sense       # D_SENSE
    # medium
    bint ejected
    # figures of the log pages since the last LOG SELECT with PCR: what the device had counted then, and errors
    uint64_t reads_before
    uint64_t writes_before
    uint64_t read_bytes_before
    uint64_t write_bytes_before
    uint64_t read_errors
    uint64_t write_errors

cdef struct DiskView:          # what an answer is made from
    const DiskIdentity* identity
    DiskState* state
    const Device* device        # limits, figures

# What an answer asks of the disk besides sending it.
cdef enum InfoEffect:
    EFFECT_MODES = 1            # mode parameters were changed
    EFFECT_LOGS = 2             # log parameters were reset
    EFFECT_FLUSH = 4            # the store is flushed before the answer goes
    EFFECT_LOADED = 8           # a medium came: every nexus is told

cdef struct InfoAnswer:
    uint8_t* data               # INFO_BYTES_MAX bytes of room, zeroed
    uint32_t data_bytes         # as cut by the allocation length
    uint32_t sense              # not 0: CHECK CONDITION with it, no data
    uint8_t wrong_byte          # of the CDB, to which that sense points; 0: to none
    uint32_t effects            # InfoEffect bits

cdef inline uint32_t clamp32(uint64_t value) noexcept nogil:
    return <uint32_t>0xFFFFFFFF if value > <uint64_t>0xFFFFFFFF else <uint32_t>value

cdef inline void answer_cut(InfoAnswer* answer, uint32_t data_bytes, uint32_t allocation_bytes) noexcept nogil:
    answer.data_bytes = data_bytes if data_bytes < allocation_bytes else allocation_bytes
