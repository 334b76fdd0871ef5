# The persistent reservation of one device as data: who is registered with which key, who holds it. Its forms on the
# wire (READ KEYS, READ RESERVATION, READ FULL STATUS, TransportIDs of SPC-4 7.6.4.6) and in a file (docs/formats.md).
from detour.core.device cimport Nexus
from detour.core.types cimport *

cdef enum:
    REGISTRANTS_MAX = 128
    INITIATOR_NAME_BYTES = 224  # NUL included
    RESERVATION_ANSWER_BYTES = 65536
    TARGET_PORT = 1             # relative target port identifier: all portals of a target are one port
    DUMP_HEADER_BYTES = 32
    DUMP_REGISTRANT_BYTES = 240
    DUMP_BYTES_MAX = 32 + 128 * 240
    TRANSPORT_ID_BYTES_MAX = 248
    HOLDER_NONE = -1
    HOLDER_ALL = -2             # all registrants, by the type of the reservation

cdef enum ReservationType:      # SPC-4 6.15.3.4; 0: no reservation
    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_REGISTRANTS = 6
    WRITE_EXCLUSIVE_ALL = 7
    EXCLUSIVE_ACCESS_ALL = 8

cdef struct Registrant:         # an initiator port: stays when its session ends
    char initiator_name[INITIATOR_NAME_BYTES]
    uint8_t isid[6]
    bint all_ports              # registered with ALL_TG_PT
    uint64_t key

cdef struct ReservationState:   # plain data: copied to prepare a change
    uint32_t generation         # PRGENERATION
    bint aptpl
    uint8_t type                # ReservationType
    int32_t holder              # index into registrants, HOLDER_NONE or HOLDER_ALL
    uint32_t count
    Registrant registrants[REGISTRANTS_MAX]

cdef struct TransportId:
    char initiator_name[INITIATOR_NAME_BYTES]
    uint8_t isid[6]
    bint has_isid               # False: format 00b, which names a device and not a port

cdef bint type_valid(uint8_t kind) noexcept nogil
cdef bint type_registrants(uint8_t kind) noexcept nogil     # registrants only or all registrants
cdef bint type_all(uint8_t kind) noexcept nogil
cdef bint type_write_exclusive(uint8_t kind) noexcept nogil
cdef bint names_equal(const char* one, const char* other) noexcept nogil        # ASCII case is not told apart (RFC 3722)

cdef int32_t registrant_find(const ReservationState* state, const char* initiator_name,
                             const uint8_t* isid) noexcept nogil                # -1: none
cdef inline int32_t registrant_of(const ReservationState* state, const Nexus* nexus) noexcept nogil:
    return registrant_find(state, nexus.initiator_name, nexus.isid)
cdef int32_t registrant_add(ReservationState* state, const char* initiator_name, const uint8_t* isid,
                            uint64_t key) noexcept nogil                        # -1: REGISTRANTS_MAX are there
cdef void registrant_remove(ReservationState* state, int32_t index) noexcept nogil
cdef bint is_holder(const ReservationState* state, int32_t index) noexcept nogil

# PERSISTENT RESERVE IN: whole answers, whose lengths fit RESERVATION_ANSWER_BYTES; answer the length.
cdef uint32_t put_keys(const ReservationState* state, uint8_t* out) noexcept nogil
cdef uint32_t put_reservation(const ReservationState* state, uint8_t* out) noexcept nogil
cdef uint32_t put_capabilities(bint durable, bint active, uint8_t* out) noexcept nogil
cdef uint32_t put_full_status(const ReservationState* state, uint8_t* out) noexcept nogil

# One TransportID at the start of `data`; answers its length, or 0 when it is none of iSCSI or does not fit.
cdef uint32_t get_transport_id(const uint8_t* data, uint32_t data_bytes, TransportId* out) noexcept nogil
cdef uint32_t put_transport_id(const Registrant* registrant, uint8_t* out) noexcept nogil

cdef uint32_t state_dump(const ReservationState* state, uint8_t* out) noexcept nogil
cdef int state_load(ReservationState* state, const uint8_t* data, uint32_t data_bytes) noexcept nogil
cdef int state_load_status(ReservationState* state, const uint8_t* data, uint32_t data_bytes) noexcept nogil
