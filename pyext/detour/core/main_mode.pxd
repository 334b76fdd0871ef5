# Mode pages of main that the gateway has a part in: what a host sets in them, and what it is shown of them.
from detour.core.types cimport *

cdef enum ModeWish:             # what a MODE SELECT asks for
    MODE_CONTROL = 1            # there is a control mode page (SPC-4 7.5.8), with
    MODE_DESCRIPTOR_SENSE = 2   #   D_SENSE
    MODE_PROTECTED = 4          #   SWP
    MODE_CACHING = 8            # there is a caching mode page (SBC-3 6.5.5), with
    MODE_WRITE_CACHE = 16       #   WCE

# Reads the parameter list of a MODE SELECT (6 or 10) and takes SWP out of it: the gateway refuses the host's writes, but
# main has to take those of catch-up. Answers what is wished for.
cdef uint32_t mode_select_read(const uint8_t* cdb, uint8_t* list_data, uint32_t list_bytes) noexcept nogil
# Makes main's answer to a MODE SENSE (6 or 10) tell of write protection as the gateway keeps it.
cdef void mode_sense_show(const uint8_t* cdb, uint8_t* data, uint32_t data_bytes, bint protected) noexcept nogil
