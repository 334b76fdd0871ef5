# Read-only views of counters and histograms for numpy: the loop writes, Python reads whenever it likes, without asking.
#
# Owns: nothing; a view keeps the object alive whose memory it shows. A reader may see one counter newer than its
# neighbour, never half of one (aligned 64-bit words).
# Cost: none for the loop.
cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE

cdef char* FORMAT = b"Q"

BUCKETS = STATS_BUCKETS
COUNTERS = STATS_COUNTERS


def bucket(uint64_t value_ns) -> int:
    """Index of the latency bucket that counts `value_ns` nanoseconds."""
    return stats_bucket(value_ns)


def bucket_floor_ns(unsigned int index) -> int:
    """Smallest latency in nanoseconds that bucket `index` counts. Raises IndexError beyond BUCKETS."""
    if index >= STATS_BUCKETS:
        raise IndexError(f"bucket {index} of {STATS_BUCKETS}")
    if index < 8:
        return index
    return <uint64_t>(8 + (index & 7)) << (index // 8 - 1)


@cython.final
cdef class StatsView:
    """One-dimensional read-only view of uint64 counters; numpy.asarray(view) copies nothing."""

    def __cinit__(self):
        self.values = NULL
        self.shape[0] = 0
        self.strides[0] = sizeof(uint64_t)
        self.owner = None

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, Py_ssize_t index):
        if index < 0 or index >= self.shape[0]:
            raise IndexError(f"counter {index} of {self.shape[0]}")
        return self.values[index]

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("counters can only be read")
        view.buf = self.values
        view.itemsize = sizeof(uint64_t)
        view.len = self.shape[0] * <Py_ssize_t>sizeof(uint64_t)
        view.ndim = 1
        view.readonly = 1
        view.format = FORMAT if flags & PyBUF_FORMAT else NULL
        view.shape = self.shape if flags & PyBUF_ND else NULL
        view.strides = self.strides if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        view.obj = self

    def __releasebuffer__(self, Py_buffer* view):
        pass


cdef StatsView stats_view(object owner, void* values, Py_ssize_t count):
    cdef StatsView view = StatsView.__new__(StatsView)
    view.owner = owner
    view.values = <uint64_t*>values
    view.shape[0] = count
    return view
