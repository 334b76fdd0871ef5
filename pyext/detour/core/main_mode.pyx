# See main_mode.pxd. Pure functions over bytes from the wire: a list that is cut short, or whose lengths lead beyond its
# end, is read as far as it goes; main itself judges whether it is well formed.
from detour.core.endian cimport get_be16

cdef enum:
    MODE_SENSE_6 = 0x1A
    MODE_SELECT_6 = 0x15
    HEADER_6_BYTES = 4
    HEADER_10_BYTES = 8
    PAGE_CACHING = 0x08
    PAGE_CONTROL = 0x0A
    PAGE_CODE = 0x3F
    PAGE_HAS_SUBPAGE = 0x40
    CONTROL_D_SENSE = 0x04      # byte 2
    CONTROL_SWP = 0x08          # byte 4
    CACHING_WCE = 0x04          # byte 2
    WRITE_PROTECTED = 0x80      # device-specific parameter of the header


cdef uint32_t pages_at(const uint8_t* data, uint32_t data_bytes, bint short_header) noexcept nogil:
    """Where the first page begins; `data_bytes` when there is none."""
    cdef uint32_t at = HEADER_6_BYTES if short_header else HEADER_10_BYTES
    if data_bytes < at:
        return data_bytes
    at += data[3] if short_header else get_be16(data + 6)
    return min(at, data_bytes)


cdef uint32_t page_bytes(const uint8_t* page, uint32_t left_bytes) noexcept nogil:
    """Of the page with its header; 0 when not even that is there."""
    if left_bytes < 2:
        return 0
    if page[0] & PAGE_HAS_SUBPAGE:
        return 0 if left_bytes < 4 else 4 + get_be16(page + 2)
    return 2 + page[1]


cdef uint32_t mode_select_read(const uint8_t* cdb, uint8_t* list_data, uint32_t list_bytes) noexcept nogil:
    cdef uint32_t at = pages_at(list_data, list_bytes, cdb[0] == MODE_SELECT_6)
    cdef uint32_t length, wishes = 0
    cdef uint8_t* page
    while True:
        page = list_data + at
        length = page_bytes(page, list_bytes - at)
        if length == 0 or length > list_bytes - at:
            return wishes
        if page[0] & (PAGE_CODE | PAGE_HAS_SUBPAGE) == PAGE_CONTROL and length > 4:
            wishes |= MODE_CONTROL
            wishes |= MODE_DESCRIPTOR_SENSE if page[2] & CONTROL_D_SENSE else 0
            wishes |= MODE_PROTECTED if page[4] & CONTROL_SWP else 0
            page[4] &= ~CONTROL_SWP & 0xFF
        elif page[0] & (PAGE_CODE | PAGE_HAS_SUBPAGE) == PAGE_CACHING and length > 2:
            wishes |= MODE_CACHING
            wishes |= MODE_WRITE_CACHE if page[2] & CACHING_WCE else 0
        at += length


cdef void mode_sense_show(const uint8_t* cdb, uint8_t* data, uint32_t data_bytes, bint protected) noexcept nogil:
    cdef bint short_header = cdb[0] == MODE_SENSE_6
    cdef uint32_t at = pages_at(data, data_bytes, short_header)
    cdef uint32_t header_at = 2 if short_header else 3
    cdef uint32_t length
    if protected and data_bytes > header_at:
        data[header_at] |= WRITE_PROTECTED
    if not protected or cdb[2] & 0xC0 != 0:             # other values than the current ones
        return
    while True:
        length = page_bytes(data + at, data_bytes - at)
        if length == 0 or at + 4 >= data_bytes:
            return
        if data[at] & (PAGE_CODE | PAGE_HAS_SUBPAGE) == PAGE_CONTROL and length > 4:
            data[at + 4] |= CONTROL_SWP
        if length > data_bytes - at:
            return
        at += length
