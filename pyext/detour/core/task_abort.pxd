# Target side: the tasks at one device or of one target, in whatever session of this loop, and their abort.
from detour.core.device cimport Device
from detour.core.task cimport *
from detour.core.types cimport *

# The device that a task is about: where it was begun, or for one that has not begun what its LUN means now.
cdef Device* task_target(const Task* task) noexcept nogil
cdef bint target_has(const Target* target, const Device* device) noexcept nogil
cdef void device_event(Loop* loop, Device* device, int event) noexcept nogil        # to all of its nexuses
# PREEMPT AND ABORT (Request.aborts): aborts the tasks of the nexuses with abort_wanted at the device of `task`, but not
# `task`. True: some are still at the device; preempt_sweep ends `task` when they are not.
cdef bint preempt_begin(Task* task) noexcept nogil
cdef bint preempt_sweep(Target* target) noexcept nogil          # True: some answer still waits
