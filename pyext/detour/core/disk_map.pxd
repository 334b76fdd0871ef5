# GET LBA STATUS (SBC-3 5.6) of a plain disk, from STORE_MAP of its store.
from detour.core.device cimport Request
from detour.core.store cimport Store
from detour.core.types cimport *

# For a COMMAND whose request.buffer has INFO_BYTES_MAX bytes, zeroed. OK: request.done is called when the store has told;
# E_RANGE: the LBA is beyond the end, nothing was begun.
cdef int disk_map(Store* store, Request* request) noexcept nogil
