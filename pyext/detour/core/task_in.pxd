# Target side, second layer: requests to the device, and data from it to the host (READ, and what other commands answer).
from detour.core.device cimport Device, Request, RequestOp
from detour.core.task cimport *
from detour.core.types cimport *

# Requests. part_fill sets up a request of `blocks` from `lba`; part_submit gives it to the device, and `finished` is
# called when it is done (unless the task was aborted meanwhile).
cdef void part_fill(Part* part, uint8_t op, lba_t lba, uint64_t blocks, part_fn finished) noexcept nogil
cdef void part_submit(Part* part) noexcept nogil
cdef void part_failed(Part* part, bint writing) noexcept nogil       # the device's status becomes the task's
# The READ commands: reads room_bytes of what total_bytes are at command.lba, and answers.
cdef void in_read(Task* task) noexcept nogil
# parts[0].request holds `length_bytes` to send to the host, then GOOD.
cdef void in_send(Task* task, uint64_t length_bytes) noexcept nogil
# Answers a task that failed, or that has no data to send, once nothing of it is open any more.
cdef void in_settle(Task* task) noexcept nogil
