# What Python asks of a target: LUNs, sessions taken over from login, and the way home (hold, drain, resume, send_home).
#
# Owns: the Target struct; the Python calls that wait for tasks to end, chained in it and looked after by one sweep.
# Hold closes the command windows: MaxCmdSN = ExpCmdSN - 1 is told at once by a NOP-In. A host that takes a smaller
# MaxCmdSN for nothing (RFC 7143 4.2.2.1 allows that) may still use what it was told before; such commands are taken.
# Drain: a command is begun when something of it was submitted to a device. What is not begun stays so, and the drain is
# done when all that is begun has been answered, to the last byte in the socket. A WRITE whose data have not all come
# and of which no part was submitted is not begun: it may still come to its end while the drain waits for others; when
# the drain is done its place at the device is given back (nothing of it was or will be executed), its data so far are
# kept in memory, data that still come are kept beside them. From there, closing the connection drops it, resume()
# gets a new place and goes on. Where memory is out, the host is told TASK SET FULL after the last byte and sends it
# again. A WRITE of several parts whose first was submitted is begun: the drain waits for the rest of its data.
# A device must therefore give places to begun writes while the target drains (drain first, then hold the device).
# Cost: of no concern but for the sweep, a walk over all open tasks at each end of a task while something waits.
cimport cython
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from detour.core.atomic cimport load_acquire_flag, store_release_flag
from detour.core.conn cimport ConnParams, conn_close
from detour.core.device cimport NEXUS_LOGIN, NEXUS_LOGOUT, Device
from detour.core.reactor cimport Command, command_done, loop_defer, loop_undefer
from detour.core.session cimport *
from detour.core.session_text cimport text_answer, text_reject
from detour.core.stats cimport stats_view
from detour.core.task cimport *
from detour.core.task_management cimport management_sweep, target_nexus_event
from detour.core.task_order cimport order_sweep
from detour.core.task_out cimport out_park

STATS_NAMES = ("sessions", "commands", "read_commands", "write_commands", "read_bytes", "write_bytes", "errors",
               "aborted", "rejects", "tasks_open", "held", "longest_ns")
PARAMS = ("header_digest", "data_digest", "recv_data_bytes_max", "send_data_bytes_max", "burst_bytes_max",
          "first_burst_bytes", "initial_r2t", "immediate_data", "outstanding_r2t_max", "cmd_sn", "stat_sn",
          "max_cmd_sn", "cid", "tsih", "isid", "time2wait_s", "time2retain_s", "queue_depth")
SESSION_WORDS = 5               # of a row of sessions(): id, commands open, commands done, bytes in, bytes out


# ---- waiting calls ---------------------------------------------------------------------------------------------------

cdef inline void chain(Command** head, Command* command) noexcept nogil:
    command.args[7] = <uint64_t>head[0]
    head[0] = command


cdef void end_chain(Command** head, int status) noexcept nogil:
    cdef Command* command = head[0]
    cdef Command* following
    head[0] = NULL
    while command != NULL:
        following = <Command*>command.args[7]
        command_done(command, status)
        command = following


cdef void want_sweep(Target* target) noexcept nogil:
    target.sweep_wanted = True
    target_touch(target)


cdef void sweep(void* owner) noexcept nogil:
    cdef Target* target = <Target*>owner
    cdef bint wanted = management_sweep(target)
    wanted = order_sweep(target) or wanted
    wanted = finish_sessions(target) or wanted
    if target.drain_commands != NULL:
        wanted = not try_drain(target) or wanted
    if target.lun_commands != NULL:
        wanted = not finish_luns(target) or wanted
    if target.home_commands != NULL:
        if any_homing(target):
            wanted = True
        else:
            end_chain(&target.home_commands, OK)
    target.sweep_wanted = wanted
    if target.close_command != NULL:
        if target.sessions != NULL:
            target.sweep_wanted = True
        else:
            finish_close(target)


cdef bint finish_sessions(Target* target) noexcept nogil:
    # True: an ended session still has tasks at a device.
    cdef Session* session = target.sessions
    cdef Session* following
    cdef bint waiting = False
    while session != NULL:
        following = session.next
        if session.ended and not session_finish(session):
            waiting = True
        session = following
    return waiting


cdef void finish_close(Target* target) noexcept nogil:
    cdef Command* command = target.close_command
    target.close_command = NULL
    end_chain(&target.drain_commands, E_CLOSED)
    end_chain(&target.lun_commands, E_CLOSED)
    end_chain(&target.home_commands, OK)
    loop_undefer(target.loop, &target.sweep_work)
    store_release_flag(&target.closed, True)
    command_done(command, OK)


# ---- LUNs ------------------------------------------------------------------------------------------------------------

cdef bint is_mapped(Target* target, const Device* device) noexcept nogil:
    cdef int lun
    for lun in range(TARGET_LUNS_MAX):
        if target.luns[lun] == device:
            return True
    return target.fallback == device


cdef bint in_use(Target* target, const Device* device) noexcept nogil:
    cdef Session* session = target.sessions
    cdef Task* task
    while session != NULL:
        task = session.tasks
        while task != NULL:
            if task.device == device or task.copy != NULL:      # a copy may be at any device
                return True
            task = task.next
        session = session.next
    return False


cdef bint finish_luns(Target* target) noexcept nogil:
    cdef Command* command = target.lun_commands
    cdef Command* following
    target.lun_commands = NULL
    while command != NULL:
        following = <Command*>command.args[7]
        if not is_mapped(target, <Device*>command.args[2]) and in_use(target, <Device*>command.args[2]):
            chain(&target.lun_commands, command)
        else:
            command_done(command, OK)
        command = following
    return target.lun_commands == NULL


cdef void do_set_lun(Command* command) noexcept nogil:
    # args: LUN (TARGET_LUNS_MAX: the fallback), the new device or NULL; the old one is left in args[2].
    cdef Target* target = <Target*>command.owner
    cdef Device** place = &target.fallback
    cdef Device* device = <Device*>command.args[1]
    cdef Device* old
    cdef bint fresh
    if command.args[0] < TARGET_LUNS_MAX:
        place = &target.luns[command.args[0]]
    old = place[0]
    fresh = device != NULL and not is_mapped(target, device)
    place[0] = device
    if fresh:
        target_nexus_event(target, device, NEXUS_LOGIN)
    if old == NULL or old == device:
        command_done(command, OK)
        return
    if not is_mapped(target, old):
        target_nexus_event(target, old, NEXUS_LOGOUT)
    command.args[2] = <uint64_t>old
    chain(&target.lun_commands, command)
    want_sweep(target)


# ---- hold, drain, resume ---------------------------------------------------------------------------------------------

cdef void tell_windows(Target* target) noexcept nogil:
    cdef Session* session = target.sessions
    while session != NULL:
        session_tell_window(session)
        session = session.next


cdef void do_hold(Command* command) noexcept nogil:
    cdef Target* target = <Target*>command.owner
    target.holding = command.args[0] != 0
    tell_windows(target)
    command_done(command, OK)


cdef void park_all(Target* target, bint placed) noexcept nogil:
    # Takes writes that are not begun back from the device: those that wait for a place, with `placed` all of them.
    cdef Session* session = target.sessions
    cdef Task* task
    cdef Task* following
    while session != NULL:
        task = session.tasks
        while task != NULL:
            following = task.next
            if not task.device_begun and task.state == TASK_BEGUN and task.kind == TASK_COMMAND:
                if placed or task.parts[0].state == PART_PLACING:
                    out_park(task)
            task = following
        session = session.next


cdef bint any_begun(Target* target) noexcept nogil:
    cdef Session* session = target.sessions
    cdef Task* task
    while session != NULL:
        task = session.tasks
        while task != NULL:
            if task.device_begun:
                return True
            task = task.next
        session = session.next
    return False


cdef bint try_drain(Target* target) noexcept nogil:
    if any_begun(target):
        return False
    target.drained = True
    park_all(target, True)
    end_chain(&target.drain_commands, OK)
    return True


cdef void do_drain(Command* command) noexcept nogil:
    cdef Target* target = <Target*>command.owner
    cdef Session* session = target.sessions
    target.dropping = True
    while session != NULL:
        loop_defer(target.loop, &session.memory_work)
        session = session.next
    park_all(target, False)
    chain(&target.drain_commands, command)
    want_sweep(target)


cdef void do_resume(Command* command) noexcept nogil:
    cdef Target* target = <Target*>command.owner
    cdef Session* session = target.sessions
    end_chain(&target.drain_commands, E_ABORTED)
    target.dropping = False
    target.drained = False
    target.holding = False
    while session != NULL:
        session_resume(session)
        session = session.next
    want_sweep(target)                      # what waits behind ORDERED commands that the drain has ended
    tell_windows(target)
    command_done(command, OK)


# ---- the way home ----------------------------------------------------------------------------------------------------

cdef bint any_homing(Target* target) noexcept nogil:
    cdef Session* session = target.sessions
    while session != NULL:
        if session.homing:
            return True
        session = session.next
    return False


cdef void do_send_home(Command* command) noexcept nogil:
    # args: Time2Wait, Time2Retain in seconds, milliseconds from the Async Message to the close at the latest.
    cdef Target* target = <Target*>command.owner
    cdef Session* session = target.sessions
    while session != NULL:
        if not session.homing:
            command.results[0] += 1
            session_send_home(session, <uint16_t>command.args[0], <uint16_t>command.args[1],
                              <ns_t>command.args[2] * 1000000)
        session = session.next
    chain(&target.home_commands, command)
    want_sweep(target)


# ---- sessions --------------------------------------------------------------------------------------------------------

cdef void do_adopt(Command* command) noexcept nogil:
    cdef Target* target = <Target*>command.owner
    cdef SessionArgs args
    memcpy(&args, command.data, sizeof(SessionArgs))
    free(command.data)
    command.data = NULL
    command_done(command, session_open(target, <int>command.args[0], &args, &command.results[0]))


cdef void do_drop(Command* command) noexcept nogil:
    cdef Session* session = session_find(<Target*>command.owner, command.args[0])
    if session == NULL:
        command_done(command, OK)
        return
    chain(&session.drop_commands, command)
    conn_close(&session.conn, <int><int64_t>command.args[1])
    want_sweep(session.target)


cdef void do_async(Command* command) noexcept nogil:
    cdef Session* session = session_find(<Target*>command.owner, command.args[0])
    cdef uint64_t packed = command.args[2]
    cdef int status = E_CLOSED
    if session != NULL:
        status = session_async(session, <uint8_t>command.args[1], <uint16_t>(packed >> 32), <uint16_t>(packed >> 16),
                               <uint16_t>packed)
    command_done(command, status)


cdef void do_text(Command* command) noexcept nogil:
    # args: session, ITT, MaxRecvDataSegmentLength or 0, reason of a Reject or 0.
    cdef Session* session = session_find(<Target*>command.owner, command.args[0])
    cdef int status = E_CLOSED
    if session != NULL and command.args[3] != 0:
        status = text_reject(session, <uint32_t>command.args[1], <uint8_t>command.args[3])
    elif session != NULL:
        status = text_answer(session, <uint32_t>command.args[1], <const uint8_t*>command.data, command.data_bytes,
                             <uint32_t>command.args[2])
    free(command.data)
    command.data = NULL
    command_done(command, status)


cdef void do_sessions(Command* command) noexcept nogil:
    cdef Target* target = <Target*>command.owner
    cdef Session* session = target.sessions
    cdef uint64_t* row
    command.data_bytes = <uint64_t>target.sessions_count * SESSION_ROW_WORDS * sizeof(uint64_t)
    command.data = malloc(command.data_bytes + 1)
    if command.data == NULL:
        command_done(command, E_NOMEM)
        return
    row = <uint64_t*>command.data
    while session != NULL:
        row[0] = session.id
        row[1] = session.tasks_open
        row[2] = session.commands_done
        row[3] = session.conn.rx_bytes
        row[4] = session.conn.tx_bytes
        row += SESSION_ROW_WORDS
        session = session.next
    command_done(command, OK)


cdef void do_close(Command* command) noexcept nogil:
    cdef Target* target = <Target*>command.owner
    cdef Session* session = target.sessions
    target.closing = True
    target.close_command = command
    while session != NULL:
        conn_close(&session.conn, E_CLOSED)
        session = session.next
    want_sweep(target)


cdef enum:
    SESSION_ROW_WORDS = 5


# ---- the handle ------------------------------------------------------------------------------------------------------

cdef int fill_params(ConnParams* out, dict params) except -1:
    cdef bytes isid = params.get("isid", bytes(6))
    unknown = set(params) - set(PARAMS)
    if unknown:
        raise ValueError(f"unknown connection parameters: {', '.join(sorted(unknown))}")
    if len(isid) != 6:
        raise ValueError(f"an ISID has 6 bytes, not {len(isid)}")
    out.header_digest = params.get("header_digest", False)
    out.data_digest = params.get("data_digest", False)
    out.recv_data_bytes_max = params.get("recv_data_bytes_max", 8192)
    out.send_data_bytes_max = params.get("send_data_bytes_max", 8192)
    out.burst_bytes_max = params.get("burst_bytes_max", 262144)
    out.first_burst_bytes = params.get("first_burst_bytes", 65536)
    out.initial_r2t = params.get("initial_r2t", True)
    out.immediate_data = params.get("immediate_data", True)
    out.outstanding_r2t_max = params.get("outstanding_r2t_max", 1)
    out.cmd_sn = params.get("cmd_sn", 1)
    out.stat_sn = params.get("stat_sn", 1)
    out.max_cmd_sn = params.get("max_cmd_sn", 0)
    out.cid = params.get("cid", 0)
    out.tsih = params.get("tsih", 0)
    out.time2wait_s = params.get("time2wait_s", 2)
    out.time2retain_s = params.get("time2retain_s", 0)
    out.queue_depth = params.get("queue_depth", 0)
    memcpy(out.isid, <const char*>isid, 6)
    return 0


@cython.final
@cython.no_gc_clear
cdef class TargetHandle:
    """Sessions in full feature phase and the LUNs that they see. The calls answer tickets (Runtime.wait).

    queue_depth_max: commands that a host may have open. nop_interval_ms: a host that is silent for that long is asked
    with a NOP-In (0: never); after nop_timeout_ms without a whole PDU its connection is closed. stall_timeout_ms: a host
    that takes nothing of what waits for it, or sends nothing of the data that it was asked for, is closed after that (0:
    never). session_bytes_max: memory for data that one session may hold; near the end of the loop's buffers less.
    """

    def __cinit__(self, Reactor reactor not None, uint64_t target_id, uint32_t queue_depth_max=128,
                  uint32_t nop_interval_ms=10000, uint32_t nop_timeout_ms=30000, uint32_t stall_timeout_ms=30000,
                  uint64_t session_bytes_max=67108864):
        self.target = NULL
        self.reactor = reactor
        self.id = target_id
        self.luns = {}
        self.retired = []
        if not 1 <= queue_depth_max <= 4096:
            raise ValueError(f"queue_depth_max {queue_depth_max} is not within 1-4096")
        self.target = <Target*>calloc(1, sizeof(Target))
        if self.target == NULL:
            raise MemoryError("no memory for a target")
        self.target.loop = reactor.loop
        self.target.id = target_id
        self.target.queue_depth_max = queue_depth_max
        self.target.next_session_id = (target_id << 24) + 1
        self.target.nop_interval_ms = nop_interval_ms
        self.target.nop_timeout_ms = nop_timeout_ms
        self.target.stall_timeout_ms = stall_timeout_ms
        self.target.session_bytes_max = session_bytes_max
        self.target.sweep_work.run = sweep
        self.target.sweep_work.owner = self.target

    def __dealloc__(self):
        # An open target of a running loop stays: the loop may use its memory at any time.
        if self.target != NULL and (load_acquire_flag(&self.target.closed) or not self.reactor.running):
            loop_undefer(self.target.loop, &self.target.sweep_work)
            if self.target.sessions == NULL:
                free(self.target)
        self.target = NULL

    cdef uint64_t ask(self, void (*run)(Command*) noexcept nogil, uint64_t a0, uint64_t a1, uint64_t a2) except 0:
        if self.closed:
            raise ValueError("the target is closed")
        return self.reactor.call(run, self.target, a0, a1, a2, 0, NULL, 0)

    cdef uint64_t put_device(self, uint64_t lun, DeviceHandle device) except 0:
        cdef uint64_t ticket
        if device is not None and (device.closed or device.device == NULL):
            raise ValueError("the device is closed")
        if device is not None and device.reactor is not self.reactor:
            raise ValueError("the device belongs to another reactor")
        ticket = self.ask(do_set_lun, lun, <uint64_t>(device.device if device is not None else NULL), 0)
        old = self.luns.pop(lun, None)
        if old is not None:
            self.retired.append(old)
        if device is not None:
            self.luns[lun] = device
        return ticket

    def set_lun(self, uint32_t lun, DeviceHandle device) -> int:
        """Puts `device` (or None) at `lun` (0-255); done when no command is open at the device that was there."""
        if lun >= TARGET_LUNS_MAX:
            raise ValueError(f"LUN {lun} is not within 0-{TARGET_LUNS_MAX - 1}")
        return self.put_device(lun, device)

    def set_fallback(self, DeviceHandle device) -> int:
        """Who answers REPORT LUNS and commands to LUNs that are not here; None: the target itself."""
        return self.put_device(TARGET_LUNS_MAX, device)

    def adopt(self, int fd, dict params, str initiator_name, bytes isid) -> int:
        """Takes over a connected socket after login; `fd` is the core's once a ticket was answered. Result 0: session id.

        `params`: fields of ConnParams (PARAMS); E_INVALID where first_burst_bytes is above 1 MiB or burst_bytes_max."""
        cdef SessionArgs args
        cdef bytes name = initiator_name.encode()
        memset(&args, 0, sizeof(args))
        fill_params(&args.params, params)
        if len(name) > 223:
            raise ValueError(f"an initiator name has at most 223 bytes, not {len(name)}")
        if len(isid) != 6:
            raise ValueError(f"an ISID has 6 bytes, not {len(isid)}")
        memcpy(args.initiator_name, <const char*>name, len(name))
        memcpy(args.isid, <const char*>isid, 6)
        if self.closed:
            raise ValueError("the target is closed")
        return self.reactor.call(do_adopt, self.target, <uint64_t>fd, 0, 0, 0, <const uint8_t*>&args, sizeof(args))

    def hold(self, bint held=True) -> int:
        """Closes (opens) the command windows and tells the hosts at once."""
        return self.ask(do_hold, held, 0, 0)

    def drain(self) -> int:
        """Begins no new command; done when every one that was begun is answered. E_ABORTED after resume()."""
        return self.ask(do_drain, 0, 0, 0)

    def resume(self) -> int:
        """Ends hold and drain: what waited is begun."""
        return self.ask(do_resume, 0, 0, 0)

    def send_home(self, uint16_t time2wait_s=0, uint16_t time2retain_s=0, uint32_t close_after_ms=50) -> int:
        """Async Message event 3 to every host, then close: of each as soon as it has answered a ping behind that, and
        after `close_after_ms` in any case. Done when all are closed; result 0: how many."""
        return self.ask(do_send_home, time2wait_s, time2retain_s, close_after_ms)

    def drop(self, uint64_t session_id, int reason=-7) -> int:
        """Closes one session with `reason` (a Status); done when no command of it is open at a device: a barrier."""
        return self.ask(do_drop, session_id, <uint64_t><int64_t>reason, 0)

    def async_message(self, uint64_t session_id, uint8_t event, uint16_t p1=0, uint16_t p2=0, uint16_t p3=0) -> int:
        """Sends an Async Message (RFC 7143 11.9) with its three parameters."""
        return self.ask(do_async, session_id, event, (<uint64_t>p1 << 32) | (<uint64_t>p2 << 16) | p3)

    def text_response(self, uint64_t session_id, uint32_t itt, bytes data, uint32_t send_data_bytes_max=0) -> int:
        """Answers EVENT_TEXT_REQUEST, in as many PDUs as it takes (1 MiB at most, else E_RANGE).

        send_data_bytes_max: the MaxRecvDataSegmentLength that the initiator declared in the request; counts from the end
        of the exchange on. 0: none."""
        if self.closed:
            raise ValueError("the target is closed")
        if send_data_bytes_max != 0 and not 512 <= send_data_bytes_max <= 0xFFFFFF:
            raise ValueError(f"send_data_bytes_max {send_data_bytes_max} is not within 512-16777215")
        return self.reactor.call(do_text, self.target, session_id, itt, send_data_bytes_max, 0,
                                 <const uint8_t*><const char*>data, len(data))

    def text_reject(self, uint64_t session_id, uint32_t itt, uint8_t reason) -> int:
        """Answers EVENT_TEXT_REQUEST with a Reject (RFC 7143 11.17.1); the exchange is over."""
        return self.reactor.call(do_text, self.target, session_id, itt, 0, reason, NULL, 0)

    def sessions(self) -> int:
        """Data: for each session SESSION_WORDS uint64: id, commands open, commands done, bytes in, bytes out.

        A closed session is listed while a device still has commands of it."""
        return self.ask(do_sessions, 0, 0, 0)

    @property
    def stats(self):
        """Read-only uint64 view: counters (stats_names), then the histograms of reads and writes."""
        return stats_view(self, &self.target.stats, sizeof(TargetStats) // sizeof(uint64_t))

    @staticmethod
    def stats_names() -> list:
        """Names of the leading counters of `stats`."""
        return list(STATS_NAMES)

    def close(self) -> int:
        """Closes every session; done when no device has a command of theirs. Further calls are refused."""
        cdef uint64_t ticket = self.ask(do_close, 0, 0, 0)
        self.closed = True
        return ticket
