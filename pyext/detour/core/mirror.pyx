# See mirror.pxd. Owns nothing: the volume is VolumeHandle's. Commands from Python run on the loop thread.
from libc.string cimport memcpy, memset

from detour.core.device cimport DeviceLimits
from detour.core.reactor cimport Command, command_done, command_fn
from detour.core.reserve_path cimport reserve_durable, reserve_load, reserve_stored
from detour.core.types cimport *

cdef struct Offer:              # what set_offered carries to the loop
    uint32_t withheld[256]
    uint8_t naa[16]
    uint8_t naa_bytes
    uint32_t lun
    bint thin
    bint keeps_reservations
    bint durable_reservations


cdef void run_set_limits(Command* command) noexcept nogil:
    memcpy(&(<Volume*>command.owner).device.limits, command.data, sizeof(DeviceLimits))
    command_done(command, OK)


cdef void run_set_offered(Command* command) noexcept nogil:
    cdef Volume* volume = <Volume*>command.owner
    cdef Offer* offer = <Offer*>command.data
    memcpy(volume.device.withheld, offer.withheld, sizeof(offer.withheld))
    memcpy(volume.device.naa, offer.naa, sizeof(offer.naa))
    volume.device.naa_bytes = offer.naa_bytes
    volume.lun = offer.lun
    volume.thin = offer.thin
    volume.reservations_kept = offer.keeps_reservations
    reserve_durable(volume, offer.durable_reservations)
    command_done(command, OK)


cdef void run_set_modes(Command* command) noexcept nogil:
    cdef Volume* volume = <Volume*>command.owner
    volume.device.descriptor_sense = command.args[0] != 0
    volume.device.software_protected = command.args[1] != 0
    if not volume.sync_fixed:
        volume.sync_always = command.args[2] != 0
    command_done(command, OK)


cdef void run_load_reservations(Command* command) noexcept nogil:
    command_done(command, reserve_load(<Volume*>command.owner, <const uint8_t*>command.data,
                                       <uint32_t>command.data_bytes, command.args[0] != 0, command.args[1] != 0))


cdef void run_reservations_stored(Command* command) noexcept nogil:
    command_done(command, reserve_stored(<Volume*>command.owner, <int><int64_t>command.args[0]))


cdef class MirrorHandle(DeviceHandle):
    """What Python tells a volume of main, and keeps of it. Every call answers a ticket."""

    def __cinit__(self, *_args, **_named):
        self.volume = NULL

    cdef object ask(self, command_fn run, uint64_t a0=0, uint64_t a1=0, uint64_t a2=0):
        return self.reactor.call(run, self.volume, a0, a1, a2, 0, NULL, 0)

    def set_limits(self, uint64_t write_same_blocks_max=0, bint write_same_zero_refused=False,
                   uint32_t unmap_blocks_max=0, uint32_t unmap_descriptors_max=0, uint32_t compare_blocks_max=0,
                   uint32_t atomic_blocks_max=0, uint32_t atomic_alignment_blocks=0,
                   uint32_t atomic_granularity_blocks=0):
        """What main bears in one command, as its block limits VPD page tells; see DeviceLimits."""
        cdef DeviceLimits limits
        limits.write_same_blocks_max = write_same_blocks_max
        limits.write_same_zero_refused = write_same_zero_refused
        limits.unmap_blocks_max = unmap_blocks_max
        limits.unmap_descriptors_max = unmap_descriptors_max
        limits.compare_blocks_max = compare_blocks_max
        limits.atomic_blocks_max = atomic_blocks_max
        limits.atomic_alignment_blocks = atomic_alignment_blocks
        limits.atomic_granularity_blocks = atomic_granularity_blocks
        return self.reactor.call(run_set_limits, self.volume, 0, 0, 0, 0, <const uint8_t*>&limits, sizeof(limits))

    def set_offered(self, dict withheld not None, *, bytes naa=b"", uint32_t lun=0, bint thin=False,
                    bint keeps_reservations=False, bint durable_reservations=False):
        """What main offers. withheld: operation code -> bits of the service actions (bit 0 without any) that are refused;
        naa: designator of type 3; thin: what is unmapped is deallocated. keeps_reservations: EVENT_RESERVATIONS is
        answered by reservations_stored. durable_reservations: APTPL is offered."""
        cdef Offer offer
        memset(&offer, 0, sizeof(offer))
        if len(naa) > 16:
            raise ValueError("an NAA designator has 8 or 16 bytes")
        for opcode, bits in withheld.items():
            if not 0 <= opcode < 256:
                raise ValueError(f"there is no operation code {opcode}")
            offer.withheld[<uint8_t>opcode] = <uint32_t>bits
        memcpy(offer.naa, <const char*>naa, len(naa))
        offer.naa_bytes = <uint8_t>len(naa)
        offer.lun = lun
        offer.thin = thin
        offer.keeps_reservations = keeps_reservations
        offer.durable_reservations = durable_reservations
        return self.reactor.call(run_set_offered, self.volume, 0, 0, 0, 0, <const uint8_t*>&offer, sizeof(offer))

    def set_modes(self, bint descriptor_sense, bint software_protected, bint sync_always):
        """What main's control and caching mode pages say: D_SENSE, SWP, and whether it has no write cache."""
        return self.ask( run_set_modes, descriptor_sense, software_protected, sync_always)

    def load_reservations(self, bytes data not None, bint kept=False, bint aptpl=False):
        """READ FULL STATUS data: of main, or what EVENT_RESERVATIONS gave in an earlier life (`kept`, with its result).
        E_BUSY while a change is being kept."""
        return self.reactor.call(run_load_reservations, self.volume, kept, aptpl, 0, 0,
                                 <const uint8_t*><const char*>data, len(data))

    def reservations_stored(self, int status=0):
        """What EVENT_RESERVATIONS gave is durable; a negative status: it could not be made so."""
        return self.ask( run_reservations_stored, <uint64_t><int64_t>status)

    @property
    def reservations_changed(self):
        """A host has changed the registrations since they were taken from main."""
        return bool(self.volume.reservations_changed)

    @property
    def software_protected(self):
        """SWP as hosts have set it: kept here, and not on main, which has to take what catch-up writes."""
        return bool(self.volume.device.software_protected)
