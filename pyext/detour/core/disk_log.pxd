# LOG SENSE and LOG SELECT of a plain disk (SPC-4 6.6, 6.7, 7.3): error counters, general statistics, informational
# exceptions.
from detour.core.disk_identity cimport DiskView, InfoAnswer
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef void disk_log_sense(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                         InfoAnswer* answer) noexcept nogil
# Resets what view.state counts from, and tells EFFECT_LOGS.
cdef void disk_log_select(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                          InfoAnswer* answer) noexcept nogil
