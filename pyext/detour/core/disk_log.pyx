# Log pages of a plain disk.
#
# Owns: the layout of the pages. Counts come from the device's figures, less what they were at the last reset: they are
# requests as the store sees them, so that a command of more than 1 MiB counts once for each piece.
# Invariants: parameters of a page stand in rising order of their codes; no page is longer than INFO_BYTES_MAX.
# Cost: of no concern; these commands are rare.
from libc.string cimport memcpy

from detour.core.device cimport Device
from detour.core.disk_identity cimport EFFECT_LOGS, DiskState, answer_cut
from detour.core.endian cimport get_be16, put_be16, put_be32, put_be64
from detour.core.scsi cimport *

cdef enum:
    PAGE_SUPPORTED = 0x00
    PAGE_WRITE_ERRORS = 0x02
    PAGE_READ_ERRORS = 0x03
    PAGE_STATISTICS = 0x19
    PAGE_EXCEPTIONS = 0x2F
    SUBPAGE_ALL = 0xFF
    HEADER_BYTES = 4
    CONTROL_COUNTER = 0x20      # TSD: not saved; a bounded data counter
    CONTROL_LIST = 0x23         # TSD; a binary list
    TEMPERATURE_UNKNOWN = 0xFF
    CUMULATIVE = 1              # page control
    CUMULATIVE_DEFAULT = 3

cdef uint8_t[5] PAGES = [PAGE_SUPPORTED, PAGE_WRITE_ERRORS, PAGE_READ_ERRORS, PAGE_STATISTICS, PAGE_EXCEPTIONS]

cdef struct Writer:             # parameters from `first` on
    uint8_t* out
    uint32_t at
    uint16_t first
    uint16_t last               # highest code of the page, written or not


cdef uint8_t* put_parameter(Writer* writer, uint16_t code, uint8_t control, uint8_t length_bytes) noexcept nogil:
    # Where the value goes; NULL: the host does not ask for it.
    cdef uint8_t* out = writer.out + writer.at
    writer.last = code
    if code < writer.first:
        return NULL
    put_be16(out, code)
    out[2] = control
    out[3] = length_bytes
    writer.at += 4 + length_bytes
    return out + 4


cdef void put_counter(Writer* writer, uint16_t code, uint64_t value) noexcept nogil:
    cdef uint8_t* out = put_parameter(writer, code, CONTROL_COUNTER, 8)
    if out != NULL:
        put_be64(out, value)


cdef void put_errors(Writer* writer, uint64_t moved_bytes, uint64_t errors) noexcept nogil:
    # Corrected without and with delay, rewrites, corrected in all, times that the correction ran: what lies below does
    # not tell of any.
    cdef uint16_t code
    for code in range(5):
        put_counter(writer, code, 0)
    put_counter(writer, 5, moved_bytes)
    put_counter(writer, 6, errors)                  # not corrected


cdef void put_statistics(const DiskView* view, bint zero, Writer* writer) noexcept nogil:
    # SPC-4 7.3.9: read and write commands, blocks received and transmitted; no times are taken.
    cdef const DiskState* state = view.state
    cdef const Device* device = view.device
    cdef uint8_t* out = put_parameter(writer, 0x0001, CONTROL_LIST, 64)
    if out == NULL or zero:
        return
    put_be64(out, device.reads - state.reads_before)
    put_be64(out + 8, device.writes - state.writes_before)
    put_be64(out + 16, (device.write_bytes - state.write_bytes_before) // view.identity.block_bytes)
    put_be64(out + 24, (device.read_bytes - state.read_bytes_before) // view.identity.block_bytes)


cdef void put_exceptions(Writer* writer) noexcept nogil:
    cdef uint8_t* out = put_parameter(writer, 0x0000, CONTROL_LIST, 4)
    if out != NULL:
        out[2] = TEMPERATURE_UNKNOWN


cdef bint put_page(const DiskView* view, uint8_t page, bint zero, Writer* writer) noexcept nogil:
    # False: there is no such page.
    cdef const DiskState* state = view.state
    cdef const Device* device = view.device
    if page == PAGE_WRITE_ERRORS:
        put_errors(writer, 0 if zero else device.write_bytes - state.write_bytes_before,
                   0 if zero else state.write_errors)
    elif page == PAGE_READ_ERRORS:
        put_errors(writer, 0 if zero else device.read_bytes - state.read_bytes_before,
                   0 if zero else state.read_errors)
    elif page == PAGE_STATISTICS:
        put_statistics(view, zero, writer)
    elif page == PAGE_EXCEPTIONS:
        put_exceptions(writer)
    else:
        return False
    return True


cdef uint32_t put_supported(bint with_subpages, uint8_t* out) noexcept nogil:
    # Each page has subpage 0 only, but the list itself.
    cdef uint32_t at = HEADER_BYTES, i
    if not with_subpages:
        memcpy(out + at, PAGES, sizeof(PAGES))
        return at + sizeof(PAGES)
    for i in range(sizeof(PAGES)):
        out[at] = PAGES[i]
        at += 2
        if PAGES[i] == PAGE_SUPPORTED:
            out[at + 1] = SUBPAGE_ALL
            at += 2
    return at


cdef void disk_log_sense(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                         InfoAnswer* answer) noexcept nogil:
    cdef uint8_t page = cdb[2] & 0x3F
    cdef uint8_t control = cdb[2] >> 6
    cdef bint all_subpages = page == PAGE_SUPPORTED and cdb[3] == SUBPAGE_ALL
    cdef Writer writer
    writer.out = answer.data
    writer.at = HEADER_BYTES
    writer.first = get_be16(cdb + 5)
    writer.last = 0
    # SP: nothing is saved. The page control is only looked at where there are counters.
    if cdb[1] & 0x03 or (cdb[3] != 0 and not all_subpages):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    if page == PAGE_SUPPORTED:
        writer.at = put_supported(all_subpages, answer.data)
    elif page != PAGE_EXCEPTIONS and control not in (CUMULATIVE, CUMULATIVE_DEFAULT):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    elif not put_page(view, page, control == CUMULATIVE_DEFAULT, &writer):
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    if writer.first > writer.last:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    answer.data[0] = page | (0x40 if all_subpages else 0)          # SPF
    answer.data[1] = cdb[3]
    put_be16(answer.data + 2, <uint16_t>(writer.at - HEADER_BYTES))
    answer_cut(answer, writer.at, command.length_bytes)


cdef void disk_log_select(const DiskView* view, const ScsiCommand* command, const uint8_t* cdb,
                          InfoAnswer* answer) noexcept nogil:
    # PCR resets all counters; without it, and with no parameters, nothing is changed. No parameter can be set.
    cdef DiskState* state = view.state
    if cdb[1] & 0x01 or cdb[2] & 0x3F != 0 or cdb[3] != 0:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB
        return
    if command.length_bytes != 0:
        answer.sense = SENSE_INVALID_FIELD_IN_CDB if cdb[1] & 0x02 else SENSE_INVALID_FIELD_IN_PARAMETERS
        return
    if not cdb[1] & 0x02:
        return
    state.reads_before = view.device.reads
    state.writes_before = view.device.writes
    state.read_bytes_before = view.device.read_bytes
    state.write_bytes_before = view.device.write_bytes
    state.read_errors = 0
    state.write_errors = 0
    answer.effects |= EFFECT_LOGS
