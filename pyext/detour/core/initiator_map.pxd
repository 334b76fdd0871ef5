# STORE_MAP over iSCSI: GET LBA STATUS (SBC-3 5.6), one descriptor of it. Pure, from an Io to a CDB and from data to an Io.
from detour.core.store cimport Io
from detour.core.types cimport *

cdef enum:
    MAP_REPLY_BYTES = 24

cdef void map_cdb(const Io* io, uint32_t block_bytes, uint8_t* cdb) noexcept nogil
# What the target told of the first blocks; what makes no sense counts as mapped, which is never wrong.
cdef void map_take(Io* io, uint32_t block_bytes, const uint8_t* reply, uint32_t reply_bytes) noexcept nogil
