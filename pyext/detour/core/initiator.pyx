# The initiator's side of one session in full feature phase (RFC 7143, error recovery level 0, one connection).
#
# Owns the connection and the sequence numbers; tasks are initiator_task's. A connection ends by the peer, by an error
# of the peer, by silence, or by Python; the Ios stay and wait for the next one.
# Invariants: a PDU of the target touches only a task that waits for it and only inside that task's data; after
# conn_close nothing is sent or received, and on_closed gives everything in flight back to the queue, once.
# Cost: per PDU one look-up by tag; data of Data-In goes from the socket to its place in the Io.
cimport cython
from libc.stdlib cimport calloc, malloc
from libc.string cimport memcpy, memset

from detour.core.atomic cimport load_acquire_flag, store_release_flag
from detour.core.conn cimport *
from detour.core.debug cimport likely, unlikely
from detour.core.endian cimport get_be16, get_be32, put_be16, put_be32
from detour.core.initiator_task cimport *
from detour.core.iscsi cimport *
from detour.core.pdu cimport PduRx, sn_le, sn_lt
from detour.core.reactor cimport *
from detour.core.store cimport *
from detour.core.types cimport *

cdef extern from "<unistd.h>" nogil:
    int close(int fd) noexcept

cdef enum:
    OPCODE_BITS = 0x3F
    LEAVE_MS = 5000                 # for a Logout Response, or for the close that an Async Message announced
    TICK_NS_MAX = 1000000000
    TICK_NS_MIN = 10000000
    TICK_GRAINS = 4                     # of a tick: those of many connections meet


# ---- numbers and small PDUs ------------------------------------------------------------------------------------------

cdef void take_numbers(Initiator* initiator, const uint8_t* header, bint counts) noexcept nogil:
    # RFC 7143, 4.2.2.1 and 4.2.2.2: the window only moves on; `counts`: this PDU has a StatSN of its own.
    cdef uint32_t stat_sn = get_be32(header + 24)
    cdef uint32_t exp_cmd_sn = get_be32(header + 28)
    cdef uint32_t max_cmd_sn = get_be32(header + 32)
    if counts and sn_le(initiator.exp_stat_sn, stat_sn):
        initiator.exp_stat_sn = stat_sn + 1
    if sn_lt(max_cmd_sn, exp_cmd_sn - 1):
        return
    if sn_lt(initiator.max_cmd_sn, max_cmd_sn):
        initiator.max_cmd_sn = max_cmd_sn
        loop_defer(initiator.store.loop, &initiator.send_work)


cdef int send_nop(Initiator* initiator, uint32_t tag, uint32_t target_tag, const uint8_t* lun) noexcept nogil:
    cdef TxPdu* pdu = conn_tx(&initiator.conn)
    if pdu == NULL:
        return E_NOMEM
    pdu.header[0] = OP_NOP_OUT | OP_IMMEDIATE
    pdu.header[1] = FLAG_FINAL
    if lun != NULL:
        memcpy(pdu.header + 8, lun, 8)
    put_be32(pdu.header + 16, tag)
    put_be32(pdu.header + 20, target_tag)
    put_be32(pdu.header + 24, initiator.cmd_sn)
    put_be32(pdu.header + 28, initiator.exp_stat_sn)
    conn_tx_queue(&initiator.conn, pdu, 0)
    return OK


cdef void send_logout(Initiator* initiator) noexcept nogil:
    # Reason 0: the session is closed (RFC 7143, 11.14.1).
    cdef TxPdu* pdu = conn_tx(&initiator.conn)
    if pdu == NULL:
        return
    pdu.header[0] = OP_LOGOUT_REQUEST | OP_IMMEDIATE
    pdu.header[1] = FLAG_FINAL
    put_be32(pdu.header + 16, tag_new(initiator, LOGOUT_INDEX))
    put_be16(pdu.header + 20, initiator.conn.params.cid)
    put_be32(pdu.header + 24, initiator.cmd_sn)
    put_be32(pdu.header + 28, initiator.exp_stat_sn)
    conn_tx_queue(&initiator.conn, pdu, 0)
    initiator.logout_sent = True
    initiator.leaving_ns = initiator.store.loop.now_ns


cdef void run_send(void* owner) noexcept nogil:
    cdef Initiator* initiator = <Initiator*>owner
    if not initiator.attached or not initiator.conn.open:
        return
    tasks_pump(initiator)
    if initiator.logout_wanted and not initiator.logout_sent and initiator.conn.open:
        if initiator.tasks_flying == 0 or logout_due(initiator):
            send_logout(initiator)


cdef bint logout_due(Initiator* initiator) noexcept nogil:
    return initiator.logout_by_ns != 0 and initiator.store.loop.now_ns >= initiator.logout_by_ns


cdef void leave(Initiator* initiator, bint logout) noexcept nogil:
    # No command is begun any more; what is in flight is waited for. Asked for again, the time does not begin anew.
    if not initiator.leaving:
        initiator.leaving_ns = initiator.store.loop.now_ns
    initiator.leaving = True
    if logout:
        initiator.logout_wanted = True
        loop_defer(initiator.store.loop, &initiator.send_work)


# ---- what the target sends -------------------------------------------------------------------------------------------

cdef int data_in_header(Initiator* initiator, PduRx* rx) noexcept nogil:
    # The target's offset and length are held against the task before a byte is written.
    cdef Task* task = task_find(initiator, get_be32(rx.header + 16))
    cdef uint32_t offset_bytes = get_be32(rx.header + 40)
    if unlikely(task == NULL or task.direction != 1):
        return E_PROTOCOL
    if unlikely(offset_bytes != task.received_bytes or rx.data_bytes > task.length_bytes - offset_bytes):
        return E_PROTOCOL
    if unlikely(get_be32(rx.header + 36) != task.data_sn):
        return E_PROTOCOL
    rx.data = task.data + offset_bytes
    return OK


cdef int on_header(Conn* conn) noexcept nogil:
    cdef Initiator* initiator = <Initiator*>conn.owner
    cdef PduRx* rx = &conn.rx
    cdef uint8_t opcode = rx.header[0] & OPCODE_BITS
    if likely(opcode == OP_DATA_IN):
        return data_in_header(initiator, rx)
    if opcode == OP_SCSI_RESPONSE or opcode == OP_ASYNC_MESSAGE or opcode == OP_REJECT:
        if rx.data_bytes <= REPLY_BYTES:
            rx.data = initiator.reply
        else:
            rx.discard = True
        return OK
    if opcode == OP_R2T or opcode == OP_NOP_IN or opcode == OP_LOGOUT_RESPONSE:
        rx.discard = True
        return OK
    return E_PROTOCOL


cdef int data_in(Initiator* initiator, PduRx* rx) noexcept nogil:
    cdef Task* task = task_find(initiator, get_be32(rx.header + 16))
    cdef uint8_t flags = rx.header[1]
    cdef Answer answer
    if unlikely(task == NULL):
        return E_PROTOCOL
    task.received_bytes += rx.data_bytes
    task.data_sn += 1
    take_numbers(initiator, rx.header, flags & DATA_IN_STATUS)
    if flags & DATA_IN_STATUS:
        memset(&answer, 0, sizeof(answer))
        answer.status = rx.header[3]
        answer_residual(&answer, rx.header)
        task_answered(initiator, task, &answer)
    return OK


cdef void answer_residual(Answer* answer, const uint8_t* header) noexcept nogil:
    if header[1] & RESIDUAL_UNDERFLOW:
        answer.residual_flags |= 1
    if header[1] & RESIDUAL_OVERFLOW:
        answer.residual_flags |= 2
    answer.residual = get_be32(header + 44) if answer.residual_flags != 0 else 0


cdef int scsi_response(Initiator* initiator, PduRx* rx) noexcept nogil:
    cdef Task* task = task_find(initiator, get_be32(rx.header + 16))
    cdef Answer answer
    cdef uint32_t sense_bytes
    if unlikely(task == NULL):
        return E_PROTOCOL
    take_numbers(initiator, rx.header, True)
    memset(&answer, 0, sizeof(answer))
    answer.response = rx.header[2]
    answer.status = rx.header[3]
    answer_residual(&answer, rx.header)
    if rx.data_bytes >= 2 and not rx.discard:
        sense_bytes = get_be16(initiator.reply)
        if sense_bytes > rx.data_bytes - 2:
            sense_bytes = rx.data_bytes - 2
        answer.sense = initiator.reply + 2
        answer.sense_bytes = sense_bytes
    task_answered(initiator, task, &answer)
    return OK


cdef int ready_to_transfer(Initiator* initiator, PduRx* rx) noexcept nogil:
    cdef Task* task = task_find(initiator, get_be32(rx.header + 16))
    if unlikely(task == NULL):
        return E_PROTOCOL
    take_numbers(initiator, rx.header, False)
    return task_r2t(initiator, task, get_be32(rx.header + 36), get_be32(rx.header + 20), get_be32(rx.header + 40),
                    get_be32(rx.header + 44))


cdef int nop_in(Initiator* initiator, PduRx* rx) noexcept nogil:
    cdef uint32_t tag = get_be32(rx.header + 16)
    cdef uint32_t target_tag = get_be32(rx.header + 20)
    take_numbers(initiator, rx.header, tag != TAG_NONE)
    if tag != TAG_NONE and tag == initiator.nop_tag:
        initiator.nop_tag = TAG_NONE
    if target_tag == TAG_NONE or initiator.conn.close_after_flush:
        return OK
    return send_nop(initiator, TAG_NONE, target_tag, rx.header + 8)


cdef void tell_async(Initiator* initiator, PduRx* rx) noexcept nogil:
    cdef Command* event = event_new(initiator.store.loop, EVENT_INITIATOR_ASYNC, initiator.store.id)
    if event == NULL:
        return
    event.results[0] = rx.header[36]
    event.results[1] = get_be16(rx.header + 38)
    event.results[2] = get_be16(rx.header + 40)
    event.results[3] = get_be16(rx.header + 42)
    if rx.data_bytes != 0 and not rx.discard:
        event.data = malloc(rx.data_bytes)
        if event.data != NULL:
            memcpy(event.data, initiator.reply, rx.data_bytes)
            event.data_bytes = rx.data_bytes
    event_post(initiator.store.loop, event)


cdef int async_message(Initiator* initiator, PduRx* rx) noexcept nogil:
    # RFC 7143, 11.9.1. A renegotiation is not offered: the session is left as if a logout had been asked for.
    cdef uint8_t event = rx.header[36]
    take_numbers(initiator, rx.header, True)
    tell_async(initiator, rx)
    if event == ASYNC_LOGOUT_REQUEST or event == ASYNC_RENEGOTIATE:
        if not initiator.leaving:
            # Half of what the target gives (Parameter3, seconds) is for commands in flight; they are sent again later.
            initiator.logout_by_ns = initiator.store.loop.now_ns + (
                get_be16(rx.header + 42) * <ns_t>500000000 or LEAVE_MS * <ns_t>1000000)
        initiator.announced = event
        leave(initiator, True)
    elif event == ASYNC_DROP_CONNECTION or event == ASYNC_DROP_SESSION:
        initiator.announced = event
        initiator.time2wait_s = get_be16(rx.header + 40)
        initiator.time2retain_s = get_be16(rx.header + 42)
        leave(initiator, False)
    elif event == ASYNC_TASKS_TERMINATED:
        initiator.announced = event
        return E_ABORTED            # what was in flight gets no answer: it is sent again on a new connection
    return OK


cdef int reject(Initiator* initiator, PduRx* rx) noexcept nogil:
    # The data segment is the header of what was rejected (RFC 7143, 11.17).
    cdef Task* task
    cdef uint8_t opcode
    take_numbers(initiator, rx.header, True)
    initiator.rejects += 1
    if rx.discard or rx.data_bytes < BHS_BYTES:
        return E_PROTOCOL
    opcode = initiator.reply[0] & OPCODE_BITS
    if opcode == OP_NOP_OUT:
        initiator.nop_tag = TAG_NONE            # an answer all the same
        return OK
    if opcode == OP_LOGOUT_REQUEST:
        return E_CLOSED
    if opcode != OP_SCSI_COMMAND:
        return OK                               # a rejected Data-Out: the status of its task follows
    task = task_find(initiator, get_be32(initiator.reply + 16))
    if task == NULL:
        return E_PROTOCOL
    if rx.header[2] == REJECT_WAITING_FOR_LOGOUT:
        leave(initiator, True)
        task_failed(initiator, task, AGAIN)
    elif rx.header[2] == REJECT_DATA_DIGEST:
        task_failed(initiator, task, AGAIN)     # its immediate data was spoilt on the way
    else:
        task_failed(initiator, task, E_PROTOCOL)
    return OK


cdef int on_pdu(Conn* conn) noexcept nogil:
    cdef Initiator* initiator = <Initiator*>conn.owner
    cdef PduRx* rx = &conn.rx
    cdef uint8_t opcode = rx.header[0] & OPCODE_BITS
    if unlikely(rx.data_digest_bad):
        return E_DIGEST             # at error recovery level 0 the session is begun anew
    if likely(opcode == OP_DATA_IN):
        return data_in(initiator, rx)
    if opcode == OP_SCSI_RESPONSE:
        return scsi_response(initiator, rx)
    if opcode == OP_R2T:
        return ready_to_transfer(initiator, rx)
    if opcode == OP_NOP_IN:
        return nop_in(initiator, rx)
    if opcode == OP_ASYNC_MESSAGE:
        return async_message(initiator, rx)
    if opcode == OP_REJECT:
        return reject(initiator, rx)
    take_numbers(initiator, rx.header, True)
    return E_CLOSED if initiator.logout_sent else E_PROTOCOL        # a Logout Response


# ---- time ------------------------------------------------------------------------------------------------------------

cdef bint overdue(Initiator* initiator, ns_t now_ns) noexcept nogil:
    # A command without answer, or bytes that the target does not take.
    cdef uint32_t i
    if initiator.conn.tx_head != NULL and now_ns - initiator.conn.last_tx_ns > initiator.command_limit_ns:
        return True
    if initiator.tasks_flying == 0:
        return False
    for i in range(initiator.queue_depth):
        if (initiator.tasks[i].state == TASK_SENT
                and now_ns - initiator.tasks[i].sent_ns > initiator.command_limit_ns):
            return True
    return False


cdef bint silent(Initiator* initiator, ns_t now_ns) noexcept nogil:
    # Asks a silent target for a sign of life; True when none came in time.
    cdef ns_t since_ns = initiator.conn.last_rx_ns
    if initiator.nop_interval_ns == 0:
        return False
    if initiator.nop_tag != TAG_NONE:
        if since_ns < initiator.nop_sent_ns:
            since_ns = initiator.nop_sent_ns
        return now_ns - since_ns >= initiator.nop_timeout_ns
    if now_ns - since_ns >= initiator.nop_interval_ns:
        initiator.nop_tag = tag_new(initiator, NOP_INDEX)
        initiator.nop_sent_ns = now_ns
        send_nop(initiator, initiator.nop_tag, TAG_NONE, NULL)
    return False


cdef void on_tick(void* owner) noexcept nogil:
    cdef Initiator* initiator = <Initiator*>owner
    cdef ns_t now_ns = initiator.store.loop.now_ns
    cdef bint waited
    if not initiator.attached or not initiator.conn.open:
        return
    if initiator.logout_wanted and not initiator.logout_sent and logout_due(initiator):
        send_logout(initiator)
        if not initiator.conn.open:
            return
    waited = initiator.leaving and (initiator.logout_sent or not initiator.logout_wanted)
    if ((waited and now_ns - initiator.leaving_ns > LEAVE_MS * <ns_t>1000000) or overdue(initiator, now_ns)
            or silent(initiator, now_ns)):
        conn_close(&initiator.conn, E_TIMEOUT)
        return
    loop_timer_coarse(initiator.store.loop, &initiator.timer, initiator.tick_ns, initiator.tick_ns // TICK_GRAINS)


# ---- beginning and end of a connection -------------------------------------------------------------------------------

cdef void on_closed(Conn* conn, int reason) noexcept nogil:
    cdef Initiator* initiator = <Initiator*>conn.owner
    cdef Command* command = initiator.leave_command
    cdef Command* event
    detached(initiator)
    initiator.lost_ns = initiator.store.loop.now_ns
    initiator.store.losses += 1
    if initiator.failed:
        tasks_end(initiator, E_IO)
    else:
        tasks_return(initiator)
    initiator.leave_command = NULL
    if command != NULL:
        command_done(command, OK)
    if initiator.close_asked:
        return
    event = event_new(initiator.store.loop, EVENT_INITIATOR_LOST, initiator.store.id)
    if event != NULL:
        event.results[0] = <uint64_t><int64_t>reason
        event.results[1] = initiator.announced
        event.results[2] = initiator.time2wait_s
        event.results[3] = initiator.time2retain_s
        event_post(initiator.store.loop, event)


cdef void detached(Initiator* initiator) noexcept nogil:
    store_release_flag(&initiator.attached, False)      # Python looks at it while the loop runs
    conn_free(&initiator.conn)
    loop_timer_stop(initiator.store.loop, &initiator.timer)
    loop_timer_stop(initiator.store.loop, &initiator.retry_timer)
    loop_undefer(initiator.store.loop, &initiator.send_work)


cdef ConnOps CONN_OPS
CONN_OPS.on_header = on_header
CONN_OPS.on_pdu = on_pdu
CONN_OPS.on_closed = on_closed


cdef int attach(Initiator* initiator, int fd, const ConnParams* params) noexcept nogil:
    cdef int status
    if initiator.store.closing:
        return E_CLOSED
    if initiator.attached:
        return E_BUSY
    status = conn_init(&initiator.conn, initiator.store.loop, fd, params, &CONN_OPS, initiator)
    if status < 0:
        return status
    # What is queued is bounded by tasks_pump, and two sides that both stop reading would hang.
    initiator.conn.tx_pause_bytes = 0
    store_release_flag(&initiator.attached, True)
    initiator.failed = False
    initiator.leaving = False
    initiator.logout_wanted = False
    initiator.logout_sent = False
    initiator.close_asked = False
    initiator.logout_by_ns = 0
    initiator.announced = 0
    initiator.time2wait_s = 0
    initiator.time2retain_s = 0
    initiator.cmd_sn = params.cmd_sn
    initiator.exp_stat_sn = params.stat_sn
    initiator.max_cmd_sn = params.max_cmd_sn
    initiator.nop_tag = TAG_NONE
    initiator.reconnects += 1
    initiator.lost_ns = 0
    loop_timer_coarse(initiator.store.loop, &initiator.timer, initiator.tick_ns, initiator.tick_ns // TICK_GRAINS)
    loop_defer(initiator.store.loop, &initiator.send_work)
    return OK


# ---- the store -------------------------------------------------------------------------------------------------------

cdef void initiator_submit(Store* store, Io* io) noexcept nogil:
    task_submit(<Initiator*>store, io)


cdef void initiator_close(Store* store) noexcept nogil:
    # Not from inside a callback of the connection: completions and commands of Python run by themselves.
    cdef Initiator* initiator = <Initiator*>store
    cdef Command* command = initiator.leave_command
    initiator.leave_command = NULL
    detached(initiator)
    tasks_end(initiator, E_CLOSED)
    if command != NULL:
        command_done(command, E_CLOSED)


cdef StoreOps STORE_OPS
STORE_OPS.submit = initiator_submit
STORE_OPS.close = initiator_close
STORE_OPS.closed = NULL


# ---- commands of Python ----------------------------------------------------------------------------------------------

cdef void do_attach(Command* command) noexcept nogil:
    cdef int fd = <int>command.args[0]
    cdef int status = attach(<Initiator*>command.owner, fd, <ConnParams*>command.data)
    if status < 0:
        close(fd)
    command_done(command, status)


cdef void do_leave(Command* command) noexcept nogil:
    # args: 1 by Logout, 0 at once
    cdef Initiator* initiator = <Initiator*>command.owner
    if not initiator.attached:
        command_done(command, OK)
        return
    if initiator.leave_command != NULL:
        command_done(command, E_BUSY)
        return
    initiator.leave_command = command
    initiator.close_asked = True
    if command.args[0]:
        leave(initiator, True)
    else:
        conn_close(&initiator.conn, E_CLOSED)


cdef void do_fail(Command* command) noexcept nogil:
    cdef Initiator* initiator = <Initiator*>command.owner
    initiator.failed = True
    if initiator.attached:
        initiator.close_asked = True
        conn_close(&initiator.conn, E_ABORTED)
    else:
        tasks_end(initiator, E_IO)
    command_done(command, OK)


cdef void do_resize(Command* command) noexcept nogil:
    (<Initiator*>command.owner).store.size_bytes = command.args[0]
    command_done(command, OK)


# ---- what Python holds -----------------------------------------------------------------------------------------------

cdef int params_from(dict given, ConnParams* params) except -1:
    cdef bytes isid = given.get("isid", bytes(6))
    memset(params, 0, sizeof(ConnParams))
    params.header_digest = given["header_digest"]
    params.data_digest = given["data_digest"]
    params.recv_data_bytes_max = given["recv_data_bytes_max"]
    params.send_data_bytes_max = given["send_data_bytes_max"]
    params.burst_bytes_max = given["burst_bytes_max"]
    params.first_burst_bytes = given["first_burst_bytes"]
    params.initial_r2t = given["initial_r2t"]
    params.immediate_data = given["immediate_data"]
    params.outstanding_r2t_max = given.get("outstanding_r2t_max", 1)
    params.cmd_sn = given["cmd_sn"]
    params.stat_sn = given["stat_sn"]
    params.max_cmd_sn = given["max_cmd_sn"]
    params.cid = given.get("cid", 0)
    params.tsih = given.get("tsih", 0)
    params.time2wait_s = given.get("time2wait_s", 2)
    params.time2retain_s = given.get("time2retain_s", 0)
    if len(isid) != 6:
        raise ValueError(f"an ISID has 6 bytes, not {len(isid)}")
    memcpy(params.isid, <const char*>isid, 6)
    if not 1 <= params.outstanding_r2t_max < BURSTS_MAX:
        raise ValueError(f"outstanding_r2t_max {params.outstanding_r2t_max} is not within 1 to {BURSTS_MAX - 1}")
    for name in ("recv_data_bytes_max", "send_data_bytes_max", "burst_bytes_max", "first_burst_bytes"):
        if not 512 <= given[name] < 1 << 24:
            raise ValueError(f"{name} {given[name]} is not within 512 to 16777215 (RFC 7143, 13.12 to 13.14)")
    return 0


@cython.no_gc_clear
@cython.final
cdef class InitiatorStore(StoreHandle):
    """A LUN of a target as a store (RFC 7143 from the initiator's side, after login).

    `size_bytes` and `block_bytes` are what READ CAPACITY told; `queue_depth` bounds the commands in flight (1 to 1000).
    `unmap`: the target is known to take WRITE SAME (16) with UNMAP; without it zeros are written. `volatile`: the
    target has a write cache (caching mode page, WCE). Times are milliseconds; nop_interval_ms 0 sends no NOP-Out.
    Requests wait while nothing is attached; after fail() they end with E_IO until the next attach.
    """

    def __cinit__(self, Reactor reactor not None, uint64_t store_id, int lun, uint64_t size_bytes,
                  uint32_t block_bytes=512, uint32_t queue_depth=64, bint unmap=False, bint volatile=True,
                  bint read_only=False, uint32_t transfer_bytes_max=PART_BYTES_MAX,
                  uint64_t unmap_bytes_max=32 * 2**20, uint32_t command_limit_ms=20000, uint32_t nop_interval_ms=5000,
                  uint32_t nop_timeout_ms=5000, uint32_t retries_max=16):
        cdef uint32_t flags = STORE_RANDOM_READ | STORE_IS_SCSI
        cdef Initiator* initiator
        self.initiator = NULL
        self.reactor = reactor
        if block_bytes < 512 or block_bytes > 65536 or block_bytes & (block_bytes - 1):
            raise ValueError(f"block_bytes {block_bytes} is not a power of two from 512 to 65536")
        if not 1 <= queue_depth <= TASKS_MAX:
            raise ValueError(f"queue_depth {queue_depth} is not within 1 to {TASKS_MAX}")
        if not 0 <= lun < 16384:
            raise ValueError(f"lun {lun} is not within 0 to 16383")
        if size_bytes % block_bytes:
            raise ValueError(f"a size of {size_bytes} bytes is not a number of blocks of {block_bytes} bytes")
        if command_limit_ms == 0 or nop_timeout_ms == 0:
            raise ValueError("a limit of 0 ms leaves no time for an answer")
        initiator = <Initiator*>calloc(1, sizeof(Initiator))
        if initiator == NULL:
            raise MemoryError("no memory for an initiator")
        self.initiator = initiator
        self.store = &initiator.store
        flags |= STORE_CAN_UNMAP | STORE_CAN_MAP if unmap else 0
        flags |= STORE_VOLATILE if volatile else 0
        flags |= STORE_READ_ONLY if read_only else 0
        store_init(&initiator.store, &STORE_OPS, reactor.loop, size_bytes, block_bytes, flags)
        initiator.store.id = store_id
        self.set_limits(queue_depth, transfer_bytes_max, unmap_bytes_max, retries_max)
        self.set_times(command_limit_ms, nop_interval_ms, nop_timeout_ms)
        initiator.unmap = unmap
        initiator.lun[0] = 0 if lun < 256 else <uint8_t>(0x40 | lun >> 8)
        initiator.lun[1] = <uint8_t>(lun & 0xFF)
        if tasks_init(initiator) < 0:
            raise MemoryError("no memory for the tasks of an initiator")

    cdef void set_limits(self, uint32_t queue_depth, uint32_t transfer_bytes_max, uint64_t unmap_bytes_max,
                         uint32_t retries_max) noexcept:
        # Every part of an Io is whole blocks, at least one.
        cdef Initiator* initiator = self.initiator
        cdef uint32_t block_bytes = initiator.store.block_bytes
        initiator.queue_depth = queue_depth
        initiator.transfer_bytes_max = transfer_bytes_max if transfer_bytes_max < PART_BYTES_MAX else PART_BYTES_MAX
        initiator.transfer_bytes_max -= initiator.transfer_bytes_max % block_bytes
        if initiator.transfer_bytes_max == 0:
            initiator.transfer_bytes_max = block_bytes
        if unmap_bytes_max // block_bytes > <uint64_t>0xFFFFFFFFU:
            unmap_bytes_max = <uint64_t>0xFFFFFFFFU * block_bytes
        initiator.unmap_bytes_max = unmap_bytes_max - unmap_bytes_max % block_bytes
        if initiator.unmap_bytes_max == 0:
            initiator.unmap_bytes_max = block_bytes
        initiator.retries_max = retries_max

    cdef void set_times(self, uint32_t command_limit_ms, uint32_t nop_interval_ms, uint32_t nop_timeout_ms) noexcept:
        cdef Initiator* initiator = self.initiator
        cdef ns_t tick_ns = <ns_t>TICK_NS_MAX * 4
        initiator.command_limit_ns = command_limit_ms * <ns_t>1000000
        initiator.nop_interval_ns = nop_interval_ms * <ns_t>1000000
        initiator.nop_timeout_ns = nop_timeout_ms * <ns_t>1000000
        tick_ns = min(tick_ns, initiator.command_limit_ns)
        if nop_interval_ms:
            tick_ns = min(tick_ns, initiator.nop_interval_ns, initiator.nop_timeout_ns)
        initiator.tick_ns = max(tick_ns // 4, <ns_t>TICK_NS_MIN)
        initiator.timer.run = on_tick
        initiator.timer.owner = initiator
        initiator.retry_timer.run = run_send
        initiator.retry_timer.owner = initiator
        initiator.send_work.run = run_send
        initiator.send_work.owner = initiator

    def __dealloc__(self):
        if self.initiator != NULL and self.releasable():
            detached(self.initiator)
            tasks_free(self.initiator)
        self.initiator = NULL

    def attach(self, int fd, dict params not None) -> int:
        """Takes over a connected socket after login; `params` has the names of ConnParams. The descriptor belongs to
        the store from now on (also when the answer is an error). E_BUSY while another is attached."""
        cdef ConnParams values
        params_from(params, &values)
        return self.reactor.call(do_attach, self.usable(), <uint64_t>fd, 0, 0, 0,
                                 <const uint8_t*>&values, sizeof(values))

    def detach(self) -> int:
        """Closes the connection at once; what is in flight waits for the next attach."""
        return self.reactor.call(do_leave, self.usable(), 0, 0, 0, 0, NULL, 0)

    def logout(self) -> int:
        """Waits for what is in flight, sends a Logout, closes. What is queued waits for the next attach."""
        return self.reactor.call(do_leave, self.usable(), 1, 0, 0, 0, NULL, 0)

    def fail(self) -> int:
        """Ends everything with E_IO, and what is submitted later too, until the next attach."""
        return self.reactor.call(do_fail, self.usable(), 0, 0, 0, 0, NULL, 0)

    def resize(self, uint64_t size_bytes) -> int:
        """The target's capacity has changed."""
        cdef Store* store = self.usable()
        if size_bytes % store.block_bytes:
            raise ValueError(f"a size of {size_bytes} bytes is not a number of blocks of {store.block_bytes} bytes")
        return self.reactor.call(do_resize, store, size_bytes, 0, 0, 0, NULL, 0)

    @property
    def attached(self) -> bool:
        return load_acquire_flag(&self.initiator.attached)

    @property
    def session(self) -> dict:
        """Figures since the start: attachments, answers, retries, rejects; commands in flight now; bytes of this
        connection."""
        cdef Initiator* initiator = self.initiator
        return {"attachments": initiator.reconnects, "answers": initiator.answers, "retries": initiator.retries,
                "rejects": initiator.rejects, "commands_in_flight": initiator.tasks_flying, "rx_bytes": initiator.conn.rx_bytes,
                "tx_bytes": initiator.conn.tx_bytes, "lost_ns": initiator.lost_ns}
