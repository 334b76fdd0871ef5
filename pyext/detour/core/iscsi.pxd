# RFC 7143: opcodes, flags, byte offsets in the 48-byte basic header segment. One source: tests compare the Python
# constants (iscsi/wire.py) with these.
cdef enum:
    BHS_BYTES = 48
    AHS_BYTES_MAX = 1020        # TotalAHSLength is one byte of 4-byte words
    DIGEST_BYTES = 4
    TAG_NONE = 0xFFFFFFFF

cdef enum Opcode:               # section 11.2.1.2, without the I bit (0x40)
    OP_NOP_OUT = 0x00
    OP_SCSI_COMMAND = 0x01
    OP_TASK_MANAGEMENT = 0x02
    OP_LOGIN_REQUEST = 0x03
    OP_TEXT_REQUEST = 0x04
    OP_DATA_OUT = 0x05
    OP_LOGOUT_REQUEST = 0x06
    OP_SNACK = 0x10
    OP_NOP_IN = 0x20
    OP_SCSI_RESPONSE = 0x21
    OP_TASK_MANAGEMENT_RESPONSE = 0x22
    OP_LOGIN_RESPONSE = 0x23
    OP_TEXT_RESPONSE = 0x24
    OP_DATA_IN = 0x25
    OP_LOGOUT_RESPONSE = 0x26
    OP_R2T = 0x31
    OP_ASYNC_MESSAGE = 0x32
    OP_REJECT = 0x3F

cdef enum:
    OP_IMMEDIATE = 0x40
    FLAG_FINAL = 0x80
    FLAG_READ = 0x40
    FLAG_WRITE = 0x20
    DATA_IN_STATUS = 0x01
    RESIDUAL_UNDERFLOW = 0x02
    RESIDUAL_OVERFLOW = 0x04

cdef enum RejectReason:         # section 11.17.1
    REJECT_DATA_DIGEST = 0x02
    REJECT_SNACK = 0x03
    REJECT_PROTOCOL = 0x04
    REJECT_NOT_SUPPORTED = 0x05
    REJECT_IMMEDIATE = 0x06
    REJECT_TASK_IN_PROGRESS = 0x07
    REJECT_INVALID_DATA_ACK = 0x08
    REJECT_INVALID_FIELD = 0x09
    REJECT_LONG_OPERATION = 0x0A
    REJECT_WAITING_FOR_LOGOUT = 0x0C

cdef enum AsyncEvent:           # section 11.9.1
    ASYNC_SCSI = 0
    ASYNC_LOGOUT_REQUEST = 1
    ASYNC_DROP_CONNECTION = 2
    ASYNC_DROP_SESSION = 3
    ASYNC_RENEGOTIATE = 4
    ASYNC_TASKS_TERMINATED = 5
