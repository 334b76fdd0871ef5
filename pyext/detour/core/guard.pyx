# Which request may go to the device while atomic commands are about.
#
# Owns: the list of entries of each device's Guard; the entries live in tasks and parts.
# Invariants: the list is in order of coming. An exclusive entry holds its blocks when no earlier entry and no request at
# the device overlaps it; a request waits while an earlier exclusive entry overlaps it, whether it holds yet or not, so
# that nobody is overtaken for ever. An entry waits only for earlier entries and for requests that the device has: those
# end by themselves. It never waits for a host: a claim is made when all of its data are there and its place at the device
# is taken. So no host can hold another one up, and a drain that waits for a claim comes to its end.
# A command of several parts is atomic part by part: nothing else of it is promised by SBC-3.
# Cost: one load for each request while no such command is open; else a walk over the entries for each request, and over
# all open tasks of the loop's targets for each claim that has to wait.
from detour.core.debug cimport invariant
from detour.core.device cimport Guard, REQUEST_READ, REQUEST_UNMAP, REQUEST_WRITE
from detour.core.reactor cimport loop_defer


cdef inline bint overlaps(const GuardEntry* entry, lba_t lba, uint64_t blocks) noexcept nogil:
    return entry.lba < lba + blocks and lba < entry.lba + entry.blocks


cdef bint task_touches(const Task* task, const Device* device, lba_t lba, uint64_t blocks) noexcept nogil:
    cdef const Part* part
    cdef int i
    for i in range(PARTS):
        part = &task.parts[i]
        if part.state != PART_SUBMITTED or part.request.device != device:
            continue
        if part.request.op != REQUEST_READ and part.request.op != REQUEST_WRITE and part.request.op != REQUEST_UNMAP:
            continue
        if part.request.lba < lba + blocks and lba < part.request.lba + part.request.blocks:
            return True
    return False


cdef bint device_touches(Device* device, lba_t lba, uint64_t blocks) noexcept nogil:
    # Whether the device has a request for any of these blocks, of whatever session.
    cdef const Target* target = <const Target*>device.loop.targets
    cdef const Session* session
    cdef const Task* task
    while target != NULL:
        session = target.sessions
        while session != NULL:
            task = session.tasks
            while task != NULL:
                if task_touches(task, device, lba, blocks):
                    return True
                task = task.next
            session = session.next
        target = target.next_with_sessions
    return False


cdef bint may_go(Device* device, const GuardEntry* entry) noexcept nogil:
    cdef const GuardEntry* earlier = device.guard.head
    while earlier != entry:
        if (earlier.exclusive or entry.exclusive) and overlaps(earlier, entry.lba, entry.blocks):
            return False
        earlier = earlier.next
    return not entry.exclusive or not device_touches(device, entry.lba, entry.blocks)


cdef void enlist(Device* device, GuardEntry* entry, lba_t lba, uint64_t blocks, bint exclusive) noexcept nogil:
    cdef Guard* guard = &device.guard
    invariant(not entry.listed, b"an entry is listed once")
    entry.lba = lba
    entry.blocks = blocks
    entry.exclusive = exclusive
    entry.held = False
    entry.listed = True
    entry.next = NULL
    entry.prev = guard.tail
    if guard.tail != NULL:
        guard.tail.next = entry
    else:
        guard.head = entry
    guard.tail = entry
    if exclusive:
        guard.exclusives += 1


cdef void unlist(Device* device, GuardEntry* entry) noexcept nogil:
    cdef Guard* guard = &device.guard
    if entry.prev != NULL:
        entry.prev.next = entry.next
    else:
        guard.head = entry.next
    if entry.next != NULL:
        entry.next.prev = entry.prev
    else:
        guard.tail = entry.prev
    entry.listed = False
    if entry.exclusive:
        guard.exclusives -= 1


cdef bint guard_claim(Task* task, lba_t lba, uint64_t blocks, guard_ready_fn ready) noexcept nogil:
    cdef GuardEntry* entry = &task.claim
    entry.ready = ready
    entry.owner = task
    enlist(task.device, entry, lba, blocks, True)
    entry.held = may_go(task.device, entry)
    return entry.held


cdef bint guard_stops(Part* part, guard_ready_fn ready) noexcept nogil:
    cdef Request* request = &part.request
    cdef const GuardEntry* entry = request.device.guard.head
    if request.op != REQUEST_READ and request.op != REQUEST_WRITE and request.op != REQUEST_UNMAP:
        return False
    if part.task.claim.listed and part.task.claim.held:
        return False                    # it is the atomic command's own
    while entry != NULL:
        if entry.exclusive and overlaps(entry, request.lba, request.blocks):
            break
        entry = entry.next
    if entry == NULL:
        return False
    part.guard.ready = ready
    part.guard.owner = part
    enlist(request.device, &part.guard, request.lba, request.blocks, False)
    return True


cdef void guard_leave(Device* device, GuardEntry* entry) noexcept nogil:
    if not entry.listed:
        return
    unlist(device, entry)
    guard_touch(device)


cdef void guard_touch(Device* device) noexcept nogil:
    if device.guard.head == NULL:
        return
    device.guard.work.run = run_guard
    device.guard.work.owner = device
    loop_defer(device.loop, &device.guard.work)


cdef void run_guard(void* owner) noexcept nogil:
    cdef Device* device = <Device*>owner
    cdef GuardEntry* entry = device.guard.head
    while entry != NULL:
        if entry.held or not may_go(device, entry):
            entry = entry.next
            continue
        if entry.exclusive:
            entry.held = True
        else:
            unlist(device, entry)
        entry.ready(entry.owner)
        entry = device.guard.head       # ready() may have changed the list
