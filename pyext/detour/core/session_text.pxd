# Target side: PDUs with data of a session's own: echoes, and Text Requests and Responses (RFC 7143 11.10, 11.11).
from detour.core.task cimport *
from detour.core.types cimport *

cdef enum:
    ECHO_HEAD_BYTES = 32                # of a pool buffer whose data are sent: where it goes back to

# Queues a PDU with the data behind the head of a pool buffer, which goes back when they have left.
cdef void send_buffer(Session* session, TxPdu* pdu, uint8_t* buffer, uint32_t buffer_bytes,
                      uint32_t data_bytes) noexcept nogil
cdef void text_request(Session* session, const uint8_t* bhs, const uint8_t* data, uint32_t data_bytes) noexcept nogil
# Python's answer to EVENT_TEXT_REQUEST: text, however long, and the MaxRecvDataSegmentLength that the initiator declared
# (0: none); or, with a reason, a Reject.
cdef int text_answer(Session* session, uint32_t itt, const uint8_t* data, uint64_t data_bytes,
                     uint32_t send_data_bytes_max) noexcept nogil
cdef int text_reject(Session* session, uint32_t itt, uint8_t reason) noexcept nogil
cdef void text_free(Session* session) noexcept nogil
