# Target side, fifth layer: one host's session. PDUs by opcode, CmdSN order, NOP, Text, the life of the connection.
from detour.core.conn cimport ConnParams
from detour.core.task cimport *
from detour.core.types cimport *

cdef struct SessionArgs:        # what login hands over
    ConnParams params
    char initiator_name[224]
    uint8_t isid[6]

# Takes the socket over. On an error the descriptor is closed.
cdef int session_open(Target* target, int fd, const SessionArgs* args, uint64_t* session_id) noexcept nogil
cdef Session* session_find(Target* target, uint64_t session_id) noexcept nogil
cdef void session_tell_window(Session* session) noexcept nogil          # NOP-In that carries the command window
# Async Message event 3, and the close when the host has it, or after `limit_ns`.
cdef void session_send_home(Session* session, uint16_t time2wait_s, uint16_t time2retain_s, ns_t limit_ns) noexcept nogil
cdef void session_resume(Session* session) noexcept nogil               # begins what a drain held back
# Frees an ended session that no device has anything of any more; False: some device has.
cdef bint session_finish(Session* session) noexcept nogil
