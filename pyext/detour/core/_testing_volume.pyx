# Opens the device seam (device.pxd) to the tests: requests as the target side makes them, one by one, with the loop turned
# by hand. Built always, because the tests drive the core that is shipped.
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from detour.core.copier cimport CopierHandle, copier_pace
from detour.core.device cimport (Device, DeviceHandle, NEXUS_LOGIN, NEXUS_LOGOUT, Nexus, REQUEST_COMMAND,
                                 REQUEST_FLUSH, REQUEST_FUA, REQUEST_PLACED, REQUEST_READ, REQUEST_UNMAP,
                                 REQUEST_WRITE, Request)
from detour.core.fault_store cimport FaultStoreHandle
from detour.core.journal cimport JournalHandle
from detour.core.reactor cimport Reactor
from detour.core.scsi cimport ScsiCommand, scsi_decode
from detour.core.store cimport Io, STORE_COMMAND, STORE_IS_SCSI, StoreHandle
from detour.core.types cimport *
from detour.core.volume cimport VolumeHandle

cdef enum:
    STEP_FREE = 0
    STEP_WAITS_PLACE = 1
    STEP_PLACED = 2             # kept there when asked for (`submit` later)
    STEP_SUBMITTED = 3
    STEP_DONE = 4
    NEXUSES = 4


cdef struct ShotQueue:          # numbers of shots that are placed (manual ones), and done, since events() was called
    int* placed
    int* done
    int placed_count
    int done_count
    int room                    # of each; what does not fit is of somebody who asks step() instead
    const uint64_t* fault       # not 0 once the journal has failed; NULL: nobody watches it


cdef struct Shot:
    Request request
    int step
    bint manual                 # WRITE stays placed until submit() or abort()
    uint8_t* payload
    ScsiCommand command
    uint8_t cdb[16]
    uint8_t lun[8]
    Nexus nexus                 # of a command whose host is not told
    int number
    bint after_fault            # answered when the journal had failed
    ShotQueue* queue            # of the driver


cdef void fill_and_submit(Shot* shot) noexcept nogil:
    memcpy(shot.request.data, shot.payload, shot.request.data_bytes)
    shot.step = STEP_SUBMITTED
    shot.request.device.ops.submit(shot.request.device, &shot.request)


cdef void shot_ready(Request* request) noexcept nogil:
    cdef Shot* shot = <Shot*>request.owner
    shot.step = STEP_PLACED
    if not shot.manual:
        fill_and_submit(shot)
    elif shot.queue.placed_count < shot.queue.room:
        shot.queue.placed[shot.queue.placed_count] = shot.number
        shot.queue.placed_count += 1


cdef void shot_done(Request* request) noexcept nogil:
    cdef Shot* shot = <Shot*>request.owner
    shot.step = STEP_DONE
    shot.after_fault = shot.queue.fault != NULL and shot.queue.fault[0] != 0
    if shot.queue.done_count < shot.queue.room:
        shot.queue.done[shot.queue.done_count] = shot.number
        shot.queue.done_count += 1


cdef class DeviceDriver:
    """Requests to a device from Python. `steps` of a request: place, submit, done; `take` gives its result back."""

    cdef Device* device
    cdef Shot* shots
    cdef int shots_max
    cdef Nexus nexuses[NEXUSES]
    cdef ShotQueue queue
    cdef object handle

    def __cinit__(self, DeviceHandle handle not None, int shots_max=256):
        self.device = handle.device
        self.handle = handle
        self.shots_max = shots_max
        self.shots = <Shot*>calloc(shots_max, sizeof(Shot))
        self.queue.room = shots_max
        self.queue.placed = <int*>calloc(shots_max, sizeof(int))
        self.queue.done = <int*>calloc(shots_max, sizeof(int))
        if self.shots == NULL or self.queue.placed == NULL or self.queue.done == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef int index
        for index in range(self.shots_max):
            free(self.shots[index].payload)
        free(self.shots)
        free(self.queue.placed)
        free(self.queue.done)

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
                shot.number = index
                shot.queue = &self.queue
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

    def read(self, uint64_t lba, uint64_t blocks, bint placed=False):
        """`placed`: of a command that holds the place of a write."""
        cdef int number = 0
        cdef Shot* shot = self.fresh(REQUEST_READ, lba, blocks, &number)
        shot.request.flags = REQUEST_PLACED if placed else 0
        self.start(shot)
        return number

    def flush(self):
        cdef int number = 0
        self.start(self.fresh(REQUEST_FLUSH, 0, 0, &number))
        return number

    def unmap(self, uint64_t lba, uint64_t blocks):
        cdef int number = 0
        self.start(self.fresh(REQUEST_UNMAP, lba, blocks, &number))
        return number

    def login(self, int host, str name not None, bytes isid=bytes(6)):
        """A nexus comes: `host` (0 to 3) is its number from now on."""
        cdef Nexus* nexus = &self.nexuses[host]
        cdef bytes text = name.encode()
        memset(nexus, 0, sizeof(Nexus))
        memcpy(nexus.initiator_name, <const char*>text, len(text))
        memcpy(nexus.isid, <const char*>isid, 6)
        self.device.ops.nexus_event(self.device, nexus, NEXUS_LOGIN)

    def logout(self, int host):
        self.device.ops.nexus_event(self.device, &self.nexuses[host], NEXUS_LOGOUT)

    def admit(self, int host, bytes cdb not None):
        """What the target is told before the command: sense and SCSI status, 0 and 0 to go on."""
        cdef ScsiCommand command
        cdef uint8_t whole[16]
        cdef uint8_t status = 0
        memset(whole, 0, 16)
        memcpy(whole, <const char*>cdb, len(cdb))
        scsi_decode(whole, 16, &command)
        sense = self.device.ops.admit(self.device, &self.nexuses[host], &command, &status)
        return sense, status

    def abort_wanted(self, int host):
        return bool(self.nexuses[host].abort_wanted)

    def aborts(self, int number):
        """Of a command that is done: tasks of nexuses with abort_wanted end before its answer."""
        return bool(self.shots[number].request.aborts)

    def command(self, bytes cdb not None, bytes data_out=b"", uint32_t data_in_max=0, int host=-1):
        """A command that is not data. Its data-out lies in the target's memory, as `payload` does here."""
        cdef int number = 0
        cdef Shot* shot = self.fresh(REQUEST_COMMAND, 0, 0, &number)
        memset(shot.cdb, 0, 16)
        memcpy(shot.cdb, <const char*>cdb, len(cdb))
        memset(shot.lun, 0, 8)
        scsi_decode(shot.cdb, 16, &shot.command)
        shot.payload = <uint8_t*>calloc(1, len(data_out) + 1)
        memcpy(shot.payload, <const char*>data_out, len(data_out))
        shot.request.cdb = shot.cdb
        shot.request.command = &shot.command
        shot.request.lun = shot.lun
        shot.request.nexus = &shot.nexus if host < 0 else &self.nexuses[host]
        shot.request.lba = shot.command.lba
        shot.request.data = shot.payload if data_out else NULL
        shot.request.data_bytes = len(data_out)
        shot.request.data_in_max = data_in_max
        self.start(shot)
        return number

    def take_command(self, int number):
        """Status, SCSI status, sense and data-in of a command; None while it runs. The request is released."""
        cdef Shot* shot = &self.shots[number]
        if shot.step != STEP_DONE:
            return None
        data = b""
        if shot.request.data != NULL and shot.request.status == OK:
            data = (<char*>shot.request.data)[:shot.request.data_bytes]
        sense = (<char*>shot.request.sense)[:shot.request.sense_bytes]
        answer = (shot.request.status, shot.request.scsi_status, sense, data)
        self.device.ops.release(self.device, &shot.request)
        self.forget(number)
        return answer

    def events(self):
        """Numbers of the manual writes that were placed, and of all requests that are done, since the last call."""
        cdef int index
        if self.queue.placed_count == 0 and self.queue.done_count == 0:
            return (), ()
        placed = [self.queue.placed[index] for index in range(self.queue.placed_count)]
        done = [self.queue.done[index] for index in range(self.queue.done_count)]
        self.queue.placed_count = 0
        self.queue.done_count = 0
        return placed, done

    def watch_journal(self, VolumeHandle volume not None):
        """From now on `answered_after_fault` knows."""
        self.queue.fault = &volume.volume.stats.journal_failed

    def answered_after_fault(self, int number):
        """Whether the journal had failed when the request was answered; asked before take()."""
        return bool(self.shots[number].after_fault)

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


def set_size(StoreHandle handle not None, uint64_t size_bytes) -> None:
    """The store ends there by now."""
    handle.store.size_bytes = size_bytes


def lose(StoreHandle handle not None):
    """Counts a loss of the way to the medium, as an initiator does when its connection ends."""
    handle.store.losses += 1


def command_answered(Reactor reactor not None) -> None:
    """As when a command of some host of this loop is answered now."""
    reactor.loop.host_ns = reactor.loop.now_ns


def pace(CopierHandle handle not None, ns_t taken_ns, bint hosts=False) -> tuple:
    """As after a turn that has taken so long, with hosts of the volume or without: what it should take in nanoseconds, and
    how many chunks may be in flight."""
    cdef ns_t wanted_ns = copier_pace(handle.copier, hosts, taken_ns)
    return wanted_ns, handle.copier.allowed_chunks


def set_segment(VolumeHandle handle not None, uint64_t length_bytes) -> None:
    """Rounds flush main after so much, so that few writes make many segments."""
    handle.volume.round.segment_bytes_max = length_bytes


def become_scsi(FaultStoreHandle handle not None):
    """The store takes commands from now on; they wait to be answered by `scsi_answer`."""
    handle.store.flags |= STORE_IS_SCSI


cdef Io* command_at(FaultStoreHandle handle, Py_ssize_t index) except NULL:
    cdef Io* io = handle.nth(index)
    if io.op != STORE_COMMAND:
        raise ValueError(f"request {index} is no command")
    return io


def scsi_command(FaultStoreHandle handle not None, Py_ssize_t index=0):
    """What the command that waits there carries: cdb, lun, direction, data-out, room for data-in."""
    cdef Io* io = command_at(handle, index)
    cdef Py_ssize_t out_bytes = <Py_ssize_t>io.length_bytes if io.scsi.direction == 2 else 0
    return {"cdb": (<char*>io.scsi.cdb)[:io.scsi.cdb_bytes], "lun": (<char*>io.scsi.lun)[:8],
            "direction": io.scsi.direction, "data_out": (<char*>io.data)[:out_bytes],
            "room_bytes": io.length_bytes if io.scsi.direction == 1 else 0}


def scsi_answer(FaultStoreHandle handle not None, Py_ssize_t index=0, bytes data_in=b"", uint8_t scsi_status=0,
                bytes sense=b"", int status=0):
    """Ends the command as a target does: data-in, as much as there is room for, SCSI status and sense."""
    cdef Io* io = command_at(handle, index)
    if io.scsi.direction == 1:
        io.scsi.transferred_bytes = min(<uint64_t>len(data_in), io.length_bytes)
        memcpy(io.data, <const char*>data_in, io.scsi.transferred_bytes)
    io.scsi.scsi_status = scsi_status
    io.scsi.sense_bytes = len(sense)
    memcpy(io.scsi.sense, <const char*>sense, len(sense))
    handle.complete(index, status)
