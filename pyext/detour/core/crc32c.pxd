# CRC32C (Castagnoli), as iSCSI digests and journal checksums use it. Hardware kernel where there is one, a portable
# table kernel that gives the same result elsewhere (or by name, DETOUR_CRC32C=portable).
# Chained: crc32c_update(crc32c_update(0, a), b) == crc32c_update(0, a + b); the value is the finished one (inverted).
from detour.core.types cimport *

cdef uint32_t crc32c_update(uint32_t crc, const void* data, size_t length_bytes) noexcept nogil
# Copies and sums in one pass.
cdef uint32_t crc32c_copy(uint32_t crc, void* to, const void* source, size_t length_bytes) noexcept nogil
# The kernels by name, for tests and measurements; the hardware kernel only where crc32c_kernels() lists it.
cdef uint32_t crc32c_update_portable(uint32_t crc, const void* data, size_t length_bytes) noexcept nogil
cdef uint32_t crc32c_update_hardware(uint32_t crc, const void* data, size_t length_bytes) noexcept nogil
