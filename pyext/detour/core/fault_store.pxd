# A store in memory for tests and simulations: nothing completes before it is told to, in any order, with any status; it
# keeps two images (what reads see, and what was stable at the last flush) and follows rules for errors.
# Built always: the shipped core is the one that the tests drive.
from detour.core.types cimport *
from detour.core.store cimport Store, StoreHandle, Io

cdef struct FaultStore:
    Store store
    uint8_t* image              # what reads see
    uint8_t* stable             # what a power cut leaves, at least
    Io* pending_head            # submitted, not completed, oldest first
    Io* pending_tail
    uint32_t pending
    bint automatic              # complete everything in order without being told

# FaultStore(reactor, size_bytes, block_bytes=512, automatic=False)
#   pending() -> list of (op, offset_bytes, length_bytes) oldest first
#   complete(index, status=0) -> the data move now (a WRITE reaches `image`, a FLUSH copies image to stable)
#   fail(index, status) · complete_all() · image -> bytes-like, writable · power_cut(keep: callable|None)
cdef class FaultStoreHandle(StoreHandle):
    cdef FaultStore* fault
