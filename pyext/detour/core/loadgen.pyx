# What Python holds of a load generator (load.pyx runs it): settings are checked here, once; figures are memory that numpy
# reads without asking the loop.
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

from detour.core.load cimport *
from detour.core.stamps cimport *
from detour.core.stats cimport Histogram, stats_view

_SECTION_NAMES = ("reads", "writes", "flushes", "read_bytes", "write_bytes", "errors", "mismatches", "checked_bytes",
                 "longest_ns", "elapsed_ns", "late_ns")
_HISTOGRAM_NAMES = ("read_ns", "write_ns", "flush_ns")
_FAULT_NAMES = {STAMP_FOREIGN: "foreign", STAMP_SHIFTED: "shifted", STAMP_TORN: "torn", STAMP_OLD: "old",
               STAMP_NEW: "new", STAMP_MIXED: "mixed"}
_PER_MILLION = 1000000
_MODES = {"random": LOAD_RANDOM, "sequential": LOAD_SEQUENTIAL, "ordered": LOAD_ORDERED}


def _multiple(name, value, of):
    if value <= 0 or value % of:
        raise ValueError(f"{name} is {value}, which is not a positive multiple of {of}")
    return int(value)


def _settings(store_bytes, block_bytes, offset_bytes, length_bytes, unit_bytes, io_bytes, io_bytes_max, depth, mode):
    unit = _multiple("unit_bytes", unit_bytes, max(block_bytes, STAMP_BYTES))
    length = store_bytes - offset_bytes if length_bytes is None else length_bytes
    length -= length % unit
    io_bytes = _multiple("io_bytes", io_bytes, unit)
    io_bytes_max = io_bytes if io_bytes_max is None else _multiple("io_bytes_max", io_bytes_max, unit)
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}; known are {', '.join(_MODES)}")
    if not 1 <= depth <= LOAD_DEPTH_MAX:
        raise ValueError(f"depth is {depth}, which is not in 1..{LOAD_DEPTH_MAX}")
    if offset_bytes < 0 or offset_bytes % max(block_bytes, STAMP_BYTES) or offset_bytes + length > store_bytes:
        raise ValueError("the region is not inside of the store, or not aligned to its blocks")
    if not io_bytes <= io_bytes_max <= min(length, unit * LOAD_UNITS_OF_IO_MAX):
        raise ValueError("io_bytes and io_bytes_max do not fit into the region, or are out of order")
    if mode == "ordered" and length // unit < ORDERED_REGIONS:
        raise ValueError(f"the mode ordered needs at least {ORDERED_REGIONS} units")
    return {"offset_bytes": int(offset_bytes), "length_bytes": int(length), "unit_bytes": unit, "io_bytes": io_bytes,
            "io_bytes_max": io_bytes_max, "depth": int(depth), "mode": mode}


def _share(name, value):
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}, which is not in 0..1")
    return round(value * _PER_MILLION)


def stats_names():
    """Names of the leading counters of each section."""
    return list(_SECTION_NAMES)


def histogram_names():
    """Names of the three histograms that follow the counters of a section."""
    return list(_HISTOGRAM_NAMES)


def section_words():
    """uint64 words of one section in `LoadGenerator.stats`."""
    return sizeof(LoadSection) // sizeof(uint64_t)


def histogram_words():
    """uint64 words of one histogram: count, sum, maximum, then the buckets."""
    return sizeof(Histogram) // sizeof(uint64_t)


cdef class _UnitVersions:
    """Read-only uint32 view of the versions; keeps the generator alive."""
    cdef LoadGenerator owner
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef Load* load = self.owner.load
        if flags & PyBUF_WRITABLE:
            raise BufferError("versions are read-only")
        self.shape[0] = load.units
        self.strides[0] = sizeof(uint32_t)
        buffer.buf = load.acked
        buffer.format = b"I"
        buffer.internal = NULL
        buffer.itemsize = sizeof(uint32_t)
        buffer.len = load.units * sizeof(uint32_t)
        buffer.ndim = 1
        buffer.obj = self
        buffer.readonly = 1
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL

    def __releasebuffer__(self, Py_buffer* buffer):
        pass


cdef dict fault_dict(LoadFault* fault):
    return {"offset_bytes": fault.offset_bytes, "lba": fault.offset_bytes // STAMP_BYTES,
            "length_bytes": fault.length_bytes, "section": fault.section}


cdef class LoadGenerator:
    """A host over any store; see loadgen.pxd. Bad settings raise ValueError, missing memory MemoryError."""

    def __cinit__(self, Reactor reactor not None, load_id, StoreHandle store not None, *, offset_bytes=0,
                  length_bytes=None, unit_bytes=4096, io_bytes=4096, io_bytes_max=None, read_share=0.5, depth=16,
                  rate=0.0, mode="random", verify=True, flush_every=0, fua_share=0.0, seed=1, versions=None, base=None,
                  rewriting=False):
        cdef Load* load
        self.load = NULL
        self.reactor = reactor
        self.store = store
        self.id = load_id
        self.settings = _settings(store.store.size_bytes, store.store.block_bytes, offset_bytes, length_bytes,
                                  unit_bytes, io_bytes, io_bytes_max, depth, mode)
        if rate < 0 or flush_every < 0:
            raise ValueError("rate and flush_every are not negative")
        if rewriting and (base is None or not verify):
            raise ValueError("rewriting needs verify and base: what to put back has to be known")
        load = <Load*>calloc(1, sizeof(Load))
        if load == NULL:
            raise MemoryError
        self.load = load
        load.loop = reactor.loop
        load.store = store.store
        load.id = load_id
        load.mode = _MODES[mode]
        load.verify = verify
        load.rewriting = rewriting
        load.interval_ns = 1e9 / rate if rate else 0.0
        load.read_share_ppm = _share("read_share", read_share)
        load.fua_share_ppm = _share("fua_share", fua_share)
        load.flush_every = flush_every
        load.seed_word = stamp_mix(seed)
        load.random_state = stamp_mix(load.seed_word)
        self._prepare(versions, base)

    cdef _prepare(self, versions, base):
        cdef Load* load = self.load
        settings = self.settings
        load.offset_bytes = settings["offset_bytes"]
        load.unit_bytes = settings["unit_bytes"]
        load.units = settings["length_bytes"] // load.unit_bytes
        load.io_units_min = settings["io_bytes"] // load.unit_bytes
        load.io_units_max = settings["io_bytes_max"] // load.unit_bytes
        load.depth = settings["depth"]
        load.timer.run = load_on_pump
        load.timer.owner = load
        load.end_timer.run = load_on_time_over
        load.end_timer.owner = load
        load.pump.run = load_on_pump
        load.pump.owner = load
        if load_tables(load) != OK:
            raise MemoryError
        if base is not None:
            self._take_base(base)
        if versions is not None:
            self._take_versions(versions)

    cdef _take_base(self, base):
        cdef Load* load = self.load
        PyObject_GetBuffer(base, &self.base_buffer, PyBUF_SIMPLE)
        self.base_held = True
        if <uint64_t>self.base_buffer.len < load.units * load.unit_bytes:
            raise ValueError("base is shorter than the region")
        load.base = <const uint8_t*>self.base_buffer.buf

    cdef _take_versions(self, versions):
        cdef Load* load = self.load
        cdef const uint32_t[::1] view = versions
        cdef uint64_t count = view.shape[0]
        if not load.verify or count != load.units:
            raise ValueError("versions need verify, and as many entries as the region has units")
        memcpy(load.acked, &view[0], count * sizeof(uint32_t))
        memcpy(load.issued, load.acked, count * sizeof(uint32_t))
        memcpy(load.floor, load.acked, count * sizeof(uint32_t))
        if load.mode == LOAD_ORDERED:
            load.order = max(versions)

    def __dealloc__(self):
        cdef Load* load = self.load
        if self.base_held:
            PyBuffer_Release(&self.base_buffer)
        if load == NULL or not (self.closed or not self.reactor.running):
            return
        load_free(load)

    def start(self, seconds=0, operations=0):
        """Begins to send; ends by itself after `seconds` or `operations` (0: only by stop)."""
        if self.closed:
            raise ValueError("the load generator is closed")
        return self.reactor.call(load_start, self.load, <uint64_t>(seconds * 1e9), <uint64_t>operations, 0, 0, NULL, 0)

    def stop(self):
        """Sends nothing more; the ticket is done when nothing is in flight."""
        return self.reactor.call(load_stop, self.load, 0, 0, 0, 0, NULL, 0)

    def section(self, index):
        """From now on what ends is counted in section `index` (0..7)."""
        if not 0 <= index < LOAD_SECTIONS:
            raise ValueError(f"sections are 0..{LOAD_SECTIONS - 1}")
        return self.reactor.call(load_section, self.load, <uint64_t>index, 0, 0, 0, NULL, 0)

    def rewrite(self, on):
        """With True, writes put back what is there; with False they write new versions."""
        if on and self.load.base == NULL:
            raise ValueError("rewriting needs base: what to put back has to be known")
        return self.reactor.call(load_rewrite, self.load, 1 if on else 0, 0, 0, 0, NULL, 0)

    def close(self):
        """Gives the memory back with the object. Only when nothing runs: after EVENT_LOAD_DONE or stop."""
        if self.running:
            raise RuntimeError("the load generator is running; stop it first")
        self.closed = True

    @property
    def running(self):
        return self.load.state != LOAD_IDLE

    @property
    def stats(self):
        """Read-only uint64: LOAD_SECTIONS rows of section_words()."""
        cdef Load* load = self.load
        return stats_view(self, &load.sections[0], LOAD_SECTIONS * (sizeof(LoadSection) // sizeof(uint64_t)))

    @property
    def versions(self):
        """Read-only uint32: version of each unit that was acknowledged last, 0: never written."""
        cdef _UnitVersions view
        if not self.load.verify:
            raise ValueError("versions are kept only with verify")
        view = _UnitVersions.__new__(_UnitVersions)
        view.owner = self
        return memoryview(view)

    @property
    def first_mismatch(self):
        """The first thing that a read got wrong: kind, place (bytes, and LBA in sectors), versions, sector as found."""
        cdef LoadFault* fault = &self.load.mismatch
        if fault.kind == 0:
            return None
        return fault_dict(fault) | {
            "kind": _FAULT_NAMES[fault.kind], "expected": (fault.expected_min, fault.expected_max),
            "found": {"seed_matches": fault.found_seed == self.load.seed_word, "sector": fault.found_sector,
                      "version": fault.found_version}}

    @property
    def first_error(self):
        """The first operation that failed: status, op (StoreOp), place."""
        cdef LoadFault* fault = &self.load.error
        if fault.kind == 0:
            return None
        return fault_dict(fault) | {"status": fault.status, "op": fault.op}

    def expected(self, unit):
        """What `unit` holds after its last acknowledged write; LookupError where that is not known."""
        cdef Load* load = self.load
        cdef uint64_t number = unit
        cdef uint64_t index, first_sector
        cdef bytearray data
        cdef uint8_t* place
        if not load.verify or number >= load.units:
            raise LookupError("no such unit, or no verification")
        data = bytearray(load.unit_bytes)
        place = data
        first_sector = (load.offset_bytes + number * load.unit_bytes) // STAMP_BYTES
        if load.acked[number] != 0:
            for index in range(load.unit_bytes // STAMP_BYTES):
                stamp_write(place + index * STAMP_BYTES, load.seed_word, first_sector + index, load.acked[number])
        elif load.base != NULL:
            memcpy(place, load.base + number * load.unit_bytes, load.unit_bytes)
        else:
            raise LookupError(f"unit {unit} was never written, and its first content is not known")
        return bytes(data)

    def compare(self, data, offset_bytes=0):
        """Compares `data` (bytes-like: the region from `offset_bytes` on) with what the region holds now.

        Answers a dict: units compared, units wrong, units unknown (never written, no base), first_wrong_bytes (offset
        in the region, or None). A unit whose last write failed may hold the old or the new version.
        """
        cdef Load* load = self.load
        cdef const uint8_t[::1] view = data
        cdef uint64_t figures[4]
        cdef uint64_t first = offset_bytes // load.unit_bytes
        cdef uint64_t count = view.shape[0] // load.unit_bytes
        if not load.verify or offset_bytes % load.unit_bytes or first + count > load.units:
            raise ValueError("no verification, or not a part of the region in whole units")
        memset(figures, 0, sizeof(figures))
        if count:
            with nogil:
                load_compare(load, &view[0], first, count, figures)
        return {"compared": figures[0], "wrong": figures[1], "unknown": figures[2],
                "first_wrong_bytes": figures[3] if figures[1] else None}
