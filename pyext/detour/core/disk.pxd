# A plain disk over any store: the device of `detour target`. Data commands go to the store (WRITE through a pool buffer);
# INQUIRY, VPD pages, MODE SENSE, READ CAPACITY, REPORT LUNS, REPORT SUPPORTED OPERATION CODES and the like are answered
# here from tables, as SPC-4 and SBC-3 say.
from detour.core.types cimport *
from detour.core.device cimport Device, DeviceHandle, Request
from detour.core.disk_info cimport DiskIdentity
from detour.core.reactor cimport Deferred, Timer
from detour.core.store cimport Store, StoreHandle
from detour.core.pool cimport Slab

cdef struct NexusState:         # one initiator-target nexus as this disk knows it
    const void* nexus
    uint32_t attention          # Sense of the unit attention to report, or 0
    NexusState* next

cdef struct Disk:
    Device device
    Store* store
    DiskIdentity identity
    bint write_through          # WCE is off over a store with a cache: every write goes with FUA
    Slab nexus_slab
    NexusState* nexuses
    Request* finished_head      # COMMANDs whose done is called later in this turn
    Request* finished_tail
    Deferred finish_work
    uint32_t latency_us         # --delay: writes are held for that long before they reach the store (tests of barriers)
    Request* delayed_head
    Request* delayed_tail
    Timer delay_timer
    bint ended                  # closed: the loop does not touch this memory any more

# DiskHandle(reactor, store, serial="", vendor="DETOUR", product="VIRTUAL DISK", write_cache=True, thin=True,
#            read_only=False, delay_us=0, device_id=0)
cdef class DiskHandle(DeviceHandle):
    cdef Disk* disk
    cdef readonly StoreHandle store
