# PDU framing: a receive machine that may stop after any byte, and the parts of a PDU to send.
#
# Owns nothing: the caller moves the bytes and says where the data segment goes. Only `pdu_rx_advance` and
# `pdu_rx_want` (for the one edge HEADER_READY -> DATA, which needs the caller's place first) change the state.
#
#   BHS -> AHS -> HEADER_DIGEST -> HEADER_READY -> DATA -> PAD -> DATA_DIGEST -> BHS
#     (parts of no bytes are passed over; RX_HEADER is told at HEADER_READY, RX_PDU on the way back to BHS)
#
# Invariants: rx.filled is below the size of the current part; no part is longer than its memory (AHS at most 1020
# bytes, data at most data_bytes_max); a data segment of no bytes has neither padding nor digest (RFC 7143, 11.2.3).
# Cost: one call of want and one of advance for each part, one CRC pass over data while it is warm.
from libc.string cimport memset

from detour.core.crc32c cimport crc32c_update
from detour.core.debug cimport invariant, likely, unlikely
from detour.core.endian cimport get_be24, put_be24
from detour.core.iscsi cimport BHS_BYTES, DIGEST_BYTES
from detour.core.types cimport *

cdef extern from *:
    """
    /* RFC 7143, 13.1: the digest is sent with its least significant byte first (RFC 3720, B.4). */
    static inline uint32_t detour_digest_get(const uint8_t *p) {
        return (uint32_t)p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24); }
    static inline void detour_digest_put(uint8_t *p, uint32_t v) {
        p[0] = (uint8_t)v; p[1] = (uint8_t)(v >> 8); p[2] = (uint8_t)(v >> 16); p[3] = (uint8_t)(v >> 24); }
    """
    uint32_t detour_digest_get(const uint8_t* p) noexcept nogil
    void detour_digest_put(uint8_t* p, uint32_t v) noexcept nogil


cdef void pdu_rx_init(PduRx* rx, uint32_t data_bytes_max, bint header_digest, bint data_digest) noexcept nogil:
    memset(rx, 0, sizeof(PduRx))
    rx.data_bytes_max = data_bytes_max
    rx.header_digest = header_digest
    rx.data_digest = data_digest
    rx.state = RX_STATE_BHS


cdef inline void data_want(PduRx* rx, uint8_t** where, uint32_t* length_bytes) noexcept nogil:
    cdef uint32_t rest = rx.data_bytes - rx.filled
    if rx.discard or rx.data == NULL:
        where[0] = rx.scratch
        length_bytes[0] = rest if rest < sizeof(rx.scratch) else <uint32_t>sizeof(rx.scratch)
    else:
        where[0] = rx.data + rx.filled
        length_bytes[0] = rest


cdef void pdu_rx_want(PduRx* rx, uint8_t** where, uint32_t* length_bytes) noexcept nogil:
    if rx.state == RX_STATE_HEADER_READY and rx.data_bytes != 0:
        rx.state = RX_STATE_DATA
    if rx.state == RX_STATE_DATA:
        data_want(rx, where, length_bytes)
    elif rx.state == RX_STATE_BHS:
        where[0] = rx.header + rx.filled
        length_bytes[0] = BHS_BYTES - rx.filled
    elif rx.state == RX_STATE_AHS:
        where[0] = rx.header + BHS_BYTES + rx.filled
        length_bytes[0] = rx.ahs_bytes - rx.filled
    elif rx.state == RX_STATE_HEADER_DIGEST:
        where[0] = rx.tail + rx.filled
        length_bytes[0] = DIGEST_BYTES - rx.filled
    elif rx.state == RX_STATE_PAD:
        where[0] = rx.tail + rx.filled
        length_bytes[0] = rx.pad_bytes - rx.filled
    elif rx.state == RX_STATE_DATA_DIGEST:
        where[0] = rx.tail + rx.filled
        length_bytes[0] = DIGEST_BYTES - rx.filled
    else:
        where[0] = rx.scratch
        length_bytes[0] = 0


cdef inline int header_ready(PduRx* rx) noexcept nogil:
    rx.state = RX_STATE_HEADER_READY
    rx.filled = 0
    return RX_HEADER


cdef inline int header_digest_next(PduRx* rx) noexcept nogil:
    rx.filled = 0
    if not rx.header_digest:
        return header_ready(rx)
    rx.state = RX_STATE_HEADER_DIGEST
    return RX_MORE


cdef inline int bhs_done(PduRx* rx) noexcept nogil:
    rx.ahs_bytes = <uint32_t>rx.header[4] * 4
    rx.data_bytes = get_be24(rx.header + 5)
    rx.pad_bytes = (0 - rx.data_bytes) & 3
    rx.data = NULL
    rx.discard = False
    rx.data_digest_bad = False
    rx.crc = 0
    if unlikely(rx.data_bytes > rx.data_bytes_max):
        return E_PROTOCOL
    if likely(rx.ahs_bytes == 0):
        return header_digest_next(rx)
    rx.state = RX_STATE_AHS
    rx.filled = 0
    return RX_MORE


cdef inline int pdu_done(PduRx* rx) noexcept nogil:
    rx.state = RX_STATE_BHS
    rx.filled = 0
    return RX_PDU


cdef inline int data_digest_next(PduRx* rx) noexcept nogil:
    rx.filled = 0
    if not rx.data_digest:
        return pdu_done(rx)
    rx.state = RX_STATE_DATA_DIGEST
    return RX_MORE


cdef inline int data_advance(PduRx* rx, uint32_t length_bytes) noexcept nogil:
    if rx.data_digest:
        if rx.discard or rx.data == NULL:
            rx.crc = crc32c_update(rx.crc, rx.scratch, length_bytes)
        else:
            rx.crc = crc32c_update(rx.crc, rx.data + rx.filled, length_bytes)
    rx.filled += length_bytes
    invariant(rx.filled <= rx.data_bytes, b"no more data is taken than the header told")
    if rx.filled < rx.data_bytes:
        return RX_MORE
    if rx.pad_bytes == 0:
        return data_digest_next(rx)
    rx.state = RX_STATE_PAD
    rx.filled = 0
    return RX_MORE


cdef inline int tail_done(PduRx* rx) noexcept nogil:
    cdef uint32_t crc
    if rx.state == RX_STATE_PAD:
        if rx.data_digest:
            rx.crc = crc32c_update(rx.crc, rx.tail, rx.pad_bytes)
        return data_digest_next(rx)
    if rx.state == RX_STATE_DATA_DIGEST:
        rx.data_digest_bad = detour_digest_get(rx.tail) != rx.crc
        return pdu_done(rx)
    crc = crc32c_update(0, rx.header, BHS_BYTES + rx.ahs_bytes)
    if unlikely(detour_digest_get(rx.tail) != crc):
        return E_DIGEST
    return header_ready(rx)


cdef int pdu_rx_advance(PduRx* rx, uint32_t length_bytes) noexcept nogil:
    cdef uint32_t part_bytes
    if rx.state == RX_STATE_HEADER_READY:
        if rx.data_bytes == 0:
            return pdu_done(rx)
        rx.state = RX_STATE_DATA
    if rx.state == RX_STATE_DATA:
        return data_advance(rx, length_bytes)
    if rx.state == RX_STATE_BHS:
        part_bytes = BHS_BYTES
    elif rx.state == RX_STATE_AHS:
        part_bytes = rx.ahs_bytes
    elif rx.state == RX_STATE_PAD:
        part_bytes = rx.pad_bytes
    else:
        part_bytes = DIGEST_BYTES
    rx.filled += length_bytes
    invariant(rx.filled <= part_bytes, b"a part takes no more bytes than it has")
    if rx.filled < part_bytes:
        return RX_MORE
    if rx.state == RX_STATE_BHS:
        return bhs_done(rx)
    if rx.state == RX_STATE_AHS:
        return header_digest_next(rx)
    return tail_done(rx)


cdef uint32_t pdu_tx_header(uint8_t* bhs, uint32_t ahs_bytes, uint32_t data_bytes, bint header_digest) noexcept nogil:
    cdef uint32_t header_bytes = BHS_BYTES + ahs_bytes
    invariant(ahs_bytes % 4 == 0 and ahs_bytes <= 1020, b"an AHS is whole words")
    bhs[4] = <uint8_t>(ahs_bytes // 4)
    put_be24(bhs + 5, data_bytes)
    if not header_digest:
        return header_bytes
    detour_digest_put(bhs + header_bytes, crc32c_update(0, bhs, header_bytes))
    return header_bytes + DIGEST_BYTES


cdef uint32_t pdu_tx_trailer(uint8_t* trailer, const uint8_t* data, uint32_t data_bytes,
                             bint data_digest) noexcept nogil:
    cdef uint32_t pad_bytes = (0 - data_bytes) & 3
    cdef uint32_t crc
    if data_bytes == 0:
        return 0
    trailer[0] = 0
    trailer[1] = 0
    trailer[2] = 0
    if not data_digest:
        return pad_bytes
    crc = crc32c_update(crc32c_update(0, data, data_bytes), trailer, pad_bytes)
    detour_digest_put(trailer + pad_bytes, crc)
    return pad_bytes + DIGEST_BYTES
