# The table of commands that a plain disk offers, with their CDB usage data, and what is read from it: REPORT SUPPORTED
# OPERATION CODES (SPC-4 6.35), REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (6.36), and what the target side is to refuse.
from detour.core.device cimport Device
from detour.core.disk_identity cimport DiskView, InfoAnswer
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

# Whether the disk offers the command: 0, or the sense with which it is refused.
cdef uint32_t disk_refusal(const DiskView* view, const ScsiCommand* command) noexcept nogil
cdef bint disk_offers(const DiskView* view, uint8_t opcode, uint8_t action) noexcept nogil
# Fills device.withheld with what is in the table of scsi.pyx but not offered by this disk.
cdef void disk_withhold(const DiskView* view, Device* device) noexcept nogil
cdef void disk_report_opcodes(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                              InfoAnswer* answer) noexcept nogil
cdef void disk_report_task_management(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil
