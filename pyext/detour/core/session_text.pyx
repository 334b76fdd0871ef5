# Text in full feature phase: one exchange of a session at a time, over as many PDUs as it takes (RFC 7143 7.2, 11.10).
#
#   request pieces (C)  ->  empty responses with a TTT   |  the whole request goes to Python (EVENT_TEXT_REQUEST)
#   answer in pieces (C) ->  empty requests with that TTT |  F answers F: the exchange is over; else the next request
#                                                            with the TTT told goes on with the same exchange
# A request without TTT begins anew and drops what was. What does not fit the exchange is rejected and ends it.
# Owns: the text that is under way, malloc'ed: at most REQUEST_BYTES_MAX in, ANSWER_BYTES_MAX out.
# Cost: of no concern. At most one question of a session is at Python.
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from detour.core.conn cimport conn_close, conn_tx_queue
from detour.core.endian cimport get_be32, put_be32
from detour.core.iscsi cimport *
from detour.core.pool cimport pool_get, pool_put
from detour.core.reactor cimport EVENT_TEXT_REQUEST, event_new, event_post

cdef enum:
    FLAG_CONTINUE = 0x40
    REQUEST_BYTES_MAX = 65536
    ANSWER_BYTES_MAX = 1048576
    PIECE_BYTES_MAX = 65536             # of one response, whatever the initiator takes

cdef struct EchoHead:
    Loop* loop
    uint64_t buffer_bytes


cdef void on_echo_sent(void* owner, uint64_t tag) noexcept nogil:
    cdef EchoHead head = (<EchoHead*>owner)[0]
    pool_put(&head.loop.buffers, <uint8_t*>owner, head.buffer_bytes)


cdef void send_buffer(Session* session, TxPdu* pdu, uint8_t* buffer, uint32_t buffer_bytes,
                      uint32_t data_bytes) noexcept nogil:
    cdef EchoHead* head = <EchoHead*>buffer
    head.loop = session.target.loop
    head.buffer_bytes = buffer_bytes
    pdu.data = buffer + ECHO_HEAD_BYTES
    pdu.sent = on_echo_sent
    pdu.owner = buffer
    conn_tx_queue(&session.conn, pdu, data_bytes)


# ---- the request -----------------------------------------------------------------------------------------------------

cdef void text_free(Session* session) noexcept nogil:
    # An answer of Python that is still to come finds no exchange and is dropped.
    free(session.text.data)
    memset(&session.text, 0, sizeof(TextExchange))
    session.text.ttt = TAG_NONE


cdef void give_up(Session* session, const uint8_t* bhs, uint8_t reason) noexcept nogil:
    session_reject(session, bhs, reason)
    text_free(session)


cdef bint append(TextExchange* text, const uint8_t* data, uint32_t data_bytes) noexcept nogil:
    cdef uint8_t* grown
    if data_bytes == 0:
        return True
    if text.data_bytes + data_bytes > REQUEST_BYTES_MAX:
        return False
    grown = <uint8_t*>realloc(text.data, text.data_bytes + data_bytes)
    if grown == NULL:
        return False
    memcpy(grown + text.data_bytes, data, data_bytes)
    text.data = grown
    text.data_bytes += data_bytes
    return True


cdef void text_request(Session* session, const uint8_t* bhs, const uint8_t* data, uint32_t data_bytes) noexcept nogil:
    cdef TextExchange* text = &session.text
    cdef uint32_t ttt = get_be32(bhs + 20)
    cdef bint more = (bhs[1] & FLAG_CONTINUE) != 0
    if text.open and text.asked:
        session_reject(session, bhs, REJECT_PROTOCOL)       # its answer is still to come
        return
    if ttt == TAG_NONE:
        text_free(session)
        text.open = True
    elif not text.open or ttt != text.ttt or get_be32(bhs + 16) != get_be32(text.bhs + 16):
        give_up(session, bhs, REJECT_INVALID_FIELD)
        return
    memcpy(text.bhs, bhs, BHS_BYTES)
    text.final = (bhs[1] & FLAG_FINAL) != 0
    text.ttt = TAG_NONE
    if more and text.final:
        give_up(session, bhs, REJECT_PROTOCOL)
    elif text.answering:
        if more or data_bytes > 0:
            give_up(session, bhs, REJECT_PROTOCOL)          # new keys amid an answer
        else:
            send_piece(session)
    elif not append(text, data, data_bytes):
        give_up(session, bhs, REJECT_LONG_OPERATION)
    elif more:
        respond(session, 0, NULL, 0)
    else:
        ask(session)


cdef void ask(Session* session) noexcept nogil:
    cdef TextExchange* text = &session.text
    cdef Command* event = event_new(session.target.loop, EVENT_TEXT_REQUEST, session.id)
    if event == NULL:
        conn_close(&session.conn, E_NOMEM)
        return
    event.results[0] = get_be32(text.bhs + 16)
    event.data = text.data
    event.data_bytes = text.data_bytes
    text.data = NULL
    text.data_bytes = 0
    text.asked = True
    event_post(session.target.loop, event)


# ---- the answer ------------------------------------------------------------------------------------------------------

cdef bint awaits(const Session* session, uint32_t itt) noexcept nogil:
    return session.conn.open and session.text.asked and get_be32(session.text.bhs + 16) == itt


cdef int text_answer(Session* session, uint32_t itt, const uint8_t* data, uint64_t data_bytes,
                     uint32_t send_data_bytes_max) noexcept nogil:
    cdef TextExchange* text = &session.text
    if data_bytes > ANSWER_BYTES_MAX:
        return E_RANGE
    if not awaits(session, itt):
        return E_CLOSED
    text.data = <uint8_t*>malloc(data_bytes + 1)
    if text.data == NULL:
        return E_NOMEM
    memcpy(text.data, data, data_bytes)
    text.data_bytes = <uint32_t>data_bytes
    text.sent_bytes = 0
    text.asked = False
    text.answering = True
    if send_data_bytes_max != 0:
        text.send_data_bytes_max = send_data_bytes_max
    return send_piece(session)


cdef int text_reject(Session* session, uint32_t itt, uint8_t reason) noexcept nogil:
    cdef uint8_t bhs[48]
    if not awaits(session, itt):
        return E_CLOSED
    memcpy(bhs, session.text.bhs, BHS_BYTES)
    give_up(session, bhs, reason)
    return OK


cdef int send_piece(Session* session) noexcept nogil:
    cdef TextExchange* text = &session.text
    cdef uint32_t length_bytes = text.data_bytes - text.sent_bytes
    cdef const uint8_t* start = text.data + text.sent_bytes
    cdef int status
    if length_bytes > session.conn.params.send_data_bytes_max:
        length_bytes = session.conn.params.send_data_bytes_max
    if length_bytes > PIECE_BYTES_MAX:
        length_bytes = PIECE_BYTES_MAX
    text.sent_bytes += length_bytes
    if text.sent_bytes < text.data_bytes:
        return respond(session, FLAG_CONTINUE, start, length_bytes)
    if not text.final:
        status = respond(session, 0, start, length_bytes)
        free(text.data)
        text.data = NULL
        text.data_bytes = 0
        text.answering = False
        return status
    status = respond(session, FLAG_FINAL, start, length_bytes)
    if text.send_data_bytes_max != 0:
        session.conn.params.send_data_bytes_max = text.send_data_bytes_max
    text_free(session)
    return status


cdef int respond(Session* session, uint8_t flags, const uint8_t* data, uint32_t data_bytes) noexcept nogil:
    # Without F the response carries the TTT that the next request must have.
    cdef TextExchange* text = &session.text
    cdef uint32_t buffer_bytes = data_bytes + ECHO_HEAD_BYTES
    cdef uint8_t* buffer = NULL
    cdef TxPdu* pdu
    if data_bytes > 0:
        buffer = pool_get(&session.target.loop.buffers, buffer_bytes)
        if buffer == NULL:
            give_up(session, text.bhs, REJECT_LONG_OPERATION)
            return E_NOMEM
    pdu = session_tx(session, OP_TEXT_RESPONSE, flags, get_be32(text.bhs + 16))
    if pdu == NULL:
        if buffer != NULL:
            pool_put(&session.target.loop.buffers, buffer, buffer_bytes)
        return E_CLOSED
    if not flags & FLAG_FINAL:
        text.ttt = session.next_ttt
        session.next_ttt = 0 if session.next_ttt == TAG_NONE - 1 else session.next_ttt + 1
    memcpy(pdu.header + 8, text.bhs + 8, 8)
    put_be32(pdu.header + 20, text.ttt)
    session_put_sn(session, pdu.header, True)
    if buffer == NULL:
        conn_tx_queue(&session.conn, pdu, 0)
        return OK
    memcpy(buffer + ECHO_HEAD_BYTES, data, data_bytes)
    send_buffer(session, pdu, buffer, buffer_bytes, data_bytes)
    return OK
