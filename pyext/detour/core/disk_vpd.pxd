# INQUIRY of a plain disk: standard data (SPC-4 6.4.2) and the vital product data pages 00h, 80h, 83h, 86h, B0h, B1h, B2h;
# READ CAPACITY.
from detour.core.device cimport DeviceLimits
from detour.core.disk_identity cimport DiskIdentity, DiskView, InfoAnswer
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

# What the disk bears in one command; the block limits VPD page tells the same.
cdef void disk_limits(const DiskIdentity* identity, DeviceLimits* limits) noexcept nogil
cdef void disk_inquiry(const DiskView* view, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil
cdef void disk_read_capacity_10(const DiskView* view, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil
cdef void disk_read_capacity_16(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                                InfoAnswer* answer) noexcept nogil
