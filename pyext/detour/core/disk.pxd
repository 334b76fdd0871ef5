# A plain disk over any store: the device of `detour target`. Data commands go to the store (WRITE through a pool buffer);
# INQUIRY, VPD pages, MODE SENSE, READ CAPACITY, REPORT LUNS, REPORT SUPPORTED OPERATION CODES and the like are answered
# here from tables, as SPC-4 and SBC-3 say.
from detour.core.types cimport *
from detour.core.device cimport Device, DeviceHandle
from detour.core.store cimport Store, StoreHandle
from detour.core.pool cimport Slab

cdef struct Disk:
    Device device
    Store* store
    char vendor[9]
    char product[17]
    char revision[5]
    char serial[33]
    uint8_t naa[8]
    bint write_cache            # WCE in the caching mode page: store is volatile
    bint thin                   # UNMAP offered (LBPME)
    uint32_t latency_us         # --delay: writes are held for that long before they reach the store (tests of barriers)

# DiskHandle(reactor, store, serial="", vendor="DETOUR", product="VIRTUAL DISK", write_cache=True, thin=True,
#            read_only=False, delay_us=0)
cdef class DiskHandle(DeviceHandle):
    cdef Disk* disk
    cdef readonly StoreHandle store
