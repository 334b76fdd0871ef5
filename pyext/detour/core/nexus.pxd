# The initiator-target nexuses that one device knows, each with its pending unit attentions (SAM-5 5.14, SPC-4 table of
# precedence). A device (disk, volume) holds one NexusTable, tells it what happens to a nexus, and asks it in `admit`.
#
# The usual case costs one load: `pending` is 0 when no nexus of the device has anything to report.
from detour.core.device cimport Nexus
from detour.core.pool cimport Slab
from detour.core.scsi cimport ScsiCommand
from detour.core.types cimport *

cdef enum:
    NEXUSES_MAX = 4096          # of one device; one more is served, but has no attentions
    ATTENTIONS_MAX = 8          # pending for one nexus; when one more comes the last gives way to the newest
    NEXUS_BUCKETS = 64

cdef enum NexusStanding:        # what reservation.pyx keeps here, so that `admit` need not search the registrations
    STANDING_REGISTERED = 1
    STANDING_HOLDER = 2         # of the persistent reservation

cdef struct NexusEntry:
    const Nexus* nexus
    uint8_t standing            # NexusStanding bits
    bint prevents_removal       # PREVENT ALLOW MEDIUM REMOVAL of this nexus holds (the device's to set and clear)
    uint8_t attention_count
    uint32_t attentions[ATTENTIONS_MAX]     # Sense; [0] is reported first
    NexusEntry* bucket_next
    NexusEntry* next            # all entries
    NexusEntry* prev

cdef struct NexusTable:
    uint32_t pending            # attentions of all entries
    uint32_t count
    NexusEntry* entries
    NexusEntry* buckets[NEXUS_BUCKETS]
    Slab slab

cdef void nexus_table_init(NexusTable* table) noexcept nogil
cdef void nexus_table_free(NexusTable* table) noexcept nogil
cdef NexusEntry* nexus_find(NexusTable* table, const void* nexus) noexcept nogil            # NULL: not known
# NexusEvent. LOGIN makes the entry and queues 29/00, LOGOUT ends it, LUN_RESET queues 29/03, TARGET_RESET 29/02,
# CLEARED 2F/00. Answers the entry, NULL after LOGOUT, for an unknown nexus and at the bound.
cdef NexusEntry* nexus_event(NexusTable* table, const Nexus* nexus, int event) noexcept nogil
# Queues a Sense unless it is pending already: codes of the reset family by precedence and before all others, a power on
# (29/00, 29/01) clears what is pending.
cdef void attention_add(NexusTable* table, NexusEntry* entry, uint32_t sense) noexcept nogil
# For every nexus but `except_nexus` (NULL: for all): MODE PARAMETERS CHANGED, CAPACITY DATA HAS CHANGED ...
cdef void attention_others(NexusTable* table, const void* except_nexus, uint32_t sense) noexcept nogil
# The Sense to report to this nexus now, which is then no longer pending; 0 when there is none.
cdef uint32_t attention_take(NexusTable* table, const void* nexus) noexcept nogil
# What the command is refused with by `admit`: 0, or the Sense taken from the queue. INQUIRY, REPORT LUNS and REQUEST
# SENSE pass (SPC-4 5.14): the device reports with attention_take in REQUEST SENSE.
cdef uint32_t attention_due(NexusTable* table, const void* nexus, const ScsiCommand* command) noexcept nogil
