# A host in the core: reads and writes a store at a depth or a rate, checks what it reads, measures latency without
# coordinated omission (at a rate, latency counts from the intended start). Serves `detour bench`, the demo's host, tests.
#
# With verify on, every block (of `unit_bytes`) carries a stamp: region seed, its number, a version; a read must show the
# version of the newest write that had been acknowledged when the read was sent, or of one in flight since then. In the
# mode ORDERED a writer stamps increasing numbers into several regions, each only after the one before was acknowledged,
# so that any point in time is a prefix.
from detour.core.types cimport *
from detour.core.load cimport Load
from detour.core.reactor cimport Reactor
from detour.core.store cimport StoreHandle

# LoadGenerator(reactor, load_id, store, *, offset_bytes=0, length_bytes=None, unit_bytes=4096, io_bytes=4096,
#               io_bytes_max=None, read_share=0.5, depth=16, rate=0.0, mode="random", verify=True, flush_every=0,
#               fua_share=0.0, seed=1, versions=None, base=None, rewriting=False)
#   base: what the region holds before the first write (bytes-like, of length_bytes); without it a unit that was never
#       written is not checked. rewriting: writes put back what is there (until rewrite(False)).
#   start(seconds=0, operations=0) -> ticket; EVENT_LOAD_DONE follows when time or operations are over, or after stop;
#       results: operations, errors, mismatches
#   stop() -> ticket, done when nothing is in flight · section(index) -> ticket: later figures go to section 0..7
#       (before, copy, catch-up, after, ...) · rewrite(on) -> ticket
#   stats -> read-only uint64 view, LOAD_SECTIONS rows: names in stats_names(), then three histograms (histogram_names())
#   versions -> read-only uint32 view: version of each unit that was acknowledged last (0: never written by us)
#   expected(unit) -> bytes: what the unit holds now, for a full compare by another path
#   compare(data, offset_bytes=0) -> what of `data` is not as expected
#   first_mismatch, first_error -> dict or None
cdef class LoadGenerator:
    cdef Load* load
    cdef readonly Reactor reactor
    cdef readonly StoreHandle store
    cdef readonly uint64_t id
    cdef readonly bint closed
    cdef readonly dict settings
    cdef object base_view
    cdef Py_buffer base_buffer
    cdef bint base_held
    cdef _prepare(self, versions, base)
    cdef _take_base(self, base)
    cdef _take_versions(self, versions)
