# MODE SENSE and MODE SELECT (6, 10) of a plain disk (SPC-4 6.9 to 6.12, 7.5; SBC-3 6.4).
from detour.core.disk_identity cimport DiskIdentity, DiskState, DiskView, InfoAnswer
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef void disk_mode_defaults(const DiskIdentity* identity, DiskState* state) noexcept nogil
cdef void disk_mode_sense(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                          InfoAnswer* answer) noexcept nogil
# Changes view.state and tells EFFECT_MODES when anything changed, EFFECT_FLUSH when the write cache went off.
cdef void disk_mode_select(const DiskView* view, const uint8_t* cdb, const uint8_t* parameters,
                           uint32_t parameter_bytes, InfoAnswer* answer) noexcept nogil
