# The host's side as Python holds it: sessions in full feature phase, SCSI tasks, data transfer (RFC 7143 at error
# recovery level 0, one connection a session). Login is done by Python, which hands the socket over with the negotiated
# values. The structs are in task.pxd, with the list of the layers below.
from detour.core.device cimport DeviceHandle
from detour.core.reactor cimport Command, Reactor
from detour.core.task cimport TARGET_LUNS_MAX, Session, Target, TargetStats, Task
from detour.core.types cimport *

# What Python holds.
#   TargetHandle(reactor, target_id, queue_depth_max=128, nop_interval_ms=10000, nop_timeout_ms=30000,
#       stall_timeout_ms=30000, session_bytes_max=64 MiB)
#   set_lun(lun, DeviceHandle|None) -> ticket; done when no command is open at the device that was there
#   set_fallback(DeviceHandle|None) -> ticket
#   adopt(fd, params: dict, initiator_name: str, isid: bytes) -> ticket; result: session id. The fd belongs to the core
#       from then on. `params` has the field names of ConnParams.
#   hold(True|False) -> ticket        closes / opens the command windows (NOP-Out is answered all the time)
#   drain() -> ticket                 done when every command that was begun has been answered; new ones are not begun
#   resume() -> ticket                ends hold and drain: commands that waited are begun
#   send_home(time2wait_s=0, time2retain_s=0, close_after_ms=50) -> ticket   Async Message event 3, then close, when the
#       host answers a ping behind it, or after that time; done when all sessions are closed; result: how many
#   drop(session_id, reason) -> ticket     closes one session at once; done when its tasks have ended at the device
#   async_message(session_id, event, p1, p2, p3) -> ticket
#   text_response(session_id, itt, data: bytes, send_data_bytes_max=0) -> ticket       answer to EVENT_TEXT_REQUEST
#   text_reject(session_id, itt, reason) -> ticket              the other answer
#   sessions() -> ticket; result data: array of struct {id, commands open, commands done, bytes in, bytes out}
#   stats -> read-only uint64 view; stats_names() -> list of names of the leading counters
#   close() -> ticket
cdef class TargetHandle:
    cdef Target* target
    cdef readonly Reactor reactor
    cdef readonly uint64_t id
    cdef dict luns
    cdef list retired               # devices that were taken away: they live as long as the target
    cdef readonly bint closed
    cdef uint64_t ask(self, void (*run)(Command*) noexcept nogil, uint64_t a0, uint64_t a1, uint64_t a2) except 0
    cdef uint64_t put_device(self, uint64_t lun, DeviceHandle device) except 0
