# SANITIZE of a plain disk (SBC-4 4.11, 5.34): the whole medium erased (unmapped) or overwritten by a pattern, in the
# background if it is asked so; meanwhile and after a failure the disk is not ready.
from detour.core.device cimport Device, Request
from detour.core.reactor cimport Command, Timer
from detour.core.scsi cimport ScsiCommand
from detour.core.store cimport Io, Store
from detour.core.types cimport *

ctypedef void (*sanitize_answer_fn)(Device* device, Request* request) noexcept nogil

cdef struct Sanitizer:          # first: set up by sanitize_init
    Device* device
    Store* store
    bint thin                   # BLOCK ERASE is offered, else OVERWRITE
    sanitize_answer_fn answer   # ends a COMMAND, later in this turn
    Request* const* delayed     # head of the writes that the disk still holds back
    # the operation
    bint running
    bint failed                 # the last one: until it is done again or EXIT FAILURE MODE is allowed and comes
    bint exit_allowed           # AUSE
    bint erasing                # BLOCK ERASE, else OVERWRITE
    bint inverts
    bint flushing
    uint8_t passes_left
    uint8_t passes
    uint64_t at_bytes
    uint8_t* pattern            # SANITIZE_STEP_BYTES of it, malloc
    Request* request            # to be answered at its end, or NULL
    Command* close_command
    Io io
    bint io_open
    Timer timer

cdef void sanitize_init(Sanitizer* sanitizer, Device* device, Store* store, bint thin, sanitize_answer_fn answer,
                        Request* const* delayed) noexcept nogil
# SANITIZE has come, with its parameter list.
cdef void sanitize_begin(Sanitizer* sanitizer, Request* request, const uint8_t* parameters,
                         uint32_t parameter_bytes) noexcept nogil
# The Sense with which another command is refused now, or 0 (SBC-4 4.11.2: INQUIRY, REPORT LUNS, REQUEST SENSE pass).
cdef uint32_t sanitize_refusal(const Sanitizer* sanitizer, const ScsiCommand* command) noexcept nogil
# A request that was begun before is refused.
cdef void sanitize_refuse(Sanitizer* sanitizer, Request* request) noexcept nogil
# The task of SANITIZE was aborted: it is answered, the operation goes on.
cdef void sanitize_forget(Sanitizer* sanitizer, Request* request) noexcept nogil
# The disk closes. True: `command` is run again when the operation has stopped.
cdef bint sanitize_close(Sanitizer* sanitizer, Command* command) noexcept nogil
cdef void sanitize_free(Sanitizer* sanitizer) noexcept nogil
