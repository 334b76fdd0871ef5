# One host's session in full feature phase (RFC 7143): one connection, error recovery level 0.
#
# Owns: the Session and its Conn, the PDU that is being received, the queue of commands ahead of ExpCmdSN.
# Invariants: a non-immediate PDU inside the window is acted on once, when its CmdSN is ExpCmdSN; outside of it, it is
# ignored (4.2.2.1); a session is freed when its connection is closed and no device has a request of it. A PDU that
# breaks the protocol ends this connection and nothing else.
# Cost: a SCSI command is begun when its header is there, so that its immediate data go straight to their place.
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from detour.core.conn cimport (Conn, ConnOps, conn_close, conn_free, conn_init, conn_tx_queue)
from detour.core.device cimport NEXUS_LOGIN, NEXUS_LOGOUT
from detour.core.endian cimport get_be24, get_be32, put_be32
from detour.core.iscsi cimport *
from detour.core.pdu cimport sn_le, sn_lt
from detour.core.pool cimport pool_get, pool_put, slab_free, slab_init
from detour.core.reactor cimport (EVENT_SESSION_CLOSED, command_done, event_new, event_post, loop_defer,
                                  loop_timer, loop_timer_coarse, loop_timer_stop, loop_undefer)
from detour.core.session_text cimport *
from detour.core.task_management cimport management_begin
from detour.core.task_order cimport order_begin
from detour.core.task_medium cimport compare_next
from detour.core.task_out cimport (out_advance, out_header, out_pdu, out_prepare, out_receive, out_received)

cdef extern from "<unistd.h>" nogil:
    int close(int fd) noexcept

cdef enum Verdict:
    VERDICT_NOW = 0
    VERDICT_QUEUE = 1
    VERDICT_IGNORE = 2

cdef enum:
    IMMEDIATE_COMMANDS_MAX = 32         # beside the command window
    QUEUED_PDU_BYTES_MAX = 1048576      # data of pings and text ahead of ExpCmdSN
    TX_PAUSE_PDUS = 1024
    WATCH_PERIOD_MS = 5000              # where no NOP-In is sent
    WATCH_GRAINS = 32                   # of a period: the watches of many sessions meet, but not all at once


# ---- open and close --------------------------------------------------------------------------------------------------

cdef void each_device(Session* session, int event) noexcept nogil:
    cdef Target* target = session.target
    cdef Device* device
    cdef int lun
    for lun in range(TARGET_LUNS_MAX + 1):
        device = target.luns[lun] if lun < TARGET_LUNS_MAX else target.fallback
        if device != NULL and device.ops.nexus_event != NULL:
            device.ops.nexus_event(device, &session.nexus, event)


cdef int check_params(const ConnParams* params) noexcept nogil:
    if params.recv_data_bytes_max < 512 or params.recv_data_bytes_max > 0xFFFFFF:
        return E_INVALID
    if params.send_data_bytes_max < 512 or params.burst_bytes_max < 512 or params.first_burst_bytes < 512:
        return E_INVALID
    if params.first_burst_bytes > PART_BYTES_MAX or params.first_burst_bytes > params.burst_bytes_max:
        return E_INVALID
    return E_INVALID if params.outstanding_r2t_max == 0 or params.burst_bytes_max > 0xFFFFFF else OK


cdef void link_target(Target* target) noexcept nogil:
    # Its first session: who looks for all tasks at a device finds them from now on.
    target.next_with_sessions = <Target*>target.loop.targets
    target.loop.targets = target


cdef void unlink_target(Target* target) noexcept nogil:
    cdef Target* other = <Target*>target.loop.targets
    if other == target:
        target.loop.targets = target.next_with_sessions
        return
    while other.next_with_sessions != target:
        other = other.next_with_sessions
    other.next_with_sessions = target.next_with_sessions


cdef int session_open(Target* target, int fd, const SessionArgs* args, uint64_t* session_id) noexcept nogil:
    cdef Session* session
    cdef int status = check_params(&args.params)
    if target.closing:
        status = E_CLOSED
    session = <Session*>calloc(1, sizeof(Session)) if status == OK else NULL
    if session == NULL:
        close(fd)
        return E_NOMEM if status == OK else status
    status = conn_init(&session.conn, target.loop, fd, &args.params, &SESSION_OPS, session)
    if status < 0:
        close(fd)
        free(session)
        return status
    session.target = target
    session.id = target.next_session_id
    target.next_session_id += 1
    session.exp_cmd_sn = args.params.cmd_sn
    session.stat_sn = args.params.stat_sn
    session.queue_depth = args.params.queue_depth
    if session.queue_depth == 0 or session.queue_depth > target.queue_depth_max:
        session.queue_depth = target.queue_depth_max
    session.max_cmd_sn_told = session.exp_cmd_sn + session.queue_depth - 1
    slab_init(&session.task_slab, sizeof(Task), 2 * session.queue_depth + 2 * IMMEDIATE_COMMANDS_MAX)
    session.nexus.session_id = session.id
    memcpy(session.nexus.initiator_name, args.initiator_name, sizeof(args.initiator_name) - 1)
    memcpy(session.nexus.isid, args.isid, 6)
    session.compare_work.run = compare_next
    session.compare_work.owner = session
    session.conn.tx_pause_pdus = TX_PAUSE_PDUS
    session.text.ttt = TAG_NONE
    session.memory_work.run = memory_run
    session.memory_work.owner = session
    session.watch_timer.run = on_watch_timer
    session.watch_timer.owner = session
    session.home_timer.run = on_home_timer
    session.home_timer.owner = session
    session.next = target.sessions
    if target.sessions != NULL:
        target.sessions.prev = session
    else:
        link_target(target)
    target.sessions = session
    target.sessions_count += 1
    target.stats.sessions = target.sessions_count
    each_device(session, NEXUS_LOGIN)
    watch_later(session, watch_period_ns(target))
    session_id[0] = session.id
    return OK


cdef void on_closed(Conn* conn, int reason) noexcept nogil:
    cdef Session* session = <Session*>conn.owner
    cdef Target* target = session.target
    cdef Task* task = session.tasks
    cdef Task* following
    loop_timer_stop(target.loop, &session.watch_timer)
    loop_timer_stop(target.loop, &session.home_timer)
    session.ended = True
    session.end_reason = reason
    drop_rx_buffer(session)
    text_free(session)
    while task != NULL:
        following = task.next
        if task.kind == TASK_COMMAND:
            if target.dropping and not task.device_begun and not task.aborted:
                target.stats.held += 1
            task_abort(task)
        else:
            task_free(task)
        task = following
    target.sweep_wanted = True
    target_touch(target)


cdef void on_rest(Conn* conn) noexcept nogil:
    cdef Session* session = <Session*>conn.owner
    if session.task_slab.slots_taken == 0:
        slab_free(&session.task_slab)
    if session.compare_owner == NULL and session.compare_head == NULL:
        free(session.compare_buffer)
        session.compare_buffer = NULL


cdef bint session_finish(Session* session) noexcept nogil:
    cdef Target* target = session.target
    cdef Command* event
    cdef Command* command = session.drop_commands
    cdef Command* following
    if session.tasks_open > 0:
        return False
    each_device(session, NEXUS_LOGOUT)
    event = event_new(target.loop, EVENT_SESSION_CLOSED, session.id)
    if event != NULL:
        event.results[0] = <uint64_t><int64_t>session.end_reason
        event.results[1] = session.commands_done
        event_post(target.loop, event)
    while command != NULL:
        following = <Command*>command.args[7]
        command_done(command, OK)
        command = following
    if session.prev != NULL:
        session.prev.next = session.next
    else:
        target.sessions = session.next
    if session.next != NULL:
        session.next.prev = session.prev
    if target.sessions == NULL:
        unlink_target(target)
    target.sessions_count -= 1
    target.stats.sessions = target.sessions_count
    loop_undefer(target.loop, &session.compare_work)
    loop_undefer(target.loop, &session.memory_work)
    conn_free(&session.conn)
    slab_free(&session.task_slab)
    free(session.compare_buffer)
    free(session)
    return True


cdef Session* session_find(Target* target, uint64_t session_id) noexcept nogil:
    cdef Session* session = target.sessions
    while session != NULL and session.id != session_id:
        session = session.next
    return session


# ---- CmdSN -----------------------------------------------------------------------------------------------------------

cdef int judge(Session* session, const uint8_t* bhs) noexcept nogil:
    # When to act on a PDU that carries a CmdSN. The one whose turn it is moves ExpCmdSN on.
    cdef uint32_t sn = get_be32(bhs + 24)
    cdef Task* task = session.waiting_head
    if bhs[0] & OP_IMMEDIATE:
        return VERDICT_NOW
    if sn == session.exp_cmd_sn and sn_le(sn, session.max_cmd_sn_told):
        session.exp_cmd_sn += 1
        return VERDICT_NOW
    if sn_lt(sn, session.exp_cmd_sn) or sn_lt(session.max_cmd_sn_told, sn):
        return VERDICT_IGNORE
    while task != NULL:
        if task.cmd_sn == sn:
            return VERDICT_IGNORE
        task = task.queue_next
    return VERDICT_QUEUE


cdef void run_queue(Session* session) noexcept nogil:
    cdef Task* task = session.waiting_head
    cdef uint8_t* buffer
    while task != NULL and task.cmd_sn == session.exp_cmd_sn and session.conn.open:
        session.waiting_head = task.queue_next
        task.queue_next = NULL
        session.exp_cmd_sn += 1
        if task.kind == TASK_COMMAND:
            begin_or_hold(task)
        else:
            task.state = TASK_BEGUN
            if task.kind == TASK_PDU:
                buffer = task.gather
                task.gather = NULL
                session.queued_pdu_bytes -= task.gather_bytes if buffer != NULL else 0
                act(session, task.bhs, buffer, task.gather_bytes)
            task_free(task)
        task = session.waiting_head


cdef void begin_or_hold(Task* task) noexcept nogil:
    if task.session.target.dropping:
        task.state = TASK_HELD
    else:
        order_begin(task)


cdef void session_resume(Session* session) noexcept nogil:
    cdef Task* task
    cdef Task* oldest
    cdef Task* following
    oldest = NULL
    while session.conn.open:
        oldest = NULL
        task = session.tasks
        while task != NULL:
            if task.state == TASK_HELD and not task.dormant and not task.aborted:
                if oldest == NULL or sn_lt(task.cmd_sn, oldest.cmd_sn):
                    oldest = task
            task = task.next
        if oldest == NULL:
            break
        order_begin(oldest)
    task = session.tasks
    while task != NULL:
        following = task.next
        if task.kind == TASK_COMMAND and task.wants_write and task.state == TASK_BEGUN and not task.aborted:
            if not task.device_begun:
                out_advance(task)
        task = following
    if session.memory_head != NULL:
        loop_defer(session.target.loop, &session.memory_work)


# ---- receiving -------------------------------------------------------------------------------------------------------

cdef void drop_rx_buffer(Session* session) noexcept nogil:
    if session.rx_buffer != NULL:
        pool_put(&session.target.loop.buffers, session.rx_buffer, session.rx_buffer_bytes)
        session.rx_buffer = NULL


cdef int on_header(Conn* conn) noexcept nogil:
    cdef Session* session = <Session*>conn.owner
    cdef const uint8_t* bhs = conn.rx.header
    cdef uint8_t opcode = bhs[0] & 0x3F
    conn.rx.discard = True
    session.rx_task = NULL
    session.rx_verdict = VERDICT_NOW
    if opcode == OP_DATA_OUT:
        return out_header(session)
    if opcode == OP_SCSI_COMMAND:
        return command_header(session)
    if opcode == OP_LOGIN_REQUEST:
        return E_PROTOCOL
    if opcode != OP_NOP_OUT and opcode != OP_TASK_MANAGEMENT and opcode != OP_TEXT_REQUEST \
            and opcode != OP_LOGOUT_REQUEST:
        return OK
    session.rx_verdict = judge(session, bhs)
    if session.rx_verdict == VERDICT_IGNORE or conn.rx.data_bytes == 0:
        return OK
    if conn.rx.data_bytes + ECHO_HEAD_BYTES > PART_BYTES_MAX:
        return OK
    session.rx_buffer_bytes = conn.rx.data_bytes + ECHO_HEAD_BYTES
    session.rx_buffer = pool_get(&session.target.loop.buffers, session.rx_buffer_bytes)
    if session.rx_buffer != NULL:
        conn.rx.data = session.rx_buffer + ECHO_HEAD_BYTES
        conn.rx.discard = False
    return OK


cdef int command_header(Session* session) noexcept nogil:
    cdef Conn* conn = &session.conn
    cdef const uint8_t* bhs = conn.rx.header
    cdef Task* task
    if get_be32(bhs + 16) == TAG_NONE:
        return E_PROTOCOL
    session.rx_verdict = judge(session, bhs)
    if session.rx_verdict == VERDICT_IGNORE:
        return OK
    if task_find(session, get_be32(bhs + 16)) != NULL:
        session_reject(session, bhs, REJECT_TASK_IN_PROGRESS)
        session.rx_verdict = VERDICT_IGNORE
        return OK
    task = NULL
    if not bhs[0] & OP_IMMEDIATE or session.tasks_unanswered < session.queue_depth + IMMEDIATE_COMMANDS_MAX:
        task = task_new(session, bhs)
    if task == NULL:
        session_reject(session, bhs, REJECT_IMMEDIATE)
        session.rx_verdict = VERDICT_IGNORE
        return OK if bhs[0] & OP_IMMEDIATE else E_NOMEM
    task.wants_read = (bhs[1] & FLAG_READ) != 0
    task.wants_write = (bhs[1] & FLAG_WRITE) != 0
    task.expected_bytes = get_be32(bhs + 20) if task.wants_read or task.wants_write else 0
    out_prepare(task, conn.rx.data_bytes, (bhs[1] & FLAG_FINAL) != 0)
    if conn.rx.data_bytes > 0:
        session.rx_task = task          # keeps the task while its data come
    if session.rx_verdict == VERDICT_QUEUE:
        task_queue(task)
    else:
        begin_or_hold(task)
    if session.rx_task != NULL and conn.open:
        out_receive(session.rx_task, conn.rx.data_bytes)
    return OK


cdef int on_pdu(Conn* conn) noexcept nogil:
    cdef Session* session = <Session*>conn.owner
    cdef const uint8_t* bhs = conn.rx.header
    cdef uint8_t opcode = bhs[0] & 0x3F
    cdef uint8_t* buffer = session.rx_buffer
    cdef Task* task = session.rx_task
    if session.rx_verdict == VERDICT_IGNORE:
        return OK
    if opcode == OP_DATA_OUT:
        return out_pdu(session)
    if opcode == OP_SCSI_COMMAND:
        if task != NULL:
            out_received(task, conn.rx.data_bytes, conn.rx.data_digest_bad)
            out_advance(task)
    elif opcode == OP_NOP_OUT or opcode == OP_TASK_MANAGEMENT or opcode == OP_TEXT_REQUEST \
            or opcode == OP_LOGOUT_REQUEST:
        session.rx_buffer = NULL
        if conn.rx.data_digest_bad:
            session_reject(session, bhs, REJECT_DATA_DIGEST)
            give_back(session, buffer, session.rx_buffer_bytes)
        elif session.rx_verdict == VERDICT_QUEUE:
            return queue_pdu(session, bhs, buffer)
        else:
            act(session, bhs, buffer, session.rx_buffer_bytes)
    else:
        session_reject(session, bhs, REJECT_SNACK if opcode == OP_SNACK else REJECT_NOT_SUPPORTED)
        return OK
    run_queue(session)
    return OK


cdef void give_back(Session* session, uint8_t* buffer, uint32_t buffer_bytes) noexcept nogil:
    if buffer != NULL:
        pool_put(&session.target.loop.buffers, buffer, buffer_bytes)


cdef int queue_pdu(Session* session, const uint8_t* bhs, uint8_t* buffer) noexcept nogil:
    cdef Task* task = NULL
    cdef uint32_t bytes = session.rx_buffer_bytes if buffer != NULL else 0
    if session.queued_pdu_bytes + bytes <= QUEUED_PDU_BYTES_MAX:
        task = task_new(session, bhs)
    if task == NULL:
        give_back(session, buffer, session.rx_buffer_bytes)
        return E_NOMEM
    task.kind = TASK_PDU
    task.gather = buffer
    task.gather_bytes = session.rx_buffer_bytes
    session.queued_pdu_bytes += bytes
    task_queue(task)
    return OK


cdef void act(Session* session, const uint8_t* bhs, uint8_t* buffer, uint32_t buffer_bytes) noexcept nogil:
    # A PDU other than a command whose turn has come. The buffer (or NULL) is given back or sent.
    cdef uint8_t opcode = bhs[0] & 0x3F
    if opcode == OP_NOP_OUT:
        nop_out(session, bhs, buffer, buffer_bytes)
        return
    if opcode == OP_TEXT_REQUEST:
        if buffer == NULL and get_be24(bhs + 5) > 0:
            session_reject(session, bhs, REJECT_LONG_OPERATION)     # no memory for its data
        elif buffer == NULL:
            text_request(session, bhs, NULL, 0)
        else:
            text_request(session, bhs, buffer + ECHO_HEAD_BYTES, buffer_bytes - ECHO_HEAD_BYTES)
    else:
        management_begin(session, bhs)
    give_back(session, buffer, buffer_bytes)


# ---- NOP -------------------------------------------------------------------------------------------------------------

cdef void nop_out(Session* session, const uint8_t* bhs, uint8_t* buffer, uint32_t buffer_bytes) noexcept nogil:
    cdef uint32_t itt = get_be32(bhs + 16)
    cdef uint32_t data_bytes = buffer_bytes - ECHO_HEAD_BYTES if buffer != NULL else 0
    cdef TxPdu* pdu = NULL
    if itt != TAG_NONE:                 # else it answers a ping of ours
        pdu = session_tx(session, OP_NOP_IN, FLAG_FINAL, itt)
    elif session.homing and get_be32(bhs + 20) == session.home_ttt:
        loop_timer(session.target.loop, &session.home_timer, 0)     # in another turn: this PDU is still in work
    if pdu == NULL:
        give_back(session, buffer, buffer_bytes)
        return
    memcpy(pdu.header + 8, bhs + 8, 8)
    put_be32(pdu.header + 20, TAG_NONE)
    session_put_sn(session, pdu.header, True)
    if data_bytes > session.conn.params.send_data_bytes_max:
        data_bytes = session.conn.params.send_data_bytes_max
    if buffer == NULL:
        conn_tx_queue(&session.conn, pdu, 0)
    else:
        send_buffer(session, pdu, buffer, buffer_bytes, data_bytes)


cdef void nop_in(Session* session, uint32_t ttt) noexcept nogil:
    # RFC 7143 11.19: without a tag of the initiator StatSN is not taken; with a TTT the initiator answers.
    cdef TxPdu* pdu = session_tx(session, OP_NOP_IN, FLAG_FINAL, TAG_NONE)
    if pdu == NULL:
        return
    put_be32(pdu.header + 20, ttt)
    session_put_sn(session, pdu.header, False)
    conn_tx_queue(&session.conn, pdu, 0)


cdef void ping(Session* session) noexcept nogil:
    nop_in(session, session.next_ttt)
    session.next_ttt = 0 if session.next_ttt == TAG_NONE - 1 else session.next_ttt + 1


cdef void session_tell_window(Session* session) noexcept nogil:
    if session.conn.open and not session.conn.close_after_flush:
        nop_in(session, TAG_NONE)


# ---- silence and stalls ----------------------------------------------------------------------------------------------

cdef ns_t watch_period_ns(const Target* target) noexcept nogil:
    cdef uint32_t period_ms = target.nop_interval_ms if target.nop_interval_ms != 0 else WATCH_PERIOD_MS
    return <ns_t>period_ms * 1000000


cdef void watch_later(Session* session, ns_t delay_ns) noexcept nogil:
    cdef Target* target = session.target
    loop_timer_coarse(target.loop, &session.watch_timer, delay_ns, watch_period_ns(target) // WATCH_GRAINS)


cdef bint owes_data(const Session* session) noexcept nogil:
    cdef const Task* task = session.tasks
    while task != NULL:
        if task.state == TASK_BEGUN and not task.aborted and (task.bursts_count > 0 or task.unsolicited_open):
            return True
        task = task.next
    return False


cdef bint is_stalled(const Session* session) noexcept nogil:
    # The host does not take what waits for it, or does not send the data that it owes: what this holds is others' too.
    cdef ns_t limit_ns = <ns_t>session.target.stall_timeout_ms * 1000000
    cdef ns_t now_ns = session.target.loop.now_ns
    if limit_ns == 0:
        return False
    if session.conn.tx_head != NULL and now_ns - session.conn.last_tx_pdu_ns >= limit_ns:
        return True
    return now_ns - session.data_ns >= limit_ns and owes_data(session)


cdef void on_watch_timer(void* owner) noexcept nogil:
    # Silence is counted from the last whole PDU: bytes that never make one are no sign of life.
    cdef Session* session = <Session*>owner
    cdef Target* target = session.target
    cdef ns_t now_ns = target.loop.now_ns
    cdef ns_t interval_ns = <ns_t>target.nop_interval_ms * 1000000
    cdef ns_t silence_ns = now_ns - session.conn.last_rx_pdu_ns
    if is_stalled(session):
        conn_close(&session.conn, E_TIMEOUT)
        return
    if interval_ns == 0:
        watch_later(session, watch_period_ns(target))
        return
    if session.conn.rx_paused and now_ns - session.conn.last_tx_ns < silence_ns:
        silence_ns = now_ns - session.conn.last_tx_ns          # we do not read because the host reads slowly
    if silence_ns >= <ns_t>target.nop_timeout_ms * 1000000:
        conn_close(&session.conn, E_TIMEOUT)
        return
    if silence_ns >= interval_ns:
        ping(session)
        silence_ns = 0
    watch_later(session, interval_ns - silence_ns)


# ---- the way home ----------------------------------------------------------------------------------------------------

cdef void session_send_home(Session* session, uint16_t time2wait_s, uint16_t time2retain_s,
                            ns_t limit_ns) noexcept nogil:
    # A host that meets the close before it has worked off the Async Message waits its own Time2Wait, 2 s. It works off
    # PDUs in their order: its answer to the ping behind the message says that it has that.
    session.homing = True
    if not session.conn.open:
        return
    session_async(session, ASYNC_DROP_SESSION, 0, time2wait_s, time2retain_s)
    session.home_ttt = session.next_ttt
    ping(session)
    loop_timer(session.target.loop, &session.home_timer, limit_ns)


cdef void on_home_timer(void* owner) noexcept nogil:
    conn_close(&(<Session*>owner).conn, E_CLOSED)


cdef ConnOps SESSION_OPS
SESSION_OPS.on_header = on_header
SESSION_OPS.on_pdu = on_pdu
SESSION_OPS.on_closed = on_closed
SESSION_OPS.on_rest = on_rest
