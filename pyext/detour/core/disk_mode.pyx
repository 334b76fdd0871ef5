# Mode pages of a plain disk: read-write error recovery, caching, control, informational exceptions.
#
# Owns: the layout of the pages and the list of bits that a host may change: WCE, D_SENSE, SWP. Nothing is saved.
# Invariants: a MODE SELECT is applied whole or not at all; a value that cannot be changed must be sent as it is.
# Cost: of no concern; these commands are rare.
from libc.string cimport memcpy, memset

from detour.core.disk_identity cimport EFFECT_FLUSH, EFFECT_MODES, answer_cut, clamp32
from detour.core.endian cimport get_be16, get_be32, get_be64, put_be16, put_be32, put_be64
from detour.core.scsi cimport *

cdef enum:
    PAGE_RECOVERY = 0x01
    PAGE_CACHING = 0x08
    PAGE_CONTROL = 0x0A
    PAGE_EXCEPTIONS = 0x1C
    PAGE_ALL = 0x3F
    SUBPAGE_ALL = 0xFF
    PAGE_BYTES_MAX = 20

cdef enum Control:              # which values MODE SENSE asks for
    VALUES_CURRENT = 0
    VALUES_CHANGEABLE = 1
    VALUES_DEFAULT = 2
    VALUES_SAVED = 3

cdef uint8_t[4] PAGES = [PAGE_RECOVERY, PAGE_CACHING, PAGE_CONTROL, PAGE_EXCEPTIONS]

cdef enum:
    WCE = 0x04                  # caching, byte 2
    D_SENSE = 0x04              # control, byte 2
    SWP = 0x08                  # control, byte 4


cdef void disk_mode_defaults(const DiskIdentity* identity, DiskState* state) noexcept nogil:
    state.write_cache = identity.write_cache
    state.software_protected = False
    state.descriptor_sense = False


cdef void put_changing(uint8_t page, const DiskState* state, uint8_t* out) noexcept nogil:
    # The bits that follow the state; with all of them set, these are the changeable ones.
    if page == PAGE_CACHING:
        out[2] = WCE if state.write_cache else 0
    elif page == PAGE_CONTROL:
        out[2] = D_SENSE if state.descriptor_sense else 0
        out[4] = SWP if state.software_protected else 0


cdef uint32_t page_length(uint8_t page) noexcept nogil:
    if page == PAGE_CACHING:
        return 20
    return 12 if page in (PAGE_RECOVERY, PAGE_CONTROL, PAGE_EXCEPTIONS) else 0


cdef uint32_t mode_page(const DiskView* view, uint8_t page, uint8_t control, uint8_t* out) noexcept nogil:
    # Answers the page's length; 0: there is none.
    cdef DiskState state = view.state[0]
    cdef uint32_t length = page_length(page)
    if length == 0:
        return 0
    memset(out, 0, length)
    if control == VALUES_DEFAULT:
        disk_mode_defaults(view.identity, &state)
    elif control == VALUES_CHANGEABLE:
        state.write_cache = True
        state.descriptor_sense = True
        state.software_protected = True
    put_changing(page, &state, out)
    out[0] = page
    out[1] = <uint8_t>(length - 2)
    if control == VALUES_CHANGEABLE:
        return length
    if page == PAGE_RECOVERY:
        out[2] = 0xC0                               # AWRE, ARRE: what lies below takes care of its own defects
    elif page == PAGE_CONTROL:
        out[2] |= 0x02                              # GLTSD: log parameters are not saved
        out[3] = 0x10                               # unrestricted reordering
        put_be16(out + 8, 0xFFFF)                   # busy timeout period: unlimited
    elif page == PAGE_EXCEPTIONS:
        out[2] = 0x08                               # DEXCPT: none is reported
    return length


# ---- MODE SENSE ------------------------------------------------------------------------------------------------------

cdef uint32_t mode_pages(const DiskView* view, uint8_t page, uint8_t control, uint8_t* out) noexcept nogil:
    cdef uint32_t length = 0, i
    if page != PAGE_ALL:
        return mode_page(view, page, control, out)
    for i in range(sizeof(PAGES)):
        length += mode_page(view, PAGES[i], control, out + length)
    return length


cdef uint32_t block_descriptor(const DiskIdentity* identity, bint long_form, uint8_t* out) noexcept nogil:
    if long_form:
        put_be64(out, identity.blocks)
        put_be32(out + 12, identity.block_bytes)
        return 16
    put_be32(out, clamp32(identity.blocks))
    put_be32(out + 4, identity.block_bytes)
    return 8


cdef void disk_mode_sense(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                          InfoAnswer* answer) noexcept nogil:
    cdef bint ten = cdb[0] == 0x5A
    cdef bint long_form = ten and cdb[1] & 0x10
    cdef uint32_t header_bytes = 8 if ten else 4
    cdef uint32_t descriptor_bytes = 0
    cdef uint32_t length
    cdef bint protected = view.identity.read_only or view.state.software_protected
    cdef uint8_t device_specific = 0x90 if protected else 0x10                   # WP, DPOFUA
    cdef uint8_t control = cdb[2] >> 6
    if not cdb[1] & 0x08:
        descriptor_bytes = block_descriptor(view.identity, long_form, answer.data + header_bytes)
    length = mode_pages(view, cdb[2] & 0x3F, control, answer.data + header_bytes + descriptor_bytes)
    if length == 0 or (cdb[3] != 0 and cdb[3] != SUBPAGE_ALL):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    if control == VALUES_SAVED:
        answer.sense = SENSE_SAVING_PARAMETERS
        return
    length += header_bytes + descriptor_bytes
    if ten:
        put_be16(answer.data, <uint16_t>(length - 2))
        answer.data[3] = device_specific
        answer.data[4] = 0x01 if long_form else 0
        put_be16(answer.data + 6, <uint16_t>descriptor_bytes)
    else:
        answer.data[0] = <uint8_t>(length - 1)
        answer.data[2] = device_specific
        answer.data[3] = <uint8_t>descriptor_bytes
    answer_cut(answer, length, command.length_bytes)


# ---- MODE SELECT -----------------------------------------------------------------------------------------------------

cdef uint32_t select_page(const DiskView* view, const uint8_t* page, uint32_t rest_bytes, DiskState* wanted,
                          uint32_t* sense) noexcept nogil:
    # Notes in `wanted` what one page asks for; answers its length.
    cdef uint8_t current[PAGE_BYTES_MAX]
    cdef uint8_t changeable[PAGE_BYTES_MAX]
    cdef uint32_t length, i
    if rest_bytes < 2:
        sense[0] = SENSE_PARAMETER_LIST_LENGTH
        return 0
    length = mode_page(view, page[0] & 0x3F, VALUES_CURRENT, current)
    if length == 0 or page[0] & 0x40 or page[1] != current[1]:
        sense[0] = SENSE_INVALID_FIELD_IN_PARAMETERS
        return 0
    if length > rest_bytes:
        sense[0] = SENSE_PARAMETER_LIST_LENGTH
        return 0
    mode_page(view, page[0] & 0x3F, VALUES_CHANGEABLE, changeable)
    for i in range(2, length):
        if (page[i] ^ current[i]) & ~changeable[i]:
            sense[0] = SENSE_INVALID_FIELD_IN_PARAMETERS
            return 0
    if page[0] & 0x3F == PAGE_CACHING:
        wanted.write_cache = (page[2] & WCE) != 0
    elif page[0] & 0x3F == PAGE_CONTROL:
        wanted.descriptor_sense = (page[2] & D_SENSE) != 0
        wanted.software_protected = (page[4] & SWP) != 0
    return length


cdef bint descriptor_holds(const DiskIdentity* identity, const uint8_t* descriptor, bint long_form) noexcept nogil:
    # SPC-4 7.5.5: the number of blocks is 0 (unchanged), all ones (all there are), or what it is; the size what it is.
    cdef uint64_t blocks
    cdef uint32_t block_bytes
    if long_form:
        blocks = get_be64(descriptor)
        block_bytes = get_be32(descriptor + 12)
        return block_bytes == identity.block_bytes and (blocks == 0 or blocks == identity.blocks
                                                        or blocks == <uint64_t>0xFFFFFFFFFFFFFFFF)
    blocks = get_be32(descriptor)
    block_bytes = get_be32(descriptor + 4) & 0xFFFFFF
    return block_bytes == identity.block_bytes and (blocks == 0 or blocks == clamp32(identity.blocks)
                                                    or blocks == <uint64_t>0xFFFFFFFF)


cdef uint32_t select_header(const DiskIdentity* identity, const uint8_t* parameters, uint32_t parameter_bytes, bint ten,
                            uint32_t* sense) noexcept nogil:
    # Answers where the pages begin.
    cdef uint32_t header_bytes = 8 if ten else 4
    cdef uint32_t descriptor_bytes
    cdef bint long_form = ten and parameter_bytes >= header_bytes and parameters[4] & 0x01
    if parameter_bytes < header_bytes:
        sense[0] = SENSE_PARAMETER_LIST_LENGTH
        return 0
    if parameters[2 if ten else 1] != 0:                        # medium type
        sense[0] = SENSE_INVALID_FIELD_IN_PARAMETERS
        return 0
    descriptor_bytes = get_be16(parameters + 6) if ten else parameters[3]
    if descriptor_bytes != 0 and descriptor_bytes != (16 if long_form else 8):
        sense[0] = SENSE_INVALID_FIELD_IN_PARAMETERS
    elif header_bytes + descriptor_bytes > parameter_bytes:
        sense[0] = SENSE_PARAMETER_LIST_LENGTH
    elif descriptor_bytes != 0 and not descriptor_holds(identity, parameters + header_bytes, long_form):
        sense[0] = SENSE_INVALID_FIELD_IN_PARAMETERS
    return header_bytes + descriptor_bytes


cdef void disk_mode_select(const DiskView* view, const uint8_t* cdb, const uint8_t* parameters,
                           uint32_t parameter_bytes, InfoAnswer* answer) noexcept nogil:
    cdef DiskState wanted = view.state[0]
    cdef uint32_t at
    if cdb[1] & 0x03:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB           # SP, RTD: nothing is saved
        return
    if parameter_bytes == 0:
        return
    at = select_header(view.identity, parameters, parameter_bytes, cdb[0] == 0x55, &answer.sense)
    while answer.sense == 0 and at < parameter_bytes:
        at += select_page(view, parameters + at, parameter_bytes - at, &wanted, &answer.sense)
    if answer.sense != 0:
        return
    if (wanted.write_cache != view.state.write_cache or wanted.descriptor_sense != view.state.descriptor_sense
            or wanted.software_protected != view.state.software_protected):
        answer.effects |= EFFECT_MODES
    if view.state.write_cache and not wanted.write_cache:
        answer.effects |= EFFECT_FLUSH
    memcpy(view.state, &wanted, sizeof(DiskState))
