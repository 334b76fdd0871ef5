# What a journal says after a stop in disorder: pure over headers and data in the mapping, no I/O of its own.
# The decision for each header is a labelled table (see recovery.pyx and docs/formats.md).
from detour.core.types cimport *
from detour.core.journal cimport Journal, JournalHandle
from detour.core.snapshot cimport Snapshot

cdef struct RecoveryReport:
    seq_t first_seq             # oldest entry that counts
    seq_t last_seq              # newest
    uint64_t entries_live
    uint64_t entries_flushed
    uint64_t entries_torn       # newest ones that were being written: never acknowledged as stable
    uint64_t entries_corrupt    # checksum wrong though they had been stable
    uint64_t bytes_live
    seq_t corrupt_seq           # first corrupt one, 0 if none
    lba_t corrupt_lba
    blocks_t corrupt_blocks

# Reads the table, sets the rings' heads and tails, and marks `snapshot` in sequence order. With check_data the data's
# checksums are verified too (else when they are read).
cdef int recovery_run(Journal* journal, Snapshot* snapshot, bint check_data, RecoveryReport* report) noexcept nogil
