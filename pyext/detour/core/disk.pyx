# A plain disk over any store: the device behind `detour target`.
#
# Owns: its Disk struct, the unit attentions of each nexus, and, from begin_write or submit to release, one pool buffer
# for each request. The store belongs to its own handle, which this one keeps alive.
# Invariants: no callback runs inside a call of the target: READ, WRITE, FLUSH and UNMAP end by the store's deferred
# completions, COMMANDs by this disk's own; a buffer is given back exactly once, in release or abort.
# Cost: one store request a device request; data is copied only between pool buffer and store.
cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from detour.core.debug cimport invariant
from detour.core.device cimport *
from detour.core.disk_info cimport INFO_BYTES_MAX, InfoAnswer, disk_info, disk_info_request_sense, disk_limits
from detour.core.pool cimport pool_get, pool_put, pool_wait, pool_wait_cancel, slab_free, slab_get, slab_init, slab_put
from detour.core.reactor cimport (Command, Loop, Reactor, command_done, loop_defer, loop_timer, loop_timer_stop,
                                  loop_undefer)
from detour.core.scsi cimport *
from detour.core.store cimport (IO_FUA, STORE_FLUSH, STORE_READ, STORE_READ_ONLY, STORE_UNMAP, STORE_VOLATILE,
                                STORE_WRITE, Io, store_submit)

import hashlib

cdef enum:
    NEXUSES_MAX = 4096
    SENSE_DEVICE_RESET = 0x062903

cdef enum RequestState:
    STATE_IDLE = 0
    STATE_WAITING = 1           # for a pool buffer
    STATE_PLACED = 2            # a WRITE has its place
    STATE_SUBMITTED = 3
    STATE_DELAYED = 4           # a WRITE is held for latency_us


# ---- data ------------------------------------------------------------------------------------------------------------

cdef void disk_submit_io(Disk* disk, Request* request) noexcept nogil:
    cdef Io* io = &request.io
    memset(io, 0, sizeof(Io))
    if request.op == REQUEST_READ:
        io.op = STORE_READ
    elif request.op == REQUEST_WRITE:
        io.op = STORE_WRITE
    elif request.op == REQUEST_FLUSH:
        io.op = STORE_FLUSH
    else:
        io.op = STORE_UNMAP
    if io.op == STORE_WRITE and (request.flags & REQUEST_FUA or disk.write_through):
        io.flags = IO_FUA
    if io.op != STORE_FLUSH:
        io.offset_bytes = request.lba * disk.device.block_bytes
        io.length_bytes = request.blocks * disk.device.block_bytes
    io.data = request.data
    io.done = on_io_done
    io.owner = request
    request.state = STATE_SUBMITTED
    store_submit(disk.store, io)


cdef void on_io_done(Io* io) noexcept nogil:
    cdef Request* request = <Request*>io.owner
    cdef Device* device = request.device
    request.status = io.status
    if io.status == OK and request.op == REQUEST_READ:
        device.reads += 1
        device.read_bytes += request.data_bytes
    elif io.status == OK and request.op == REQUEST_WRITE:
        device.writes += 1
        device.write_bytes += request.data_bytes
    request.done(request)


cdef bint take_buffer(Request* request) noexcept nogil:
    # False: the pool is at its limit, and the request waits for its turn.
    request.data_bytes = request.blocks * request.device.block_bytes
    request.buffer = pool_get(&request.device.loop.buffers, request.data_bytes)
    request.data = request.buffer
    if request.buffer != NULL:
        return True
    request.state = STATE_WAITING
    request.pool_waiter.ready = on_buffer_ready
    request.pool_waiter.owner = request
    pool_wait(&request.device.loop.buffers, &request.pool_waiter)
    return False


cdef void on_buffer_ready(void* owner) noexcept nogil:
    cdef Request* request = <Request*>owner
    if not take_buffer(request):
        return
    if request.op == REQUEST_READ:
        disk_submit_io(<Disk*>request.device, request)
        return
    request.state = STATE_PLACED
    request.ready(request)


cdef int disk_begin_write(Device* device, Request* request) noexcept nogil:
    if not take_buffer(request):
        return PENDING
    request.state = STATE_PLACED
    return OK


cdef void disk_submit(Device* device, Request* request) noexcept nogil:
    cdef Disk* disk = <Disk*>device
    if request.op == REQUEST_READ:
        if take_buffer(request):
            disk_submit_io(disk, request)
    elif request.op == REQUEST_WRITE and disk.latency_us != 0:
        delay_write(disk, request)
    elif request.op == REQUEST_COMMAND:
        disk_command(disk, request)
    else:
        disk_submit_io(disk, request)


cdef void disk_abort(Device* device, Request* request) noexcept nogil:
    if request.state == STATE_WAITING:
        pool_wait_cancel(&device.loop.buffers, &request.pool_waiter)
    disk_release(device, request)


cdef void disk_release(Device* device, Request* request) noexcept nogil:
    if request.buffer != NULL:
        if request.op == REQUEST_COMMAND:
            pool_put(&device.loop.buffers, request.buffer, INFO_BYTES_MAX)
        else:
            pool_put(&device.loop.buffers, request.buffer, request.blocks * device.block_bytes)
        request.buffer = NULL
    request.data = NULL
    request.state = STATE_IDLE


# ---- held writes (latency_us) ----------------------------------------------------------------------------------------

cdef void delay_write(Disk* disk, Request* request) noexcept nogil:
    request.state = STATE_DELAYED
    request.begun_ns = disk.device.loop.now_ns
    request.next = NULL
    if disk.delayed_tail != NULL:
        disk.delayed_tail.next = request
        disk.delayed_tail = request
        return
    disk.delayed_head = request
    disk.delayed_tail = request
    loop_timer(disk.device.loop, &disk.delay_timer, <ns_t>disk.latency_us * 1000)


cdef void on_delay_over(void* owner) noexcept nogil:
    cdef Disk* disk = <Disk*>owner
    cdef ns_t latency_ns = <ns_t>disk.latency_us * 1000
    cdef Request* request = disk.delayed_head
    while request != NULL and disk.device.loop.now_ns - request.begun_ns >= latency_ns:
        disk.delayed_head = request.next
        if disk.delayed_head == NULL:
            disk.delayed_tail = NULL
        request.next = NULL
        disk_submit_io(disk, request)
        request = disk.delayed_head
    if request != NULL:
        loop_timer(disk.device.loop, &disk.delay_timer, latency_ns - (disk.device.loop.now_ns - request.begun_ns))


# ---- commands --------------------------------------------------------------------------------------------------------

cdef void finish_later(Disk* disk, Request* request) noexcept nogil:
    request.next = NULL
    if disk.finished_tail != NULL:
        disk.finished_tail.next = request
    else:
        disk.finished_head = request
    disk.finished_tail = request
    loop_defer(disk.device.loop, &disk.finish_work)


cdef void run_finished(void* owner) noexcept nogil:
    cdef Disk* disk = <Disk*>owner
    cdef Request* request = disk.finished_head
    cdef Request* following
    disk.finished_head = NULL
    disk.finished_tail = NULL
    while request != NULL:
        following = request.next
        request.next = NULL
        request.done(request)
        request = following


cdef void disk_command(Disk* disk, Request* request) noexcept nogil:
    cdef InfoAnswer answer
    cdef const uint8_t* parameters = request.data
    cdef uint32_t parameter_bytes = <uint32_t>request.data_bytes
    cdef NexusState* state
    request.state = STATE_SUBMITTED
    request.status = OK
    request.scsi_status = STATUS_GOOD
    request.sense_bytes = 0
    request.data = NULL
    request.data_bytes = 0
    request.buffer = pool_get(&disk.device.loop.buffers, INFO_BYTES_MAX)
    if request.buffer == NULL:
        request.scsi_status = STATUS_BUSY
        finish_later(disk, request)
        return
    memset(request.buffer, 0, INFO_BYTES_MAX)
    answer.data = request.buffer
    answer.data_bytes = 0
    answer.sense = 0
    state = find_nexus(disk, request.nexus)
    if request.command.opcode == 0x03 and state != NULL and state.attention != 0:
        disk_info_request_sense(request.cdb, state.attention, &answer)
        state.attention = 0
    else:
        disk_info(&disk.identity, request.command, request.cdb, parameters, parameter_bytes, &answer)
    if answer.sense != 0:
        request.scsi_status = STATUS_CHECK_CONDITION
        request.sense_bytes = <uint16_t>scsi_sense(request.sense, answer.sense, False, 0)
    else:
        request.data = request.buffer
        request.data_bytes = answer.data_bytes
    finish_later(disk, request)


# ---- nexuses and unit attentions -------------------------------------------------------------------------------------

cdef NexusState* find_nexus(Disk* disk, const void* nexus) noexcept nogil:
    cdef NexusState* state = disk.nexuses
    while state != NULL and state.nexus != nexus:
        state = state.next
    return state


cdef void forget_nexus(Disk* disk, const void* nexus) noexcept nogil:
    cdef NexusState** link = &disk.nexuses
    cdef NexusState* state
    while link[0] != NULL and link[0].nexus != nexus:
        link = &link[0].next
    state = link[0]
    if state != NULL:
        link[0] = state.next
        slab_put(&disk.nexus_slab, state)


cdef void disk_nexus_event(Device* device, const void* nexus, int event) noexcept nogil:
    cdef Disk* disk = <Disk*>device
    cdef NexusState* state = find_nexus(disk, nexus)
    if event == NEXUS_LOGOUT:
        forget_nexus(disk, nexus)
        return
    if event == NEXUS_LOGIN and state == NULL:
        state = <NexusState*>slab_get(&disk.nexus_slab)
        if state == NULL:
            return                      # at the bound: this nexus goes without a unit attention
        state.nexus = nexus
        state.attention = SENSE_POWER_ON_RESET
        state.next = disk.nexuses
        disk.nexuses = state
    elif state != NULL and event == NEXUS_LUN_RESET:
        state.attention = SENSE_DEVICE_RESET
    elif state != NULL and event == NEXUS_TARGET_RESET:
        state.attention = SENSE_BUS_RESET


cdef uint32_t disk_admit(Device* device, const void* nexus, const ScsiCommand* command,
                         uint8_t* scsi_status) noexcept nogil:
    # SPC-4 5.14: INQUIRY, REPORT LUNS and REQUEST SENSE pass a pending unit attention; any other command reports it.
    cdef Disk* disk = <Disk*>device
    cdef NexusState* state
    cdef uint32_t attention
    if not disk.identity.thin and (command.cls == SCSI_UNMAP or (command.cls == SCSI_WRITE_SAME and command.unmap)):
        scsi_status[0] = STATUS_CHECK_CONDITION
        return SENSE_INVALID_OPCODE if command.cls == SCSI_UNMAP else SENSE_INVALID_FIELD_IN_CDB
    if command.opcode == 0x12 or command.opcode == 0xA0 or command.opcode == 0x03:
        return 0
    state = disk.nexuses if disk.nexuses == NULL or disk.nexuses.nexus == nexus else find_nexus(disk, nexus)
    if state == NULL or state.attention == 0:
        return 0
    attention = state.attention
    state.attention = 0
    scsi_status[0] = STATUS_CHECK_CONDITION
    return attention


cdef DeviceOps DISK_OPS
DISK_OPS.begin_write = disk_begin_write
DISK_OPS.submit = disk_submit
DISK_OPS.abort = disk_abort
DISK_OPS.release = disk_release
DISK_OPS.admit = disk_admit
DISK_OPS.nexus_event = disk_nexus_event


# ---- the handle ------------------------------------------------------------------------------------------------------

cdef void do_close(Command* command) noexcept nogil:
    cdef Disk* disk = <Disk*>command.owner
    loop_undefer(disk.device.loop, &disk.finish_work)
    loop_timer_stop(disk.device.loop, &disk.delay_timer)
    disk.ended = True
    command_done(command, OK)


cdef int put_text(char* out, str text, int length_bytes, bint padded) except -1:
    cdef bytes given = text.encode("ascii", "replace")[:length_bytes]
    if padded:
        given = given.ljust(length_bytes)
    memset(out, 0, length_bytes + 1)
    memcpy(out, <const char*>given, len(given))
    return 0


@cython.final
@cython.no_gc_clear
cdef class DiskHandle(DeviceHandle):
    """A plain disk over `store`, to be given to TargetHandle.set_lun.

    serial: at most 32 ASCII characters; the NAA identifier is derived from vendor, product and serial, so that the same
    serial is the same disk to a host. write_cache: tells hosts of a volatile cache (WCE); off, every write is made
    stable. delay_us: holds every write for that long before the store gets it.
    """

    def __cinit__(self, Reactor reactor not None, StoreHandle store not None, str serial="", str vendor="DETOUR",
                  str product="VIRTUAL DISK", bint write_cache=True, bint thin=True, bint read_only=False,
                  uint32_t delay_us=0, uint64_t device_id=0):
        cdef Disk* disk
        self.disk = NULL
        self.reactor = reactor
        self.store = store
        if store.store == NULL or store.closed:
            raise ValueError("the store is closed")
        if store.reactor is not reactor:
            raise ValueError("the store belongs to another reactor")
        disk = <Disk*>calloc(1, sizeof(Disk))
        if disk == NULL:
            raise MemoryError("no memory for a disk")
        self.disk = disk
        self.device = &disk.device
        slab_init(&disk.nexus_slab, sizeof(NexusState), NEXUSES_MAX)
        disk.store = store.store
        disk.device.ops = &DISK_OPS
        disk.device.loop = reactor.loop
        disk.device.id = device_id
        disk.device.block_bytes = store.store.block_bytes
        disk.device.blocks = store.store.size_bytes // store.store.block_bytes
        disk.device.read_only = read_only or (store.store.flags & STORE_READ_ONLY) != 0
        disk.write_through = not write_cache and (store.store.flags & STORE_VOLATILE) != 0
        disk.latency_us = delay_us
        disk.finish_work.run = run_finished
        disk.finish_work.owner = disk
        disk.delay_timer.run = on_delay_over
        disk.delay_timer.owner = disk
        self._identify(serial or f"{device_id:016x}", vendor, product, write_cache, thin)

    def _identify(self, str serial, str vendor, str product, bint write_cache, bint thin):
        cdef DiskIdentity* identity = &self.disk.identity
        cdef bytes digest = hashlib.sha256(f"{vendor}\0{product}\0{serial}".encode()).digest()
        put_text(identity.vendor, vendor, 8, True)
        put_text(identity.product, product, 16, True)
        put_text(identity.revision, "0001", 4, True)
        put_text(identity.serial, serial, 32, False)
        memcpy(identity.naa, <const char*>digest, 8)
        identity.naa[0] = 0x30 | (identity.naa[0] & 0x0F)       # NAA 3h: locally assigned
        identity.write_cache = write_cache
        identity.thin = thin
        identity.read_only = self.disk.device.read_only
        identity.blocks = self.disk.device.blocks
        identity.block_bytes = self.disk.device.block_bytes
        disk_limits(identity, &self.disk.device.limits)

    def __dealloc__(self):
        # An open disk of a running loop stays: the loop may use its memory at any time.
        if self.disk != NULL and (self.disk.ended or not self.reactor.running):
            loop_undefer(self.disk.device.loop, &self.disk.finish_work)
            loop_timer_stop(self.disk.device.loop, &self.disk.delay_timer)
            slab_free(&self.disk.nexus_slab)
            free(self.disk)
        self.disk = NULL
        self.device = NULL

    def close(self) -> int:
        """Ends the disk; it must have been taken from its targets before. The store stays open. Answers a ticket."""
        cdef uint64_t ticket
        if self.closed:
            raise ValueError("the disk is closed")
        ticket = self.reactor.call(do_close, self.disk, 0, 0, 0, 0, NULL, 0)
        self.closed = True
        return ticket

    @property
    def naa(self) -> bytes:
        """The 8 bytes of the NAA identifier in VPD page 83h."""
        return (<const char*>self.disk.identity.naa)[:8]

    @property
    def serial(self) -> str:
        """The unit serial number in VPD page 80h."""
        return (<bytes>self.disk.identity.serial).decode()
