# Reservations and unit attentions of a detoured volume: see reserve_path.pyx.
from detour.core.device cimport Device, Request
from detour.core.overlay cimport Volume
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef int reserve_init(Volume* volume) noexcept nogil                         # OK, E_NOMEM
cdef void reserve_free(Volume* volume) noexcept nogil
cdef uint32_t reserve_admit(Device* device, const void* nexus, const ScsiCommand* command,
                            uint8_t* scsi_status) noexcept nogil
cdef bint reserve_conflicts(Device* device, const void* nexus, const ScsiCommand* command) noexcept nogil
cdef void reserve_nexus_event(Device* device, const void* nexus, int event) noexcept nogil
cdef bint reserve_takes(const Volume* volume, const Request* request) noexcept nogil    # a COMMAND that is executed here
cdef void reserve_run(Volume* volume, Request* request) noexcept nogil       # it is begun, and counted as open
# Python has made the state durable that EVENT_RESERVATIONS gave it, or has failed to.
cdef int reserve_stored(Volume* volume, int status) noexcept nogil
# Data of READ FULL STATUS: of main, or `kept` by an earlier life of the gateway. E_BUSY while a change is being kept;
# E_PROTOCOL, E_FULL.
cdef int reserve_load(Volume* volume, const uint8_t* data, uint32_t data_bytes, bint kept, bint aptpl) noexcept nogil
cdef void reserve_durable(Volume* volume, bint durable) noexcept nogil       # main offers APTPL
