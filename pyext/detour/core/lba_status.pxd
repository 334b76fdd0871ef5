# GET LBA STATUS (SBC-3 5.6) of a detoured volume: what main says of its blocks where the overlay has nothing, else what
# the host has made of them since the freeze.
from detour.core.overlay cimport Volume
from detour.core.types cimport *

cdef enum:
    LBA_STATUS_MAIN_BYTES = 4096        # room for main's answer: as many descriptors as one of ours has
    LBA_STATUS_BUFFER_BYTES = 16384     # main's answer, the notes, our answer

# Before main is asked: notes what the overlay has from `lba` on. `buffer` has LBA_STATUS_BUFFER_BYTES.
cdef void lba_status_note(Volume* volume, lba_t lba, uint8_t* buffer) noexcept nogil
# With main's answer in the first `main_bytes` of the buffer: where our answer lies in it, and its length.
cdef uint8_t* lba_status_merge(Volume* volume, lba_t lba, uint8_t* buffer, uint32_t main_bytes,
                               uint32_t* length_bytes) noexcept nogil
