# What a reservation allows to others, as one table over operation codes and service actions (SPC-4 5.13.1 and SBC-3 4.17,
# tables of commands that are allowed in the presence of reservations; the column of RESERVE(6/10) as SPC-2 annex B).
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef enum Right:
    RIGHT_WRITE = 0             # conflicts with every reservation of others; what the table does not name
    RIGHT_READ = 1              # passes write exclusive reservations
    RIGHT_ALWAYS = 2
    RIGHT_ALWAYS_PERSISTENT = 3 # passes persistent reservations, conflicts with a RESERVE(6/10) of others
    RIGHT_OWN = 4               # reservation commands: their own rules
    RIGHT_BY_CDB = 5            # told by bits that a ScsiCommand does not have: right_by_cdb

cdef uint8_t right_of(const ScsiCommand* command) noexcept nogil
# START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL: RIGHT_ALWAYS or RIGHT_WRITE; others: RIGHT_ALWAYS, right_of tells theirs
cdef uint8_t right_by_cdb(const uint8_t* cdb) noexcept nogil
