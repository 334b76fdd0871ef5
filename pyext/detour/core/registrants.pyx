# Who is registered at one device, as data: look-ups, and the forms of it on the wire and in a file.
#
# Owns: nothing; all functions work on the ReservationState and the bytes that they are given.
# Invariants: registrants are in the order of their registration, without gaps, each initiator port once; `holder` is an
# index below `count`, or HOLDER_ALL exactly for the types of all registrants, or HOLDER_NONE exactly for no reservation.
# What comes from the wire or from a file is checked before any of it counts.
# Cost: of no concern but for registrant_find, which compares ISIDs before names.
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

from detour.core.crc32c cimport crc32c_update
from detour.core.endian cimport get_be16, get_be32, get_be64, put_be16, put_be32, put_be48, put_be64
from detour.core.debug cimport invariant
from detour.core.types cimport *

cdef enum:
    PROTOCOL_ISCSI = 5
    TRANSPORT_ID_BODY_MIN = 20
    ISID_DIGITS = 12
    FULL_STATUS_HEADER_BYTES = 8
    FULL_STATUS_DESCRIPTOR_BYTES = 24
    DUMP_VERSION = 1
    DUMP_APTPL = 1
    DUMP_ALL_PORTS = 1

cdef packed struct DumpHeader:          # little-endian, as docs/formats.md has it
    char magic[8]
    uint32_t crc                        # CRC32C of all that follows
    uint32_t version
    uint32_t flags
    uint32_t kind
    int32_t holder
    uint32_t count

cdef packed struct DumpRegistrant:
    uint64_t key
    uint8_t isid[6]
    uint8_t flags
    uint8_t unused
    char initiator_name[INITIATOR_NAME_BYTES]


# ---- types and names -------------------------------------------------------------------------------------------------

cdef bint type_all(uint8_t kind) noexcept nogil:
    return kind == WRITE_EXCLUSIVE_ALL or kind == EXCLUSIVE_ACCESS_ALL


cdef bint type_registrants(uint8_t kind) noexcept nogil:
    return kind == WRITE_EXCLUSIVE_REGISTRANTS or kind == EXCLUSIVE_ACCESS_REGISTRANTS or type_all(kind)


cdef bint type_valid(uint8_t kind) noexcept nogil:
    return kind == WRITE_EXCLUSIVE or kind == EXCLUSIVE_ACCESS or type_registrants(kind)


cdef bint type_write_exclusive(uint8_t kind) noexcept nogil:
    return kind == WRITE_EXCLUSIVE or kind == WRITE_EXCLUSIVE_REGISTRANTS or kind == WRITE_EXCLUSIVE_ALL


cdef inline char lower(char letter) noexcept nogil:
    return <char>(letter + 32) if 65 <= letter <= 90 else letter


cdef bint names_equal(const char* one, const char* other) noexcept nogil:
    cdef int i
    for i in range(INITIATOR_NAME_BYTES):
        if lower(one[i]) != lower(other[i]):
            return False
        if one[i] == 0:
            return True
    return True


# ---- the list --------------------------------------------------------------------------------------------------------

cdef int32_t registrant_find(const ReservationState* state, const char* initiator_name,
                             const uint8_t* isid) noexcept nogil:
    cdef uint32_t i
    for i in range(state.count):
        if memcmp(state.registrants[i].isid, isid, 6) == 0 and \
                names_equal(state.registrants[i].initiator_name, initiator_name):
            return <int32_t>i
    return -1


cdef int32_t registrant_add(ReservationState* state, const char* initiator_name, const uint8_t* isid,
                            uint64_t key) noexcept nogil:
    cdef Registrant* registrant
    cdef size_t length = strlen(initiator_name)
    invariant(length < INITIATOR_NAME_BYTES, b"an initiator name that is too long")
    if state.count == REGISTRANTS_MAX:
        return -1
    registrant = &state.registrants[state.count]
    memset(registrant, 0, sizeof(Registrant))       # no padding or rest of a name differs between equal states
    memcpy(registrant.initiator_name, initiator_name, length)
    memcpy(registrant.isid, isid, 6)
    registrant.key = key
    state.count += 1
    return <int32_t>(state.count - 1)


cdef void registrant_remove(ReservationState* state, int32_t index) noexcept nogil:
    # A reservation that the removed one held alone, or as the last of all registrants, ends with it.
    invariant(index >= 0 and <uint32_t>index < state.count, b"a registrant that is not there")
    state.count -= 1
    memmove(&state.registrants[index], &state.registrants[index + 1],
            (state.count - <uint32_t>index) * sizeof(Registrant))
    if state.holder == index or state.count == 0:
        state.type = 0
        state.holder = HOLDER_NONE
    elif state.holder > index:
        state.holder -= 1


cdef bint is_holder(const ReservationState* state, int32_t index) noexcept nogil:
    return index >= 0 and (state.holder == index or state.holder == HOLDER_ALL)


# ---- PERSISTENT RESERVE IN -------------------------------------------------------------------------------------------

cdef uint32_t put_keys(const ReservationState* state, uint8_t* out) noexcept nogil:
    cdef uint32_t i
    put_be32(out, state.generation)
    put_be32(out + 4, 8 * state.count)
    for i in range(state.count):
        put_be64(out + 8 + 8 * i, state.registrants[i].key)
    return 8 + 8 * state.count


cdef uint32_t put_reservation(const ReservationState* state, uint8_t* out) noexcept nogil:
    put_be32(out, state.generation)
    if state.type == 0:
        put_be32(out + 4, 0)
        return 8
    put_be32(out + 4, 16)
    memset(out + 8, 0, 16)
    if state.holder >= 0:
        put_be64(out + 8, state.registrants[state.holder].key)      # of all registrants: 0
    out[21] = state.type                                            # scope 0: logical unit
    return 24


cdef uint32_t put_capabilities(bint durable, bint active, uint8_t* out) noexcept nogil:
    put_be16(out, 8)
    out[2] = 0x1C | (0x01 if durable else 0)        # CRH, SIP_C, ATP_C, PTPL_C
    out[3] = 0x80 | (0x01 if active else 0)         # TMV, PTPL_A
    out[4] = 0xEA                                   # all six types
    out[5] = 0x01
    out[6] = 0
    out[7] = 0
    return 8


cdef uint32_t put_full_status(const ReservationState* state, uint8_t* out) noexcept nogil:
    cdef uint32_t at = FULL_STATUS_HEADER_BYTES, i, length
    cdef const Registrant* registrant
    for i in range(state.count):
        registrant = &state.registrants[i]
        memset(out + at, 0, FULL_STATUS_DESCRIPTOR_BYTES)
        put_be64(out + at, registrant.key)
        out[at + 12] = 0x02 if registrant.all_ports else 0
        if is_holder(state, <int32_t>i):
            out[at + 12] |= 0x01
            out[at + 13] = state.type
        put_be16(out + at + 18, TARGET_PORT)
        length = put_transport_id(registrant, out + at + FULL_STATUS_DESCRIPTOR_BYTES)
        put_be32(out + at + 20, length)
        at += FULL_STATUS_DESCRIPTOR_BYTES + length
    put_be32(out, state.generation)
    put_be32(out + 4, at - FULL_STATUS_HEADER_BYTES)
    return at


# ---- TransportIDs (SPC-4 7.6.4.6) ------------------------------------------------------------------------------------

cdef uint32_t put_transport_id(const Registrant* registrant, uint8_t* out) noexcept nogil:
    cdef uint32_t length = <uint32_t>strlen(registrant.initiator_name)
    cdef uint32_t i, body_bytes
    cdef const char* digits = b"0123456789abcdef"
    memset(out, 0, TRANSPORT_ID_BYTES_MAX)
    out[0] = 0x40 | PROTOCOL_ISCSI
    memcpy(out + 4, registrant.initiator_name, length)
    memcpy(out + 4 + length, b",i,0x", 5)
    length += 5
    for i in range(6):
        out[4 + length] = <uint8_t>digits[registrant.isid[i] >> 4]
        out[5 + length] = <uint8_t>digits[registrant.isid[i] & 0x0F]
        length += 2
    body_bytes = (length + 1 + 3) & ~<uint32_t>3
    if body_bytes < TRANSPORT_ID_BODY_MIN:
        body_bytes = TRANSPORT_ID_BODY_MIN
    put_be16(out + 2, <uint16_t>body_bytes)
    return 4 + body_bytes


cdef inline int digit_of(uint8_t letter) noexcept nogil:
    if 48 <= letter <= 57:
        return letter - 48
    if 97 <= letter <= 102:
        return letter - 87
    return letter - 55 if 65 <= letter <= 70 else -1


cdef bint get_isid(const uint8_t* text, uint32_t length, TransportId* out) noexcept nogil:
    # What follows the name in format 01b: ",i,0x" and the digits of the ISID.
    cdef uint64_t value = 0
    cdef uint32_t i
    if length <= 5 or length > 5 + ISID_DIGITS or memcmp(text, b",i,0x", 5) != 0:
        return False
    for i in range(5, length):
        if digit_of(text[i]) < 0:
            return False
        value = value << 4 | <uint64_t>digit_of(text[i])
    put_be48(out.isid, value)
    out.has_isid = True
    return True


cdef uint32_t get_transport_id(const uint8_t* data, uint32_t data_bytes, TransportId* out) noexcept nogil:
    cdef uint32_t body_bytes, length = 0, name_bytes = 0
    cdef const uint8_t* text = data + 4
    memset(out, 0, sizeof(TransportId))
    if data_bytes < 4 or data[0] & 0x3F != PROTOCOL_ISCSI or data[0] >> 6 > 1:
        return 0
    body_bytes = get_be16(data + 2)
    if body_bytes < TRANSPORT_ID_BODY_MIN or body_bytes % 4 != 0 or body_bytes > data_bytes - 4:
        return 0
    while length < body_bytes and text[length] != 0:
        length += 1
    if length == body_bytes:
        return 0                                    # the text has no end
    while name_bytes < length and text[name_bytes] != 44:           # a comma is no letter of iSCSI names
        name_bytes += 1
    if name_bytes == 0 or name_bytes >= INITIATOR_NAME_BYTES:
        return 0
    memcpy(out.initiator_name, text, name_bytes)
    if data[0] >> 6 == 1:
        return 4 + body_bytes if get_isid(text + name_bytes, length - name_bytes, out) else 0
    return 4 + body_bytes if name_bytes == length else 0


# ---- the file --------------------------------------------------------------------------------------------------------

cdef uint32_t state_dump(const ReservationState* state, uint8_t* out) noexcept nogil:
    cdef DumpHeader* header = <DumpHeader*>out
    cdef DumpRegistrant* row
    cdef uint32_t i, length = DUMP_HEADER_BYTES + state.count * DUMP_REGISTRANT_BYTES
    memset(out, 0, length)
    memcpy(header.magic, b"DETOURR1", 8)
    header.version = DUMP_VERSION
    header.flags = DUMP_APTPL if state.aptpl else 0
    header.kind = state.type
    header.holder = state.holder
    header.count = state.count
    for i in range(state.count):
        row = <DumpRegistrant*>(out + DUMP_HEADER_BYTES + i * DUMP_REGISTRANT_BYTES)
        row.key = state.registrants[i].key
        memcpy(row.isid, state.registrants[i].isid, 6)
        row.flags = DUMP_ALL_PORTS if state.registrants[i].all_ports else 0
        memcpy(row.initiator_name, state.registrants[i].initiator_name, INITIATOR_NAME_BYTES)
    header.crc = crc32c_update(0, out + 12, length - 12)
    return length


cdef inline void state_clear(ReservationState* state) noexcept nogil:
    memset(state, 0, sizeof(ReservationState))
    state.holder = HOLDER_NONE


cdef bint holder_makes_sense(uint32_t kind, int32_t holder, uint32_t count) noexcept nogil:
    if kind == 0:
        return holder == HOLDER_NONE
    if kind > 0xFF or count == 0 or not type_valid(<uint8_t>kind):
        return False
    return holder == HOLDER_ALL if type_all(<uint8_t>kind) else holder >= 0 and <uint32_t>holder < count


cdef int load_rows(ReservationState* state, const DumpRegistrant* rows, uint32_t count) noexcept nogil:
    cdef int32_t index
    cdef uint32_t i
    for i in range(count):
        if rows[i].key == 0 or rows[i].initiator_name[0] == 0 or rows[i].initiator_name[INITIATOR_NAME_BYTES - 1] != 0 \
                or registrant_find(state, rows[i].initiator_name, rows[i].isid) >= 0:
            return E_CORRUPT
        index = registrant_add(state, rows[i].initiator_name, rows[i].isid, rows[i].key)
        state.registrants[index].all_ports = rows[i].flags & DUMP_ALL_PORTS
    return OK


cdef int state_load(ReservationState* state, const uint8_t* data, uint32_t data_bytes) noexcept nogil:
    cdef DumpHeader header
    cdef int status
    state_clear(state)
    if data_bytes < DUMP_HEADER_BYTES:
        return E_CORRUPT
    memcpy(&header, data, DUMP_HEADER_BYTES)
    if memcmp(header.magic, b"DETOURR1", 8) != 0 or header.crc != crc32c_update(0, data + 12, data_bytes - 12):
        return E_CORRUPT
    if header.version != DUMP_VERSION:
        return E_UNSUPPORTED
    if header.count > REGISTRANTS_MAX or data_bytes != DUMP_HEADER_BYTES + header.count * DUMP_REGISTRANT_BYTES or \
            not holder_makes_sense(header.kind, header.holder, header.count):
        return E_CORRUPT
    if not header.flags & DUMP_APTPL:
        return OK                                   # what was not to outlive power is forgotten
    status = load_rows(state, <const DumpRegistrant*>(data + DUMP_HEADER_BYTES), header.count)
    if status < 0:
        state_clear(state)
        return status
    state.aptpl = True
    state.type = <uint8_t>header.kind
    state.holder = header.holder
    return OK


# ---- from another disk's READ FULL STATUS ----------------------------------------------------------------------------

cdef int load_descriptor(ReservationState* state, const uint8_t* descriptor, uint32_t id_bytes) noexcept nogil:
    cdef TransportId identity
    cdef int32_t index
    if get_transport_id(descriptor + FULL_STATUS_DESCRIPTOR_BYTES, id_bytes, &identity) == 0 or not identity.has_isid:
        return OK                                   # a port of another transport never comes in here
    index = registrant_find(state, identity.initiator_name, identity.isid)
    if index < 0:                                   # else: the same port, registered at another port of that disk
        index = registrant_add(state, identity.initiator_name, identity.isid, get_be64(descriptor))
    if index < 0:
        return E_FULL
    state.registrants[index].all_ports = (descriptor[12] & 0x02) != 0
    if descriptor[12] & 0x01:
        if descriptor[13] >> 4 != 0 or not type_valid(descriptor[13] & 0x0F):
            return E_PROTOCOL
        state.type = descriptor[13] & 0x0F
        state.holder = HOLDER_ALL if type_all(state.type) else index
        state.registrants[index].key = get_be64(descriptor)
    return OK


cdef int state_load_status(ReservationState* state, const uint8_t* data, uint32_t data_bytes) noexcept nogil:
    cdef uint32_t at = FULL_STATUS_HEADER_BYTES, end, id_bytes
    cdef int status = OK
    state_clear(state)
    if data_bytes < FULL_STATUS_HEADER_BYTES or get_be32(data + 4) > data_bytes - FULL_STATUS_HEADER_BYTES:
        return E_PROTOCOL                           # cut: the caller asks again with more room
    state.generation = get_be32(data)
    end = FULL_STATUS_HEADER_BYTES + get_be32(data + 4)
    while at < end and status == OK:
        id_bytes = get_be32(data + at + 20) if end - at >= FULL_STATUS_DESCRIPTOR_BYTES else 0xFFFFFFFF
        if end - at < FULL_STATUS_DESCRIPTOR_BYTES or id_bytes > end - at - FULL_STATUS_DESCRIPTOR_BYTES:
            status = E_PROTOCOL
        elif get_be64(data + at) == 0:
            status = E_PROTOCOL                     # no one is registered with key 0
        else:
            status = load_descriptor(state, data + at, id_bytes)
            at += FULL_STATUS_DESCRIPTOR_BYTES + id_bytes
    if status < 0:
        state_clear(state)
    return status
