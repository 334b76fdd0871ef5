# CDBs and sense data. One table (opcode, service action) -> class, fields, rights; SPC-4 and SBC-3 names.
from detour.core.types cimport *

cdef enum ScsiClass:
    SCSI_UNKNOWN = 0
    SCSI_READ = 1
    SCSI_WRITE = 2
    SCSI_WRITE_VERIFY = 3       # BYTCHK in `bytchk`
    SCSI_VERIFY = 4             # data-out is compared where bytchk is 1 or 3
    SCSI_SYNCHRONIZE = 5
    SCSI_WRITE_SAME = 6
    SCSI_UNMAP = 7
    SCSI_COMPARE_AND_WRITE = 8
    SCSI_ORWRITE = 9
    SCSI_PREFETCH = 10
    SCSI_GET_LBA_STATUS = 11
    SCSI_SANITIZE = 12
    SCSI_FORMAT = 13
    SCSI_WRITE_ATOMIC = 14
    SCSI_INFO = 15              # asks or sets state, touches no medium: INQUIRY, MODE SENSE, TEST UNIT READY, ...
    SCSI_REPORT_OPCODES = 16
    SCSI_OTHER_MEDIUM = 17      # known, could change the medium, not done on the overlay
    SCSI_EXTENDED_COPY = 18     # LID1
    SCSI_COPY_RESULTS = 19      # RECEIVE COPY RESULTS of it

cdef enum ScsiStatus:
    STATUS_GOOD = 0x00
    STATUS_CHECK_CONDITION = 0x02
    STATUS_CONDITION_MET = 0x04
    STATUS_BUSY = 0x08
    STATUS_RESERVATION_CONFLICT = 0x18
    STATUS_TASK_SET_FULL = 0x28
    STATUS_TASK_ABORTED = 0x40

# Sense as one number: key << 16 | asc << 8 | ascq
cdef enum Sense:
    SENSE_NONE = 0
    SENSE_INVALID_MESSAGE = 0x054900       # a task attribute that is not offered
    SENSE_NOT_READY_BECOMING = 0x020401
    SENSE_MEDIUM_READ_ERROR = 0x031100
    SENSE_MEDIUM_WRITE_ERROR = 0x030C00
    SENSE_HARDWARE_FAILURE = 0x044400
    SENSE_INVALID_FIELD_IN_INFORMATION_UNIT = 0x050E03
    SENSE_INVALID_OPCODE = 0x052000
    SENSE_LBA_OUT_OF_RANGE = 0x052100
    SENSE_INVALID_FIELD_IN_CDB = 0x052400
    SENSE_LUN_NOT_SUPPORTED = 0x052500
    SENSE_INVALID_FIELD_IN_PARAMETERS = 0x052600
    SENSE_PARAMETER_LIST_LENGTH = 0x051A00
    SENSE_WRITE_PROTECTED = 0x072700
    SENSE_POWER_ON_RESET = 0x062900
    SENSE_BUS_RESET = 0x062902
    SENSE_ABORTED_COMMAND = 0x0B0000
    SENSE_DIGEST_ERROR = 0x0B4705          # PROTOCOL SERVICE CRC ERROR (RFC 7143 11.4.7.2)
    SENSE_UNEXPECTED_UNSOLICITED = 0x0B0C0C
    SENSE_NOT_ENOUGH_UNSOLICITED = 0x0B0C0D
    SENSE_MISCOMPARE = 0x0E1D00
    SENSE_SANITIZING = 0x02041B            # with progress
    SENSE_SANITIZE_FAILED = 0x033103
    SENSE_OPERATION_IN_PROGRESS = 0x050016
    SENSE_COPY_CSCDS_MAX = 0x052606
    SENSE_COPY_CSCD_TYPE = 0x052607
    SENSE_COPY_SEGMENTS_MAX = 0x052608
    SENSE_COPY_SEGMENT_TYPE = 0x052609
    SENSE_COPY_INLINE_MAX = 0x05260B
    SENSE_COPY_ABORTED = 0x0A0000
    SENSE_COPY_UNREACHABLE = 0x0A0804      # a CSCD that no descriptor names
    SENSE_COPY_DEVICE_FAILED = 0x0A0D01
    SENSE_COPY_NO_DEVICE = 0x0A0D02
    SENSE_COPY_DEVICE_TYPE = 0x0A0D03
    SENSE_COPY_GRANULARITY = 0x0A260D
    SENSE_COMMANDS_CLEARED = 0x062F00      # by another initiator
    SENSE_POWER_ON = 0x062901
    SENSE_LUN_RESET = 0x062903
    SENSE_NEXUS_LOSS = 0x062907
    SENSE_RESERVATIONS_PREEMPTED = 0x062A03
    SENSE_RESERVATIONS_RELEASED = 0x062A04
    SENSE_REGISTRATIONS_PREEMPTED = 0x062A05
    SENSE_INVALID_RELEASE = 0x052604
    SENSE_REGISTRATIONS_FULL = 0x055504
    SENSE_INITIALIZING_REQUIRED = 0x020402 # stopped by START STOP UNIT
    SENSE_MEDIUM_NOT_PRESENT = 0x023A00
    SENSE_MEDIUM_CHANGED = 0x062800
    SENSE_MODE_CHANGED = 0x062A01
    SENSE_LOG_CHANGED = 0x062A02
    SENSE_SOFTWARE_PROTECTED = 0x072702
    SENSE_REMOVAL_PREVENTED = 0x055302
    SENSE_SAVING_PARAMETERS = 0x053900

cdef struct ScsiCommand:        # a decoded CDB
    uint8_t opcode
    uint8_t service_action
    uint8_t cls                 # ScsiClass
    uint8_t cdb_bytes           # length that this opcode has; 0 unknown
    uint8_t protect             # RDPROTECT / WRPROTECT / VRPROTECT / ORPROTECT
    uint8_t bytchk
    bint dpo
    bint fua
    bint unmap                  # WRITE SAME
    bint anchor
    bint ndob
    bint immed
    lba_t lba
    uint64_t blocks             # transfer or verification or range length as in the CDB (READ 6 of 0 is 256)
    uint32_t atomic_boundary    # WRITE ATOMIC: in blocks
    uint32_t length_bytes       # parameter list or allocation length, for what has one
    int direction               # 0 none, 1 data-in, 2 data-out: what the CDB means to move

# OK, or E_UNSUPPORTED with cls SCSI_UNKNOWN. `available_bytes` is what the CDB field holds (16, or more with an AHS).
cdef int scsi_decode(const uint8_t* cdb, uint32_t available_bytes, ScsiCommand* out) noexcept nogil
cdef bint scsi_has_actions(uint8_t opcode) noexcept nogil
# Whether an opcode has service actions, of which this one is not known here (INVALID FIELD IN CDB, not INVALID OPCODE).
cdef bint scsi_is_unknown_action(const uint8_t* cdb) noexcept nogil
# Fixed-format sense (18 bytes) with optional information field; answers the length.
cdef uint32_t scsi_sense(uint8_t* out, uint32_t sense, bint information_valid, uint32_t information) noexcept nogil
# Fixed-format sense data turned into descriptor format in place (SPC-4 4.5.2; room for 48 bytes); what is in that format
# already stays. Answers the length.
cdef uint32_t scsi_sense_describe(uint8_t* sense, uint32_t sense_bytes) noexcept nogil
# Status of the core as the sense that a good disk would give.
cdef uint32_t scsi_sense_of(int status, bint writing) noexcept nogil
cdef uint32_t scsi_lun_of(const uint8_t* lun) noexcept nogil    # SAM LUN (8 bytes) -> number; 0xFFFFFFFF if not a plain one
cdef void scsi_lun_put(uint8_t* lun, uint32_t number) noexcept nogil
