# Sized types and status codes of the whole core. Imports nothing but libc.
from libc.stdint cimport (int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t)

ctypedef uint64_t lba_t        # logical block address, in blocks of the volume
ctypedef uint32_t blocks_t     # number of blocks
ctypedef uint64_t seq_t        # sequence number of a journal entry; 0 is never used
ctypedef int64_t ns_t          # nanoseconds; monotonic unless the name says `realtime`

# What functions of the data path answer. 0 and above: no error. Names below 0 are errors.
# errors.py maps each to a sentence; a test keeps both in step.
cdef enum Status:
    OK = 0
    PENDING = 1           # accepted; a callback tells the end
    AGAIN = 2             # nothing can be done now; try after the next event
    E_NOMEM = -1          # a configured memory limit is reached
    E_IO = -2             # the storage below failed
    E_RANGE = -3          # outside of the volume, the buffer or the table
    E_FULL = -4           # journal, mailbox or table is full
    E_PROTOCOL = -5       # the peer broke RFC 7143 or SAM
    E_DIGEST = -6         # a CRC32C does not match
    E_CLOSED = -7         # the connection or store is closed
    E_ABORTED = -8        # given up by task management or a phase change
    E_TIMEOUT = -9        # a limit in time is over
    E_UNSUPPORTED = -10   # the operation is not offered here
    E_CHECK = -11         # SCSI CHECK CONDITION; the sense data tells more
    E_CORRUPT = -12       # a checksum on disk does not match
    E_MISCOMPARE = -13    # VERIFY or COMPARE AND WRITE found other data
    E_BUSY = -14          # SCSI BUSY, RESERVATION CONFLICT or TASK SET FULL; scsi_status tells which
    E_INVALID = -15       # an argument makes no sense

cdef enum:
    SECTOR_BYTES = 512            # alignment of every place in a journal
    PART_BYTES_MAX = 1048576      # the largest piece of data handled as one request
