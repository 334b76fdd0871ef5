# Readiness and medium of a plain disk: START STOP UNIT (SBC-3 5.25), PREVENT ALLOW MEDIUM REMOVAL (SPC-4 6.13), and what
# is refused while there is no medium; diagnostics and defect lists.
from detour.core.disk_identity cimport DiskState, DiskView, InfoAnswer
from detour.core.nexus cimport NexusEntry, NexusTable
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

# The sense of a unit that is not ready, or 0.
cdef uint32_t disk_not_ready(const DiskState* state) noexcept nogil
# Whether a unit that is not ready refuses the command with that sense.
cdef bint disk_needs_medium(const ScsiCommand* command) noexcept nogil
cdef void disk_start_stop(const DiskView* view, const NexusTable* nexuses, const uint8_t* cdb,
                          InfoAnswer* answer) noexcept nogil
# `entry`: of the nexus that the command came by, or NULL.
cdef void disk_prevent_allow(const DiskView* view, NexusEntry* entry, const uint8_t* cdb,
                             InfoAnswer* answer) noexcept nogil
# A reset of the unit or the target: removal is allowed again (SPC-4 6.13).
cdef void disk_allow_removal(NexusTable* nexuses) noexcept nogil
cdef void disk_send_diagnostic(const ScsiCommand* command, const uint8_t* cdb, const uint8_t* parameters,
                               uint32_t parameter_bytes, InfoAnswer* answer) noexcept nogil
cdef void disk_receive_diagnostic(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil
cdef void disk_defect_data(const ScsiCommand* command, const uint8_t* cdb, InfoAnswer* answer) noexcept nogil
