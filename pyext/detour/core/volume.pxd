# A detoured volume: the device that the host meets on the gateway. It routes each request by phase.
#
#   PASS         straight to main: before the freeze, after the release
#   ARMED        hosts may log in, their commands wait (all or none: until every session is off main)
#   COPYING      writes: journal, snapshot (S301-S305); reads: snapshot, else main (S401-S406); the copier runs beside
#   CATCHING_UP  the same; reads of the base from the backup where asked, from main where main is newer (S511-S514);
#                rounds flush the snapshot duplicate to main (S501-S505)
#   HOLDING      commands wait; what was begun ends; the last round runs; then the host goes home (S601-S604)
#
#   PASS -> ARMED -> COPYING -> CATCHING_UP -> HOLDING -> PASS
#             |                                   |
#             +-> PASS (given up)                 +-> CATCHING_UP (hold given up)
from detour.core.types cimport *
from detour.core.bitmap cimport Bitmap
from detour.core.copier cimport Copier
from detour.core.device cimport Device, DeviceHandle, Request
from detour.core.format cimport ChunkState
from detour.core.journal cimport Journal, JournalHandle
from detour.core.pool cimport Slab, PoolWaiter
from detour.core.ranges cimport Ranges
from detour.core.reactor cimport Loop, Deferred, Timer, Command
from detour.core.snapshot cimport Snapshot
from detour.core.stats cimport Histogram
from detour.core.store cimport Store, Io, StoreHandle

cdef enum VolumePhase:
    PHASE_PASS = 0
    PHASE_ARMED = 1
    PHASE_COPYING = 2
    PHASE_CATCHING_UP = 3
    PHASE_HOLDING = 4

cdef enum:
    FLUSH_WINDOW = 16           # merged runs in flight to main in a round

cdef struct VolumeStats:        # one flat block of uint64; names in volume.pyx (STATS_NAMES)
    uint64_t phase
    uint64_t reads
    uint64_t writes
    uint64_t read_bytes
    uint64_t write_bytes
    uint64_t reads_snapshot         # requests served from the journal alone
    uint64_t reads_base
    uint64_t reads_mixed
    uint64_t reads_backup           # base runs taken from backup storage
    uint64_t waits_unreflected      # S405
    uint64_t waits_room             # journal full
    uint64_t throttled_ns
    uint64_t dirty_blocks
    uint64_t unreflected_bytes      # what a round still has to bring to main (both generations)
    uint64_t round_bytes            # of the running round, done so far
    uint64_t flushed_bytes          # to main, since the freeze
    uint64_t flushed_runs
    uint64_t rounds
    uint64_t journal_used_bytes
    uint64_t journal_bytes
    uint64_t copied_bytes
    uint64_t copy_bytes             # size of the PIT
    uint64_t corrupt
    uint64_t main_errors
    uint64_t backup_errors
    uint64_t requests_open
    uint64_t requests_waiting
    uint64_t longest_ns
    uint64_t room_wait_ns           # how long the oldest request has been waiting for journal room; 0 none
    uint64_t evicted_bytes          # flushed to main during the copy, under journal pressure
    Histogram read_ns
    Histogram write_ns


# VolumeHandle(reactor, volume_id, main: StoreHandle, journal: JournalHandle|None, sync_always=False)
#   All answer a ticket. Errors of order (wrong phase) end with E_INVALID.
#   set_phase(phase: int)              only along the edges above; HOLDING -> PASS needs an empty overlay
#   recover(check_data: bool)          rebuilds the overlay from the journal; results: live entries, flushed, torn,
#                                      corrupt, live bytes, phase found
#   freeze(pit_id: bytes, note: bytes) ARMED (or PASS) -> COPYING: journal emptied, phase and PIT written and stable
#   copy_start(sink: StoreHandle, window=8, rate_bytes_s=0)   done when started; EVENT_COPY_DONE follows
#   copy_stop()                        the copy is given up (EVENT_COPY_DONE with E_ABORTED)
#   catch_up(reads_from_backup: bool)  COPYING -> CATCHING_UP
#   round()                            one catch-up round; results: bytes, runs, ns; done when main has been flushed
#   hold() / unhold()                  CATCHING_UP <-> HOLDING
#   drain()                            done when no request that was begun is open
#   throttle(write_bytes_s)            bound on the host's write rate, 0: none
#   release()                          HOLDING -> PASS; E_BUSY while the overlay is not empty; journal marked clean
#   checksums() -> bytes               CRC32C of each chunk of the PIT (uint32 little-endian)
#   stats -> read-only uint64 view; stats_names() -> names of the leading counters
#   resize(blocks) · close()
cdef class VolumeHandle(DeviceHandle):
    cdef void* volume           # Volume*
    cdef readonly StoreHandle main
    cdef readonly StoreHandle sink
    cdef readonly JournalHandle journal
    cdef readonly uint64_t id
