# What a host meets of main besides its data, as far as the gateway answers it itself: limits, what is offered, modes,
# reservations. The base of VolumeHandle.
from detour.core.device cimport DeviceHandle
from detour.core.overlay cimport Volume
from detour.core.reactor cimport command_fn
from detour.core.types cimport *

# set_limits(...), set_offered(withheld, naa=, lun=, thin=, keeps_reservations=, durable_reservations=),
# set_modes(descriptor_sense, software_protected, sync_always), load_reservations(data, kept=False, aptpl=False),
# reservations_stored(status=0): tickets
cdef class MirrorHandle(DeviceHandle):
    cdef Volume* volume
    cdef object ask(self, command_fn run, uint64_t a0=*, uint64_t a1=*, uint64_t a2=*)
