# A plain disk over any store: the device of `detour target`. Data commands go to the store (WRITE through a pool buffer);
# INQUIRY, VPD pages, MODE SENSE, READ CAPACITY, REPORT LUNS, REPORT SUPPORTED OPERATION CODES and the like are answered
# here from tables, as SPC-4 and SBC-3 say.
from detour.core.types cimport *
from detour.core.device cimport Device, DeviceHandle, Request
from detour.core.disk_identity cimport DiskIdentity, DiskState, DiskView
from detour.core.disk_reserve cimport ReserveDesk
from detour.core.disk_sanitize cimport Sanitizer
from detour.core.nexus cimport NexusTable
from detour.core.reactor cimport Deferred, Timer
from detour.core.store cimport Store, StoreHandle

cdef struct Disk:
    Device device
    Store* store
    DiskIdentity identity
    DiskState state             # what hosts change: mode parameters, readiness
    DiskView view               # all three, as the answers' modules see them
    bint write_through          # WCE is off over a store with a cache: every write is stable before its answer
    NexusTable nexuses
    ReserveDesk desk            # reservations
    Sanitizer sanitizer
    Request* finished_head      # COMMANDs whose done is called later in this turn
    Request* finished_tail
    Deferred finish_work
    uint32_t latency_us         # --delay: writes are held for that long before they reach the store (tests of barriers)
    uint64_t write_bytes_s      # --write-rate: what the disk takes a second, 0: without bound (tests of slow storage)
    ns_t pace_free_ns           # when a paced disk takes the next write
    Request* delayed_head
    Request* delayed_tail
    Timer delay_timer
    bint ended                  # closed: the loop does not touch this memory any more

# DiskHandle(reactor, store, serial="", vendor="DETOUR", product="VIRTUAL DISK", write_cache=True, thin=True,
#            read_only=False, delay_us=0, device_id=0, removable=False, port_name="",
#            durable=False, reservations=b"", atomic=False, physical_bytes=0, write_bytes_s=0)
cdef class DiskHandle(DeviceHandle):
    cdef Disk* disk
    cdef readonly StoreHandle store
