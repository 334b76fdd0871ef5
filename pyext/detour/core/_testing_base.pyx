# For tests only, built always: opens functions of pool, mailbox, stats and reactor that Python does not see otherwise.
#
# Owns: what it wraps. Every object is driven by one thread; a Harness belongs to a reactor that is turned by hand.
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from detour.core.debug cimport DETOUR_DEBUG
from detour.core.mailbox cimport (Mailbox, mailbox_acknowledge, mailbox_free, mailbox_init, mailbox_post,
                                  mailbox_signal, mailbox_take)
from detour.core.pool cimport (BufferPool, PoolWaiter, Slab, pool_free, pool_get, pool_init, pool_put, pool_wait,
                               pool_wait_cancel, pool_wake, slab_free, slab_get, slab_init, slab_put)
from detour.core.reactor cimport (Command, Deferred, Loop, Reactor, Timer, Watch, command_done, event_new, event_post,
                                  loop_at_end, loop_defer, loop_timer, loop_timer_coarse, loop_timer_stop, loop_undefer,
                                  loop_unwatch, loop_watch)
from detour.core.stats cimport Histogram, stats_record, stats_view
from detour.core.types cimport *

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms) noexcept
    short POLLIN

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void* buffer, size_t count) noexcept

DEBUG_BUILD = bool(DETOUR_DEBUG)


cdef class SlabBox:
    """A slab; slots are named by their address."""

    cdef Slab slab

    def __cinit__(self, uint32_t slot_bytes, uint32_t slots_max=0):
        if slab_init(&self.slab, slot_bytes, slots_max) != OK:
            raise ValueError("slab_init refused")

    def __dealloc__(self):
        slab_free(&self.slab)

    def get(self) -> int:
        return <size_t>slab_get(&self.slab)

    def put(self, size_t slot):
        slab_put(&self.slab, <void*>slot)

    def bytes_of(self, size_t slot) -> bytes:
        return (<char*>slot)[:self.slab.slot_bytes]

    def fill(self, size_t slot, int value):
        memset(<void*>slot, value, self.slab.slot_bytes)

    def free(self):
        slab_free(&self.slab)

    @property
    def figures(self) -> tuple:
        """(slot_bytes, slots_taken, slots_made)"""
        return self.slab.slot_bytes, self.slab.slots_taken, self.slab.slots_made


cdef enum:
    WAITERS = 32

cdef struct Asker:              # a waiter that takes a buffer as soon as there is one
    PoolWaiter waiter
    PoolState* state
    uint64_t length_bytes
    uint8_t* buffer
    uint32_t tries

cdef struct PoolState:
    BufferPool pool
    Asker askers[WAITERS]
    int served[WAITERS]
    int served_count


cdef void on_ready(void* owner) noexcept nogil:
    cdef Asker* asker = <Asker*>owner
    asker.tries += 1
    asker.buffer = pool_get(&asker.state.pool, asker.length_bytes)
    if asker.buffer == NULL:
        pool_wait(&asker.state.pool, &asker.waiter)
        return
    asker.state.served[asker.state.served_count] = <int>(asker - asker.state.askers)
    asker.state.served_count += 1


cdef class PoolBox:
    """A buffer pool; buffers are named by their address."""

    cdef PoolState* state

    def __cinit__(self, uint64_t limit_bytes):
        cdef int i
        self.state = <PoolState*>calloc(1, sizeof(PoolState))
        if pool_init(&self.state.pool, limit_bytes) != OK:
            raise ValueError("pool_init refused")
        for i in range(WAITERS):
            self.state.askers[i].state = self.state
            self.state.askers[i].waiter.ready = on_ready
            self.state.askers[i].waiter.owner = &self.state.askers[i]

    def __dealloc__(self):
        if self.state != NULL:
            pool_free(&self.state.pool)
            free(self.state)

    def get(self, uint64_t length_bytes) -> int:
        return <size_t>pool_get(&self.state.pool, length_bytes)

    def put(self, size_t buffer, uint64_t length_bytes):
        pool_put(&self.state.pool, <uint8_t*>buffer, length_bytes)

    def touch(self, size_t buffer, uint64_t length_bytes):
        memset(<void*>buffer, 0x5A, length_bytes)

    def wait(self, int index, uint64_t length_bytes):
        self.state.askers[index].length_bytes = length_bytes
        pool_wait(&self.state.pool, &self.state.askers[index].waiter)

    def cancel(self, int index):
        pool_wait_cancel(&self.state.pool, &self.state.askers[index].waiter)

    def wake(self) -> bool:
        return pool_wake(&self.state.pool)

    def served(self) -> list:
        """(index, buffer) of the waiters that got one since the last call."""
        got = [(self.state.served[i], <size_t>self.state.askers[self.state.served[i]].buffer)
               for i in range(self.state.served_count)]
        self.state.served_count = 0
        return got

    def tries(self, int index) -> int:
        return self.state.askers[index].tries

    @property
    def figures(self) -> tuple:
        """(taken_bytes, held_bytes)"""
        return self.state.pool.taken_bytes, self.state.pool.held_bytes


cdef class Box:
    """A mailbox of numbers above 0."""

    cdef Mailbox box

    def __cinit__(self, uint32_t capacity):
        self.box.event_fd = -1
        if mailbox_init(&self.box, capacity) != OK:
            raise ValueError("mailbox_init refused")

    def __dealloc__(self):
        mailbox_free(&self.box)

    def post(self, size_t item) -> int:
        return mailbox_post(&self.box, <void*>item)

    def take(self) -> int:
        return <size_t>mailbox_take(&self.box)

    def acknowledge(self):
        mailbox_acknowledge(&self.box)

    def signal(self):
        mailbox_signal(&self.box)

    @property
    def event_fd(self) -> int:
        return self.box.event_fd

    def produce(self, size_t count) -> None:
        """Posts 1..count in order, without the GIL; for a thread of its own."""
        cdef size_t i = 1
        with nogil:
            while i <= count:
                if mailbox_post(&self.box, <void*>i) == OK:
                    i += 1

    def consume(self, size_t count, int timeout_ms) -> str:
        """Takes 1..count, sleeping on the eventfd; '' when all came in order, else what went wrong."""
        cdef size_t expected = 1
        cdef size_t item = 0
        cdef bint slept_in_vain = False
        cdef pollfd waiting
        with nogil:
            waiting.fd = self.box.event_fd
            waiting.events = POLLIN
            while expected <= count:
                if poll(&waiting, 1, timeout_ms) <= 0:
                    slept_in_vain = True
                    break
                mailbox_acknowledge(&self.box)
                item = <size_t>mailbox_take(&self.box)
                while item == expected:
                    expected += 1
                    item = <size_t>mailbox_take(&self.box)
                if item != 0:
                    break
        if slept_in_vain:
            return f"no wake-up while waiting for {expected}"
        return "" if expected == count + 1 else f"{item} came instead of {expected}"


cdef class HistogramBox:
    """A histogram and its view."""

    cdef Histogram histogram

    def record(self, int64_t value_ns):
        stats_record(&self.histogram, value_ns)

    def view(self):
        return stats_view(self, &self.histogram, sizeof(Histogram) // 8)


# --- the loop

cdef enum:
    ITEMS = 64
    LOG_MAX = 65536
    WHAT_EVENT = 1
    WHAT_DEFERRED = 2
    WHAT_TIMER = 3

cdef struct Item:
    Watch watch
    Deferred work
    Timer timer
    HarnessState* state
    int index
    # what its deferred work does when it runs
    int defer_again             # times it defers itself
    int end_again               # times it asks for the end of the turn itself
    int timer_again             # times its timer restarts itself
    int then_defer              # index to defer, or -1
    int then_end                # index to ask for at the end of the turn, or -1
    int victim                  # index to take out of everything, or -1
    bint keep_bytes             # an event does not read its descriptor

cdef struct HarnessState:
    Loop* loop
    Item items[ITEMS]
    int log[LOG_MAX]
    int log_count


cdef void note(Item* item, int what) noexcept nogil:
    if item.state.log_count < LOG_MAX:
        item.state.log[item.state.log_count] = what * 1000 + item.index
        item.state.log_count += 1


cdef void take_out(Item* item) noexcept nogil:
    loop_unwatch(item.state.loop, &item.watch)
    loop_undefer(item.state.loop, &item.work)
    loop_timer_stop(item.state.loop, &item.timer)


cdef void on_event(void* owner, uint32_t events) noexcept nogil:
    cdef Item* item = <Item*>owner
    cdef uint8_t byte
    note(item, WHAT_EVENT)
    if not item.keep_bytes:
        read(item.watch.fd, &byte, 1)
    if item.victim >= 0:
        take_out(&item.state.items[item.victim])


cdef void on_work(void* owner) noexcept nogil:
    cdef Item* item = <Item*>owner
    note(item, WHAT_DEFERRED)
    if item.defer_again != 0:
        item.defer_again -= 1
        loop_defer(item.state.loop, &item.work)
    elif item.end_again != 0:
        item.end_again -= 1
        loop_at_end(item.state.loop, &item.work)
    if item.then_defer >= 0:
        loop_defer(item.state.loop, &item.state.items[item.then_defer].work)
    if item.then_end >= 0:
        loop_at_end(item.state.loop, &item.state.items[item.then_end].work)
    if item.victim >= 0:
        take_out(&item.state.items[item.victim])


cdef void on_timer(void* owner) noexcept nogil:
    cdef Item* item = <Item*>owner
    note(item, WHAT_TIMER)
    if item.timer_again != 0:
        item.timer_again -= 1
        loop_timer(item.state.loop, &item.timer, 0)
    if item.victim >= 0:
        take_out(&item.state.items[item.victim])


cdef void do_echo(Command* command) noexcept nogil:
    # args: status, number of events to post first
    cdef Command* event
    cdef uint64_t i
    for i in range(command.args[1]):
        event = event_new(command.loop, 12, 77)
        event.results[0] = i
        event_post(command.loop, event)
    command.results[0] = command.args[2]
    command.results[1] = <uint64_t>-5
    command_done(command, <int>command.args[0])


cdef void do_nothing(Command* command) noexcept nogil:
    pass                        # the command is lost: a few bytes of the test process


cdef class Harness:
    """Sixty-four items with a watch, deferred work and a timer each, on a reactor that is turned by hand."""

    cdef HarnessState* state
    cdef readonly Reactor reactor

    def __cinit__(self, Reactor reactor not None):
        cdef int i
        self.reactor = reactor
        self.state = <HarnessState*>calloc(1, sizeof(HarnessState))
        self.state.loop = reactor.loop
        for i in range(ITEMS):
            self.state.items[i].state = self.state
            self.state.items[i].index = i
            self.state.items[i].watch.fd = -1
            self.state.items[i].watch.on_event = on_event
            self.state.items[i].watch.owner = &self.state.items[i]
            self.state.items[i].work.run = on_work
            self.state.items[i].work.owner = &self.state.items[i]
            self.state.items[i].timer.run = on_timer
            self.state.items[i].timer.owner = &self.state.items[i]
            self.state.items[i].then_defer = -1
            self.state.items[i].then_end = -1
            self.state.items[i].victim = -1

    def free(self):
        """Takes every item out of the loop; the harness is of no use afterwards."""
        cdef int i
        if self.state != NULL:
            for i in range(ITEMS):
                take_out(&self.state.items[i])
            free(self.state)
        self.state = NULL

    def set(self, int index, *, int defer_again=0, int end_again=0, int timer_again=0, int then_defer=-1,
            int then_end=-1, int victim=-1, bint keep_bytes=False):
        cdef Item* item = &self.state.items[index]
        item.defer_again, item.end_again, item.timer_again = defer_again, end_again, timer_again
        item.then_defer, item.then_end, item.victim = then_defer, then_end, victim
        item.keep_bytes = keep_bytes

    def watch(self, int index, int fd, uint32_t events=1) -> int:
        self.state.items[index].watch.fd = fd
        return loop_watch(self.state.loop, &self.state.items[index].watch, events)

    def unwatch(self, int index):
        loop_unwatch(self.state.loop, &self.state.items[index].watch)

    def defer(self, int index):
        loop_defer(self.state.loop, &self.state.items[index].work)

    def at_end(self, int index):
        loop_at_end(self.state.loop, &self.state.items[index].work)

    def undefer(self, int index):
        loop_undefer(self.state.loop, &self.state.items[index].work)

    def timer(self, int index, ns_t delay_ns, ns_t grain_ns=0):
        """With a grain: no sooner, and with all others of that grain."""
        if grain_ns:
            loop_timer_coarse(self.state.loop, &self.state.items[index].timer, delay_ns, grain_ns)
        else:
            loop_timer(self.state.loop, &self.state.items[index].timer, delay_ns)

    def stop_timer(self, int index):
        loop_timer_stop(self.state.loop, &self.state.items[index].timer)

    def log(self) -> list:
        """What ran since the last call: (what, index); what is "event", "work" or "timer"."""
        names = {WHAT_EVENT: "event", WHAT_DEFERRED: "work", WHAT_TIMER: "timer"}
        ran = [(names[self.state.log[i] // 1000], self.state.log[i] % 1000) for i in range(self.state.log_count)]
        self.state.log_count = 0
        return ran


def echo(Reactor reactor, int status=0, uint64_t events=0, uint64_t value=0, bytes data=b"") -> int:
    """A command that posts `events` events of kind 12 from sender 77, then answers."""
    return reactor.call(do_echo, NULL, <uint64_t><int64_t>status, events, value, 0, <const uint8_t*><const char*>data,
                        len(data))


def lost(Reactor reactor) -> int:
    """A command that is never answered."""
    return reactor.call(do_nothing, NULL, 0, 0, 0, 0, NULL, 0)
