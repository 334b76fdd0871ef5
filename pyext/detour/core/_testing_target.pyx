# Opens CDB decoding, sense data and LUN forms to tests; built always, used by nothing else.
from detour.core.scsi cimport *
from detour.core.types cimport *


def decode(bytes cdb) -> dict:
    """Fields of scsi_decode for `cdb`, with `status`."""
    cdef ScsiCommand command
    cdef bytes padded = cdb.ljust(16, b"\0")
    cdef int status = scsi_decode(<const uint8_t*><const char*>padded, len(cdb), &command)
    return {"status": status, **command}


def sense(uint32_t value, information=None) -> bytes:
    """Fixed-format sense data of `value` (key << 16 | asc << 8 | ascq)."""
    cdef uint8_t out[32]
    cdef uint32_t length = scsi_sense(out, value, information is not None, information or 0)
    return (<const char*>out)[:length]


def describe(bytes fixed) -> bytes:
    """Fixed-format sense data as scsi_sense_describe turns it into descriptor format."""
    cdef uint8_t out[64]
    cdef uint32_t i
    for i in range(len(fixed)):
        out[i] = <uint8_t>fixed[i]
    return (<const char*>out)[:scsi_sense_describe(out, <uint32_t>len(fixed))]


def sense_of(int status, bint writing) -> int:
    """The sense that a Status becomes."""
    return scsi_sense_of(status, writing)


def lun_of(bytes lun) -> int:
    """Number of an 8-byte LUN; 0xFFFFFFFF where it is not a plain one."""
    if len(lun) != 8:
        raise ValueError("a LUN has 8 bytes")
    return scsi_lun_of(<const uint8_t*><const char*>lun)


def lun_put(uint32_t number) -> bytes:
    """8-byte LUN of a number."""
    cdef uint8_t out[8]
    scsi_lun_put(out, number)
    return (<const char*>out)[:8]
