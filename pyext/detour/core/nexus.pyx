# The nexuses of one device and what each has to be told.
#
# Owns: a slab of entries; a hash of them by the address of the Nexus, which stays the same from login to logout.
# Invariants: `pending` is the sum of attention_count over all entries; no Sense is twice in a queue; codes of the reset
# family stand first, the strongest of them alone (SAM-5 table of precedence), the others in the order they came.
# Cost: attention_due is one load while nothing is pending; else one hash look-up in a bucket of few entries.
from libc.string cimport memmove, memset

from detour.core.debug cimport invariant
from detour.core.device cimport (NEXUS_CLEARED, NEXUS_LOGIN, NEXUS_LOGOUT, NEXUS_LUN_RESET, NEXUS_TARGET_RESET, Nexus)
from detour.core.pool cimport slab_free, slab_get, slab_init, slab_put
from detour.core.scsi cimport *
from detour.core.types cimport *


cdef void nexus_table_init(NexusTable* table) noexcept nogil:
    memset(table, 0, sizeof(NexusTable))
    slab_init(&table.slab, sizeof(NexusEntry), NEXUSES_MAX)


cdef void nexus_table_free(NexusTable* table) noexcept nogil:
    slab_free(&table.slab)
    memset(table.buckets, 0, sizeof(table.buckets))
    table.entries = NULL
    table.count = 0
    table.pending = 0


# ---- entries ---------------------------------------------------------------------------------------------------------

cdef inline NexusEntry** bucket_of(NexusTable* table, const void* nexus) noexcept nogil:
    # Addresses of sessions differ by more than a page or so; the multiplication spreads what differs.
    return &table.buckets[((<uint64_t>nexus) * <uint64_t>0x9E3779B97F4A7C15) >> 58]


cdef NexusEntry* nexus_find(NexusTable* table, const void* nexus) noexcept nogil:
    cdef NexusEntry* entry = bucket_of(table, nexus)[0]
    while entry != NULL and entry.nexus != nexus:
        entry = entry.bucket_next
    return entry


cdef NexusEntry* entry_add(NexusTable* table, const Nexus* nexus) noexcept nogil:
    cdef NexusEntry** bucket = bucket_of(table, nexus)
    cdef NexusEntry* entry = <NexusEntry*>slab_get(&table.slab)
    if entry == NULL:
        return NULL
    entry.nexus = nexus
    entry.bucket_next = bucket[0]
    bucket[0] = entry
    entry.next = table.entries
    if table.entries != NULL:
        table.entries.prev = entry
    table.entries = entry
    table.count += 1
    return entry


cdef void entry_remove(NexusTable* table, NexusEntry* entry) noexcept nogil:
    cdef NexusEntry** link = bucket_of(table, entry.nexus)
    while link[0] != entry:
        link = &link[0].bucket_next
    link[0] = entry.bucket_next
    if entry.next != NULL:
        entry.next.prev = entry.prev
    if entry.prev != NULL:
        entry.prev.next = entry.next
    else:
        table.entries = entry.next
    table.pending -= entry.attention_count
    table.count -= 1
    slab_put(&table.slab, entry)


cdef NexusEntry* nexus_event(NexusTable* table, const Nexus* nexus, int event) noexcept nogil:
    cdef NexusEntry* entry = nexus_find(table, nexus)
    if event == NEXUS_LOGOUT:
        if entry != NULL:
            entry_remove(table, entry)
        return NULL
    if event == NEXUS_LOGIN and entry == NULL:
        entry = entry_add(table, nexus)
    if entry == NULL:
        return NULL
    if event == NEXUS_LOGIN:
        attention_add(table, entry, SENSE_POWER_ON_RESET)
    elif event == NEXUS_LUN_RESET:
        attention_add(table, entry, SENSE_LUN_RESET)
    elif event == NEXUS_TARGET_RESET:
        attention_add(table, entry, SENSE_BUS_RESET)
    elif event == NEXUS_CLEARED:
        attention_add(table, entry, SENSE_COMMANDS_CLEARED)
    return entry


# ---- unit attentions -------------------------------------------------------------------------------------------------

cdef inline uint32_t strength(uint32_t sense) noexcept nogil:
    # SAM-5 5.14, table of unit attention precedence: 0 stands for all that is of no reset.
    if sense == SENSE_POWER_ON_RESET or sense == SENSE_POWER_ON:
        return 4
    if sense == SENSE_BUS_RESET:
        return 3
    if sense == SENSE_LUN_RESET:
        return 2
    return 1 if sense == SENSE_NEXUS_LOSS else 0


cdef void attention_drop(NexusTable* table, NexusEntry* entry, uint32_t index) noexcept nogil:
    invariant(index < entry.attention_count, b"a unit attention that is not there")
    entry.attention_count -= 1
    table.pending -= 1
    memmove(&entry.attentions[index], &entry.attentions[index + 1],
            (entry.attention_count - index) * sizeof(entry.attentions[0]))


cdef void attention_add(NexusTable* table, NexusEntry* entry, uint32_t sense) noexcept nogil:
    cdef uint32_t own = strength(sense)
    cdef uint32_t first = 0
    cdef uint32_t i
    if own == strength(SENSE_POWER_ON_RESET):
        while entry.attention_count > 0:
            attention_drop(table, entry, 0)
    elif entry.attention_count > 0 and strength(entry.attentions[0]) > 0:
        if own > 0 and own <= strength(entry.attentions[0]):
            return                      # told already by a stronger one, or by the same
        if own > 0:
            attention_drop(table, entry, 0)
    for i in range(entry.attention_count):
        if entry.attentions[i] == sense:
            return
    if entry.attention_count == ATTENTIONS_MAX:
        attention_drop(table, entry, ATTENTIONS_MAX - 1)
    if own == 0:
        first = entry.attention_count
    memmove(&entry.attentions[first + 1], &entry.attentions[first],
            (entry.attention_count - first) * sizeof(entry.attentions[0]))
    entry.attentions[first] = sense
    entry.attention_count += 1
    table.pending += 1


cdef void attention_others(NexusTable* table, const void* except_nexus, uint32_t sense) noexcept nogil:
    cdef NexusEntry* entry = table.entries
    while entry != NULL:
        if entry.nexus != except_nexus:
            attention_add(table, entry, sense)
        entry = entry.next


cdef uint32_t attention_take(NexusTable* table, const void* nexus) noexcept nogil:
    cdef NexusEntry* entry
    cdef uint32_t sense
    if table.pending == 0:
        return SENSE_NONE
    entry = nexus_find(table, nexus)
    if entry == NULL or entry.attention_count == 0:
        return SENSE_NONE
    sense = entry.attentions[0]
    attention_drop(table, entry, 0)
    return sense


cdef uint32_t attention_due(NexusTable* table, const void* nexus, const ScsiCommand* command) noexcept nogil:
    if table.pending == 0 or command.opcode == 0x12 or command.opcode == 0xA0 or command.opcode == 0x03:
        return SENSE_NONE
    return attention_take(table, nexus)
