# Opens the device seam (device.pxd) to the tests: requests as the target side makes them, one by one, with the loop turned
# by hand. Built always, because the tests drive the core that is shipped.
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from detour.core.device cimport (Device, DeviceHandle, REQUEST_FLUSH, REQUEST_FUA, REQUEST_READ, REQUEST_UNMAP,
                                 REQUEST_WRITE, Request)
from detour.core.journal cimport JournalHandle
from detour.core.store cimport StoreHandle
from detour.core.types cimport *

cdef enum:
    STEP_FREE = 0
    STEP_WAITS_PLACE = 1
    STEP_PLACED = 2             # kept there when asked for (`submit` later)
    STEP_SUBMITTED = 3
    STEP_DONE = 4


cdef struct Shot:
    Request request
    int step
    bint manual                 # WRITE stays placed until submit() or abort()
    uint8_t* payload


cdef void fill_and_submit(Shot* shot) noexcept nogil:
    memcpy(shot.request.data, shot.payload, shot.request.data_bytes)
    shot.step = STEP_SUBMITTED
    shot.request.device.ops.submit(shot.request.device, &shot.request)


cdef void shot_ready(Request* request) noexcept nogil:
    cdef Shot* shot = <Shot*>request.owner
    shot.step = STEP_PLACED
    if not shot.manual:
        fill_and_submit(shot)


cdef void shot_done(Request* request) noexcept nogil:
    (<Shot*>request.owner).step = STEP_DONE


cdef class DeviceDriver:
    """Requests to a device from Python. `steps` of a request: place, submit, done; `take` gives its result back."""

    cdef Device* device
    cdef Shot* shots
    cdef int shots_max
    cdef object handle

    def __cinit__(self, DeviceHandle handle not None, int shots_max=256):
        self.device = handle.device
        self.handle = handle
        self.shots_max = shots_max
        self.shots = <Shot*>calloc(shots_max, sizeof(Shot))
        if self.shots == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef int index
        for index in range(self.shots_max):
            free(self.shots[index].payload)
        free(self.shots)

    cdef Shot* fresh(self, int op, uint64_t lba, uint64_t blocks, int* number) except NULL:
        cdef int index
        cdef Shot* shot
        for index in range(self.shots_max):
            shot = &self.shots[index]
            if shot.step == STEP_FREE:
                memset(&shot.request, 0, sizeof(Request))
                shot.request.device = self.device
                shot.request.op = op
                shot.request.lba = lba
                shot.request.blocks = blocks
                shot.request.data_bytes = blocks * self.device.block_bytes
                shot.request.owner = shot
                shot.request.ready = shot_ready
                shot.request.done = shot_done
                shot.request.pinned_slot = -1
                number[0] = index
                return shot
        raise IndexError("too many requests at once")

    def write(self, uint64_t lba, bytes data not None, bint fua=False, bint manual=False):
        """Begins a write; with `manual` it stays placed until submit() or abort(). Answers its number."""
        cdef int number = 0
        cdef Shot* shot = self.fresh(REQUEST_WRITE, lba, len(data) // self.device.block_bytes, &number)
        shot.payload = <uint8_t*>calloc(1, len(data))
        memcpy(shot.payload, <const char*>data, len(data))
        shot.manual = manual
        shot.request.flags = REQUEST_FUA if fua else 0
        shot.step = STEP_WAITS_PLACE
        if self.device.ops.begin_write(self.device, &shot.request) == OK:
            shot_ready(&shot.request)
        return number

    def submit(self, int number):
        fill_and_submit(&self.shots[number])

    def abort(self, int number):
        """Gives up a write that was not submitted."""
        self.device.ops.abort(self.device, &self.shots[number].request)
        self.forget(number)

    cdef start(self, Shot* shot):
        shot.step = STEP_SUBMITTED
        self.device.ops.submit(self.device, &shot.request)

    def read(self, uint64_t lba, uint64_t blocks):
        cdef int number = 0
        self.start(self.fresh(REQUEST_READ, lba, blocks, &number))
        return number

    def flush(self):
        cdef int number = 0
        self.start(self.fresh(REQUEST_FLUSH, 0, 0, &number))
        return number

    def unmap(self, uint64_t lba, uint64_t blocks):
        cdef int number = 0
        self.start(self.fresh(REQUEST_UNMAP, lba, blocks, &number))
        return number

    def step(self, int number):
        """0 free, 1 waits for a place, 2 placed, 3 submitted, 4 done."""
        return self.shots[number].step

    def take(self, int number):
        """Status and, for a read, its data; None while it runs. The request is released."""
        cdef Shot* shot = &self.shots[number]
        if shot.step != STEP_DONE:
            return None
        data = None
        if shot.request.op == REQUEST_READ and shot.request.status == OK:
            data = (<char*>shot.request.data)[:shot.request.data_bytes]
        status = shot.request.status
        self.device.ops.release(self.device, &shot.request)
        self.forget(number)
        return status, data

    cdef forget(self, int number):
        free(self.shots[number].payload)
        self.shots[number].payload = NULL
        self.shots[number].step = STEP_FREE


def poke(JournalHandle handle not None, uint64_t offset_bytes, bytes data not None):
    """Writes into a journal's mapping behind its back: the bit rot of the tests."""
    if offset_bytes + len(data) > handle.journal.map_bytes:
        raise ValueError("outside of the journal")
    memcpy(handle.journal.map + offset_bytes, <const char*>data, len(data))


def lose(StoreHandle handle not None):
    """Counts a loss of the way to the medium, as an initiator does when its connection ends."""
    handle.store.losses += 1
