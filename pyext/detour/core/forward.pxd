# Commands that are not data, forwarded to main so that the host meets the same disk (DESIGN.md: the gateway mirrors
# identity). What could change main's medium is refused as a disk that lacks it would, and REPORT SUPPORTED OPERATION
# CODES agrees with that.
from detour.core.device cimport Request
from detour.core.overlay cimport Volume

cdef void forward_submit(Volume* volume, Request* request) noexcept nogil
