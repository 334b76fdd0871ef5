# The base of every device handle (disk, volume): a pointer to the core's Device, and the reactor that owns it.
#
# Owns nothing: each kind of device frees its own memory. Cost: none on the data path.

cimport cython


@cython.no_gc_clear
cdef class DeviceHandle:
    """A logical unit as Python holds it; made by a subclass (DiskHandle, VolumeHandle)."""

    def __cinit__(self, *args, **kwargs):
        self.device = NULL

    @property
    def blocks(self) -> int:
        """Capacity in logical blocks."""
        return self.device.blocks if self.device != NULL else 0

    @property
    def block_bytes(self) -> int:
        """Bytes of a logical block."""
        return self.device.block_bytes if self.device != NULL else 0

    @property
    def size_bytes(self) -> int:
        """Capacity in bytes."""
        return self.blocks * self.block_bytes

    @property
    def read_only(self) -> bool:
        """Whether writes are refused with DATA PROTECT."""
        return bool(self.device.read_only) if self.device != NULL else False

    @property
    def device_id(self) -> int:
        """The id that events of this device carry."""
        return self.device.id if self.device != NULL else 0
