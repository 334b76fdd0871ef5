# Tasks of the target side: making and ending them, their memory, SCSI Response and Reject.
#
# Owns: slots of the session's task slab; a task's staging and gather buffers; the hash chains by task tag.
# Invariants: a task that the device has a request of, or that has Data-In in the socket's queue, is not freed
# (task_busy); every request that was submitted is released once; tasks_unanswered never exceeds the window that was
# told, so that a command inside the window always finds a slot (immediate ones have slots of their own).
# Cost: a slab pop and a hash chain for each command; no malloc.
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from detour.core.conn cimport conn_close, conn_tx, conn_tx_queue
from detour.core.debug cimport invariant, unlikely
from detour.core.device cimport REQUEST_COMMAND, REQUEST_WRITE
from detour.core.endian cimport get_be32, put_be16, put_be32
from detour.core.guard cimport guard_leave
from detour.core.iscsi cimport *
from detour.core.pdu cimport sn_lt
from detour.core.pool cimport BufferPool, pool_put, pool_wait_cancel, slab_get_head, slab_put
from detour.core.reactor cimport loop_defer
from detour.core.scsi cimport *
from detour.core.stats cimport stats_record


cdef enum:
    SCRATCH_BYTES_MAX = 67108864        # of all tasks of a target

# ---- PDUs ------------------------------------------------------------------------------------------------------------

cdef uint32_t max_cmd_sn(Session* session) noexcept nogil:
    # RFC 7143 4.2.2.1: never told backwards but for a closed window, which an initiator may ignore: what was told once
    # may be used.
    cdef uint32_t room
    cdef uint32_t answer
    if session.target.holding:
        return session.exp_cmd_sn - 1
    room = session.queue_depth - session.tasks_unanswered if session.tasks_unanswered < session.queue_depth else 0
    answer = session.exp_cmd_sn + room - 1
    if sn_lt(answer, session.max_cmd_sn_told):
        return session.max_cmd_sn_told
    session.max_cmd_sn_told = answer
    return answer


cdef void session_put_sn(Session* session, uint8_t* bhs, bint takes_stat_sn) noexcept nogil:
    put_be32(bhs + 24, session.stat_sn)
    if takes_stat_sn:
        session.stat_sn += 1
    put_be32(bhs + 28, session.exp_cmd_sn)
    put_be32(bhs + 32, max_cmd_sn(session))


cdef TxPdu* session_tx(Session* session, uint8_t opcode, uint8_t flags, uint32_t itt) noexcept nogil:
    # NULL: the connection is closed (or closes because so much waits to be sent that no memory is left).
    cdef TxPdu* pdu = conn_tx(&session.conn)
    if pdu == NULL:
        if not session.conn.close_after_flush:
            conn_close(&session.conn, E_NOMEM)
        return NULL
    pdu.header[0] = opcode
    pdu.header[1] = flags
    put_be32(pdu.header + 16, itt)
    return pdu


cdef void session_reject(Session* session, const uint8_t* bhs, uint8_t reason) noexcept nogil:
    cdef TxPdu* pdu = session_tx(session, OP_REJECT, FLAG_FINAL, TAG_NONE)
    session.target.stats.rejects += 1
    if pdu == NULL:
        return
    pdu.header[2] = reason
    session_put_sn(session, pdu.header, True)
    memcpy(pdu.inline_data, bhs, BHS_BYTES)
    pdu.data = pdu.inline_data
    conn_tx_queue(&session.conn, pdu, BHS_BYTES)


cdef int session_async(Session* session, uint8_t event, uint16_t p1, uint16_t p2, uint16_t p3) noexcept nogil:
    cdef TxPdu* pdu = session_tx(session, OP_ASYNC_MESSAGE, FLAG_FINAL, TAG_NONE)
    if pdu == NULL:
        return E_CLOSED
    session_put_sn(session, pdu.header, True)
    pdu.header[36] = event
    put_be16(pdu.header + 38, p1)
    put_be16(pdu.header + 40, p2)
    put_be16(pdu.header + 42, p3)
    conn_tx_queue(&session.conn, pdu, 0)
    return OK


# ---- memory for data -------------------------------------------------------------------------------------------------

cdef bint memory_for(const Session* session, uint64_t bytes) noexcept nogil:
    cdef const BufferPool* pool = &session.target.loop.buffers
    cdef uint64_t allowed_bytes = session.target.session_bytes_max
    cdef uint64_t free_bytes = 0
    if session.memory_bytes == 0 or session.target.dropping:
        return True                     # a drain waits for what is begun, and nothing else comes to begin
    if pool.limit_bytes > pool.taken_bytes:
        free_bytes = pool.limit_bytes - pool.taken_bytes
    if allowed_bytes > free_bytes // 4:
        allowed_bytes = free_bytes // 4
    return session.memory_bytes + bytes <= allowed_bytes


cdef void memory_take(Session* session, uint64_t bytes) noexcept nogil:
    session.memory_bytes += bytes


cdef void memory_give(Session* session, uint64_t bytes) noexcept nogil:
    invariant(bytes <= session.memory_bytes, b"a session gives back no more memory than it took")
    session.memory_bytes -= bytes
    if session.memory_head != NULL:
        loop_defer(session.target.loop, &session.memory_work)


cdef void memory_wait(Task* task, uint64_t bytes, task_fn ready) noexcept nogil:
    cdef Session* session = task.session
    invariant(task.memory_ready == NULL, b"a task waits for memory once at a time")
    task.memory_ready = ready
    task.memory_wanted_bytes = bytes
    task.memory_next = NULL
    if session.memory_tail != NULL:
        session.memory_tail.memory_next = task
    else:
        session.memory_head = task
    session.memory_tail = task


cdef void memory_leave(Task* task) noexcept nogil:
    cdef Session* session = task.session
    cdef Task* before = NULL
    cdef Task* item = session.memory_head
    if task.memory_ready == NULL:
        return
    while item != task:
        before = item
        item = item.memory_next
    if before != NULL:
        before.memory_next = task.memory_next
    else:
        session.memory_head = task.memory_next
    if session.memory_tail == task:
        session.memory_tail = before
    task.memory_next = NULL
    task.memory_ready = NULL


cdef Task* memory_first(const Session* session) noexcept nogil:
    # While the target drains, only what the device has begun goes on.
    cdef Task* task = session.memory_head
    while task != NULL and session.target.dropping and not task.device_begun:
        task = task.memory_next
    return task


cdef void memory_run(void* owner) noexcept nogil:
    cdef Session* session = <Session*>owner
    cdef Task* task = memory_first(session)
    cdef task_fn ready
    while task != NULL and memory_for(session, task.memory_wanted_bytes):
        ready = task.memory_ready
        memory_leave(task)
        ready(task)
        task = memory_first(session)


# ---- making and ending -----------------------------------------------------------------------------------------------

cdef void target_touch(Target* target) noexcept nogil:
    if target.sweep_wanted:
        loop_defer(target.loop, &target.sweep_work)


cdef void loop_touch(Loop* loop) noexcept nogil:
    cdef Target* target = <Target*>loop.targets
    while target != NULL:
        target_touch(target)
        target = target.next_with_sessions


cdef inline void make(Part* part) noexcept nogil:
    part.made = True
    part.request.owner = part
    part.request.pinned_slot = -1


cdef void part_make(Part* part) noexcept nogil:
    memset(&part.request, 0, sizeof(Request))
    make(part)


cdef Task* task_new(Session* session, const uint8_t* bhs) noexcept nogil:
    cdef Task* task = <Task*>slab_get_head(&session.task_slab, <size_t>&(<Task*>NULL).parts[1].request)
    cdef int i
    if task == NULL:
        return NULL
    task.session = session
    memcpy(task.bhs, bhs, BHS_BYTES)
    task.itt = get_be32(bhs + 16)
    task.cmd_sn = get_be32(bhs + 24)
    task.immediate = (bhs[0] & OP_IMMEDIATE) != 0
    task.begun_ns = session.target.loop.now_ns
    for i in range(PARTS):
        task.parts[i].task = task
    make(&task.parts[0])
    task.next = session.tasks
    if session.tasks != NULL:
        session.tasks.prev = task
    session.tasks = task
    session.tasks_open += 1
    session.tasks_unanswered += 1
    session.target.stats.tasks_open += 1
    if bhs[0] & 0x3F == OP_SCSI_COMMAND:
        task.bucket_next = session.buckets[task.itt % BUCKETS]
        session.buckets[task.itt % BUCKETS] = task
    return task


cdef Task* task_find(Session* session, uint32_t itt) noexcept nogil:
    cdef Task* task = session.buckets[itt % BUCKETS]
    while task != NULL and (task.itt != itt or task.aborted or task.state == TASK_ANSWERED):
        task = task.bucket_next
    return task


cdef void task_queue(Task* task) noexcept nogil:
    cdef Task** link = &task.session.waiting_head
    task.state = TASK_WAITING
    while link[0] != NULL and sn_lt(link[0].cmd_sn, task.cmd_sn):
        link = &link[0].queue_next
    task.queue_next = link[0]
    link[0] = task


cdef void unlink_bucket(Task* task) noexcept nogil:
    cdef Task** link = &task.session.buckets[task.itt % BUCKETS]
    while link[0] != NULL and link[0] != task:
        link = &link[0].bucket_next
    if link[0] == task:
        link[0] = task.bucket_next


cdef void unlink_queue(Task** head, Task** tail, Task* task) noexcept nogil:
    cdef Task* before = NULL
    cdef Task* item = head[0]
    while item != NULL and item != task:
        before = item
        item = item.queue_next
    if item == NULL:
        return
    if before != NULL:
        before.queue_next = task.queue_next
    else:
        head[0] = task.queue_next
    if tail != NULL and tail[0] == task:
        tail[0] = before
    task.queue_next = NULL


cdef void unlink_send(Task* task) noexcept nogil:
    cdef Session* session = task.session
    cdef Task* before = NULL
    cdef Task* item = session.send_head
    while item != NULL and item != task:
        before = item
        item = item.send_next
    if item == NULL:
        return
    if before != NULL:
        before.send_next = task.send_next
    else:
        session.send_head = task.send_next
    if session.send_tail == task:
        session.send_tail = before
    task.send_next = NULL
    task.sending = False


cdef inline void leave_compare(Task* task) noexcept nogil:
    cdef Session* session = task.session
    if task.compare_queued:
        unlink_queue(&session.compare_head, &session.compare_tail, task)
        task.compare_queued = False
    if session.compare_owner == task:
        session.compare_owner = NULL
        if session.compare_head != NULL:
            loop_defer(session.target.loop, &session.compare_work)


cdef inline void free_memory(Task* task) noexcept nogil:
    cdef Loop* loop = task.session.target.loop
    if task.gather_waiter.queued:
        pool_wait_cancel(&loop.buffers, &task.gather_waiter)
    if task.staging != NULL:
        pool_put(&loop.buffers, task.staging, task.staging_bytes)
        task.session.staged_bytes -= task.staging_bytes
        task.staging = NULL
    if task.gather != NULL:
        pool_put(&loop.buffers, task.gather, task.gather_bytes)
        task.gather = NULL
    if task.scratch != NULL:
        task.session.target.scratch_bytes -= task.scratch_bytes
        free(task.scratch)
        task.scratch = NULL


cdef void task_free(Task* task) noexcept nogil:
    cdef Session* session = task.session
    invariant(not task_busy(task), b"a task is freed that the device or the socket still has memory of")
    if session.rx_task == task:
        session.conn.rx.discard = True
        session.rx_task = NULL
    if task.kind == TASK_COMMAND:
        unlink_bucket(task)
    if task.state == TASK_WAITING:
        unlink_queue(&session.waiting_head, NULL, task)
    if task.sending:
        unlink_send(task)
    leave_compare(task)
    if task.claim.listed:
        guard_leave(task.device, &task.claim)
    if unlikely(task.copy != NULL):
        copy_free(task)
    if unlikely(task.memory_ready != NULL):
        memory_leave(task)
    if task.memory_bytes > 0:
        memory_give(session, task.memory_bytes)
    if task.in_set:
        set_leave(task)
    free_memory(task)
    if task.prev != NULL:
        task.prev.next = task.next
    else:
        session.tasks = task.next
    if task.next != NULL:
        task.next.prev = task.prev
    session.tasks_open -= 1
    if task.state != TASK_ANSWERED:
        session.tasks_unanswered -= 1
    session.target.stats.tasks_open -= 1
    if task.aborted:
        loop_touch(session.target.loop)         # who waits may be of another target with the same device
    else:
        target_touch(session.target)
    slab_put(&session.task_slab, task)


cdef void set_leave(Task* task) noexcept nogil:
    # The command ends for the order of its task set; the sweep begins what waited for it.
    cdef Session* session = task.session
    if not task.in_set:
        return
    task.in_set = False
    if task.attribute == ATTRIBUTE_ORDERED:
        session.ordered_open -= 1
    if task.dormant:
        task.dormant = False
        session.dormant -= 1
    if session.dormant > 0:
        session.target.sweep_wanted = True
        target_touch(session.target)


cdef bint scratch_take(Task* task, uint64_t bytes) noexcept nogil:
    cdef Target* target = task.session.target
    invariant(task.scratch == NULL, b"a task has one piece of scratch memory")
    if target.scratch_bytes + bytes > SCRATCH_BYTES_MAX:
        return False
    task.scratch = <uint8_t*>malloc(bytes)
    if task.scratch == NULL:
        return False
    task.scratch_bytes = bytes
    target.scratch_bytes += bytes
    return True


cdef void copy_free(Task* task) noexcept nogil:
    # A copy that ends with its task before it has told how it went was given up.
    cdef CopyJob* job = task.copy
    if job == NULL:
        return
    if job.record != NULL and job.record.state == COPY_RUNNING:
        job.record.used = False
    task.copy = NULL
    task.session.target.copies_open -= 1
    free(job)


cdef bint task_busy(const Task* task) noexcept nogil:
    cdef int i
    for i in range(PARTS):
        if task.parts[i].state == PART_SUBMITTED or task.parts[i].pdus_open > 0:
            return True
    return False


cdef bint task_at_device(const Task* task) noexcept nogil:
    cdef int i
    for i in range(PARTS):
        if task.parts[i].state == PART_SUBMITTED:
            return True
    return False


cdef void part_release(Part* part) noexcept nogil:
    if part.state != PART_IDLE and part.request.device != NULL:
        part.request.device.ops.release(part.request.device, &part.request)
    part.state = PART_IDLE
    if part.memory_bytes > 0:
        memory_give(part.task.session, part.memory_bytes)
        part.memory_bytes = 0


cdef inline bint part_is_placed(const Part* part) noexcept nogil:
    # It has, or waits for, a place at the device, and was not submitted.
    if part.state == PART_GUARDED:
        return part.request.op == REQUEST_WRITE
    return part.state == PART_PLACING or part.state == PART_PLACED


cdef void task_abort(Task* task) noexcept nogil:
    # What the device was not given yet is taken back; the rest is waited for (the parts' `done`).
    cdef Session* session = task.session
    cdef Part* part
    cdef int i
    if not task.aborted and task.state != TASK_ANSWERED:
        session.target.stats.aborted += 1
    if session.rx_task == task:
        session.conn.rx.discard = True
        session.rx_task = NULL
    if task.state == TASK_WAITING and session.conn.open:
        unlink_bucket(task)
        free_memory(task)
        task.kind = TASK_VOID           # its CmdSN is used up, also for what comes after it
        return
    task.aborted = True
    if task.sending:
        unlink_send(task)
    leave_compare(task)
    task.place = NULL
    task.place_waiting = False
    memory_leave(task)
    for i in range(PARTS):
        part = &task.parts[i]
        if part.state == PART_GUARDED:
            guard_leave(part.request.device, &part.guard)
        if part_is_placed(part):
            part.request.device.ops.abort(part.request.device, &part.request)
            part.state = PART_IDLE
        elif part.state == PART_GUARDED:
            part.state = PART_IDLE
        elif part.state == PART_SUBMITTED and part.request.op == REQUEST_COMMAND:
            if part.request.device.ops.forget != NULL:
                part.request.device.ops.forget(part.request.device, &part.request)
        elif part.state == PART_DONE and part.pdus_open == 0:
            part_release(part)
    if not task_busy(task):
        task_free(task)


# ---- the answer ------------------------------------------------------------------------------------------------------

cdef void task_fail(Task* task, uint32_t sense) noexcept nogil:
    # The first failure is the one that the host is told.
    cdef uint32_t key = sense >> 16
    if task.failed:
        return
    task.failed = True
    task.status = STATUS_CHECK_CONDITION
    task.sense_bytes = <uint16_t>scsi_sense(task.sense, sense, False, 0)
    if key == 2 or key == 3 or key == 4:
        task.session.target.stats.errors += 1


cdef void task_inform(Task* task, uint64_t information) noexcept nogil:
    # INFORMATION of the sense that task_fail has made: a block address, or the offset of the byte that differs.
    if task.sense_bytes > 0 and information <= <uint64_t>0xFFFFFFFF:
        task.sense[0] |= 0x80
        put_be32(task.sense + 3, <uint32_t>information)


cdef void task_fail_status(Task* task, uint8_t status) noexcept nogil:
    if task.failed:
        return
    task.failed = True
    task.status = status
    task.sense_bytes = 0


cdef bint task_data_expected(const Task* task) noexcept nogil:
    # RFC 7143 11.4.2: no response while a PDU with F is still to come for what was solicited or announced.
    return task.unsolicited_open or task.bursts_count > 0 or task.session.rx_task == task


cdef uint32_t task_residual(const Task* task, uint8_t* flags) noexcept nogil:
    # RFC 7143 11.4.5: against what the CDB means to move, or for a failed command what was moved.
    cdef uint64_t moved = task.total_bytes
    cdef uint64_t rest
    if task.failed:
        moved = task.received_bytes if task.wants_write else task.sent_bytes
        moved = moved if moved < task.expected_bytes else task.expected_bytes
    if moved == task.expected_bytes:
        flags[0] = 0
        return 0
    flags[0] = RESIDUAL_UNDERFLOW if moved < task.expected_bytes else RESIDUAL_OVERFLOW
    rest = task.expected_bytes - moved if moved < task.expected_bytes else moved - task.expected_bytes
    return <uint32_t>rest if rest < <uint64_t>0xFFFFFFFF else <uint32_t>0xFFFFFFFF


cdef void task_answer(Task* task) noexcept nogil:
    cdef Session* session = task.session
    cdef TxPdu* pdu
    cdef uint8_t flags
    cdef uint32_t residual = task_residual(task, &flags)
    cdef uint32_t data_bytes = 0
    invariant(task.state == TASK_BEGUN, b"a task is answered once")
    pdu = session_tx(session, OP_SCSI_RESPONSE, FLAG_FINAL | flags, task.itt)
    task.state = TASK_ANSWERED
    session.tasks_unanswered -= 1
    if task.device != NULL and task.device.descriptor_sense:
        task.sense_bytes = <uint16_t>scsi_sense_describe(task.sense, task.sense_bytes)
    if pdu != NULL:
        pdu.header[3] = task.status
        session_put_sn(session, pdu.header, True)
        put_be32(pdu.header + 36, task.data_sn)
        put_be32(pdu.header + 44, residual)
        if task.sense_bytes > 0:
            put_be16(pdu.inline_data, task.sense_bytes)
            memcpy(pdu.inline_data + 2, task.sense, task.sense_bytes)
            pdu.data = pdu.inline_data
            data_bytes = 2 + task.sense_bytes
        conn_tx_queue(&session.conn, pdu, data_bytes)
    task_answered(task)


cdef void task_answered(Task* task) noexcept nogil:
    cdef TargetStats* stats = &task.session.target.stats
    cdef ns_t taken_ns = task.session.target.loop.now_ns - task.begun_ns
    if unlikely(task.memory_ready != NULL):
        memory_leave(task)
    set_leave(task)
    task.session.commands_done += 1
    stats.commands += 1
    task.session.target.loop.host_ns = task.session.target.loop.now_ns
    if <uint64_t>taken_ns > stats.longest_ns:
        stats.longest_ns = <uint64_t>taken_ns
    if task.command.cls == SCSI_READ:
        stats.read_commands += 1
        stats.read_bytes += task.sent_bytes
        stats_record(&stats.read_ns, taken_ns)
    elif task.command.cls == SCSI_WRITE:
        stats.write_commands += 1
        if not task.failed:
            stats.write_bytes += task.take_bytes
        stats_record(&stats.write_ns, taken_ns)
    if not task_busy(task):
        task_free(task)
