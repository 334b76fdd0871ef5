from detour.core.device import DeviceHandle

class MirrorHandle(DeviceHandle):
    """What Python tells a volume of main, and keeps of it. Every method answers a ticket."""

    def set_limits(
        self,
        write_same_blocks_max: int = 0,
        write_same_zero_refused: bool = False,
        unmap_blocks_max: int = 0,
        unmap_descriptors_max: int = 0,
        compare_blocks_max: int = 0,
        atomic_blocks_max: int = 0,
        atomic_alignment_blocks: int = 0,
        atomic_granularity_blocks: int = 0,
    ) -> int: ...
    def set_offered(
        self,
        withheld: dict[int, int],
        *,
        naa: bytes = b"",
        lun: int = 0,
        thin: bool = False,
        keeps_reservations: bool = False,
        durable_reservations: bool = False,
    ) -> int: ...
    def set_modes(self, descriptor_sense: bool, software_protected: bool, sync_always: bool) -> int: ...
    def load_reservations(self, data: bytes, kept: bool = False, aptpl: bool = False) -> int: ...
    def reservations_stored(self, status: int = 0) -> int: ...
    @property
    def reservations_changed(self) -> bool: ...
    @property
    def software_protected(self) -> bool: ...
