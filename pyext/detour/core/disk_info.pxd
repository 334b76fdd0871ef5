# What a plain disk answers to commands that touch no medium: looks the command up in the table of what is offered, and
# hands it to the module that knows it. No store and no loop.
from detour.core.disk_identity cimport DiskView, InfoAnswer
from detour.core.nexus cimport NexusEntry, NexusTable
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

# `nexus`: what the command came by, or NULL. May change view.state; what else follows is in answer.effects.
cdef void disk_info(const DiskView* view, const NexusTable* nexuses, NexusEntry* nexus, const ScsiCommand* command,
                    const uint8_t* cdb, const uint8_t* parameters, uint32_t parameter_bytes,
                    InfoAnswer* answer) noexcept nogil
# REQUEST SENSE with `attention` to report, or else whether the disk is ready, in the format that the CDB asks for.
cdef void disk_request_sense(const DiskView* view, const uint8_t* cdb, uint32_t attention,
                             InfoAnswer* answer) noexcept nogil
