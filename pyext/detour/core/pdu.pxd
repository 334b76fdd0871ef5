# PDU framing for both roles. No sockets, no roles, no allocation: the caller moves the bytes.
#
# Receive: a machine that may stop after any byte.
#     while True:
#         pdu_rx_want(rx, &where, &length)      where the next bytes go and how many at most
#         (put n of them there, by recv or memcpy)
#         event = pdu_rx_advance(rx, n)
#   RX_HEADER: basic header, AHS and header digest are there and right, lengths are within limits. The caller must set
#     rx.data (room for rx.data_bytes, data_bytes may be 0) before it goes on; or set rx.discard to let the data pass.
#   RX_PDU: data, padding and data digest are there. rx.data_digest_bad tells of a bad data digest (the caller decides).
#   An error (negative Status) ends the connection: E_PROTOCOL (length over the limit), E_DIGEST (header).
# A PDU without data gives RX_HEADER first and then, after pdu_rx_advance(rx, 0), RX_PDU.
#
#   HEADER -> AHS -> HEADER_DIGEST -> (RX_HEADER) -> DATA -> PAD -> DATA_DIGEST -> (RX_PDU) -> HEADER
from detour.core.types cimport *

cdef enum RxState:
    RX_STATE_BHS = 0
    RX_STATE_AHS = 1
    RX_STATE_HEADER_DIGEST = 2
    RX_STATE_HEADER_READY = 3   # RX_HEADER has been told
    RX_STATE_DATA = 4
    RX_STATE_PAD = 5
    RX_STATE_DATA_DIGEST = 6

cdef enum RxEvent:
    RX_MORE = 0
    RX_HEADER = 1
    RX_PDU = 2

cdef struct PduRx:
    uint8_t header[48 + 1020]   # BHS and AHS
    uint32_t ahs_bytes
    uint8_t* data               # where the data segment goes; set by the caller at RX_HEADER
    uint32_t data_bytes         # DataSegmentLength
    bint discard                # data is read and thrown away (through a small scratch area)
    bint data_digest_bad
    bint header_digest          # negotiated
    bint data_digest
    uint32_t data_bytes_max     # own MaxRecvDataSegmentLength
    RxState state
    uint32_t filled             # bytes of the current part
    uint32_t pad_bytes
    uint32_t crc
    uint8_t tail[8]             # padding and digests as they come
    uint8_t scratch[4096]       # for discarded data

cdef void pdu_rx_init(PduRx* rx, uint32_t data_bytes_max, bint header_digest, bint data_digest) noexcept nogil
cdef void pdu_rx_want(PduRx* rx, uint8_t** where, uint32_t* length_bytes) noexcept nogil
cdef int pdu_rx_advance(PduRx* rx, uint32_t length_bytes) noexcept nogil     # RxEvent or a negative Status

# Send: header (with digest) and trailer (padding, data digest) of one PDU are built into caller memory.
# Writes DataSegmentLength and TotalAHSLength into the BHS; answers bytes of header part (BHS + AHS + digest).
cdef uint32_t pdu_tx_header(uint8_t* bhs, uint32_t ahs_bytes, uint32_t data_bytes, bint header_digest) noexcept nogil
# Padding and data digest behind the data; `trailer` has room for 7 bytes; answers their number (0..7).
cdef uint32_t pdu_tx_trailer(uint8_t* trailer, const uint8_t* data, uint32_t data_bytes,
                             bint data_digest) noexcept nogil

# Serial number arithmetic of RFC 1982 on 32 bits (section 4.2.2.1)
cdef inline bint sn_lt(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(a - b) < 0
cdef inline bint sn_le(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(a - b) <= 0
