# Atomic commands (COMPARE AND WRITE, ORWRITE, WRITE ATOMIC): while one works on its blocks, no other request of any
# session of any target reaches these blocks of the device.
from detour.core.device cimport Device, GuardEntry, guard_ready_fn
from detour.core.task cimport *
from detour.core.types cimport *

# An atomic command wants its blocks to itself. True: it has them now; else `ready(task)` comes when it has.
cdef bint guard_claim(Task* task, lba_t lba, uint64_t blocks, guard_ready_fn ready) noexcept nogil
# Whether this request must wait for an atomic command; then `ready(part)` comes when it may go. Asked only while
# device.guard.exclusives is not 0.
cdef bint guard_stops(Part* part, guard_ready_fn ready) noexcept nogil
# Ends a claim or a wait; nothing happens where there is none.
cdef void guard_leave(Device* device, GuardEntry* entry) noexcept nogil
# A request at the device has ended: who waits is looked at later in this turn.
cdef void guard_touch(Device* device) noexcept nogil
