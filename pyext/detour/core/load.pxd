# The engine of the load generator (loadgen.pxd): what runs on the loop. It sends operations to a store at a depth or a
# rate, stamps what it writes, checks what it reads and counts; loadgen.pyx is what Python holds of it.
from detour.core.types cimport *
from detour.core.reactor cimport Command, Deferred, Loop, Timer
from detour.core.stats cimport Histogram
from detour.core.store cimport Io, Store

cdef enum LoadMode:
    LOAD_RANDOM = 0
    LOAD_SEQUENTIAL = 1
    LOAD_ORDERED = 2

cdef enum LoadState:
    LOAD_IDLE = 0               # the loop holds no pointer into the generator
    LOAD_RUNNING = 1
    LOAD_STOPPING = 2           # nothing new is sent; what is in flight is awaited

cdef enum:
    LOAD_SECTIONS = 8
    LOAD_DEPTH_MAX = 4096
    LOAD_UNITS_OF_IO_MAX = 4096

cdef struct LoadSection:        # one flat block of uint64; names in loadgen.pyx
    uint64_t reads              # that ended well
    uint64_t writes
    uint64_t flushes
    uint64_t read_bytes
    uint64_t write_bytes
    uint64_t errors
    uint64_t mismatches         # reads that showed something else than they had to
    uint64_t checked_bytes      # read and compared
    uint64_t longest_ns         # slowest operation
    uint64_t elapsed_ns         # time that the section has lasted, up to its last completion
    uint64_t late_ns            # longest that an operation was sent after its intended start (rate mode)
    Histogram read_ns
    Histogram write_ns
    Histogram flush_ns

cdef struct LoadFault:          # the first error or mismatch; `kind` is written last
    uint64_t kind               # 0: none; StampFault of a mismatch; for an error 1
    int64_t status              # Status of an error
    uint64_t op                 # StoreOp
    uint64_t offset_bytes       # of the sector (mismatch) or of the operation (error)
    uint64_t length_bytes
    uint64_t expected_min       # versions that would have been right
    uint64_t expected_max
    uint64_t found_seed         # the sector's first three words as found
    uint64_t found_sector
    uint64_t found_version
    uint64_t section

cdef struct LoadSlot:           # one operation in flight
    Load* load
    LoadSlot* next              # free list
    Io io
    ns_t intended_ns
    uint64_t first_unit
    uint32_t units
    uint8_t* data               # io_bytes_max, page-aligned
    uint32_t* floors            # by unit: oldest version that is right, as of the sending (reads)

cdef struct Load:
    Loop* loop
    Store* store
    uint64_t id
    # what it does
    uint64_t offset_bytes
    uint64_t unit_bytes
    uint64_t units
    uint32_t io_units_min
    uint32_t io_units_max
    uint32_t read_share_ppm
    uint32_t fua_share_ppm
    uint32_t depth
    uint32_t flush_every
    double interval_ns          # between intended starts; 0: as fast as `depth` allows
    int mode
    bint verify
    bint rewriting              # writes put back what is there: nothing changes
    uint64_t seed_word
    uint64_t random_state
    const uint8_t* base         # content of the region before the first write, or NULL: not known
    # versions by unit; NULL without verify
    uint32_t* acked             # acknowledged last
    uint32_t* issued            # sent last: in flight, or failed with an unknown outcome
    uint32_t* floor             # acknowledged or seen by a read: nothing older may show up
    uint8_t* busy               # a write is in flight
    # progress
    int state
    LoadSlot* slots
    LoadSlot* free_head
    uint8_t* slot_memory
    uint32_t* floor_memory
    uint32_t in_flight
    uint32_t writes_in_flight
    uint32_t writes_since_flush
    uint64_t sent
    uint64_t operations         # bound, 0: none
    uint64_t cursor             # SEQUENTIAL
    uint64_t order              # ORDERED: numbers given out
    double next_ns              # intended start of the next operation
    ns_t deadline_ns
    Timer timer
    Timer end_timer
    Deferred pump
    Command* stop_command
    # figures
    uint32_t section
    ns_t section_began_ns
    uint64_t section_base_ns
    LoadSection sections[LOAD_SECTIONS]
    LoadFault mismatch
    LoadFault error

# Slots, their buffers and, with verify, the versions: E_NOMEM leaves what was taken to load_free.
cdef int load_tables(Load* load) noexcept nogil
cdef void load_free(Load* load) noexcept nogil
# Commands of the loop thread. start: args seconds in ns, operations. section: arg index. rewrite: arg on.
cdef void load_start(Command* command) noexcept nogil
cdef void load_stop(Command* command) noexcept nogil
cdef void load_section(Command* command) noexcept nogil
cdef void load_rewrite(Command* command) noexcept nogil
cdef void load_on_pump(void* owner) noexcept nogil
cdef void load_on_time_over(void* owner) noexcept nogil
# Compares `count` units from `first` on with what they have to hold; adds to figures: compared, wrong, unknown, and the
# region offset of the first wrong sector.
cdef void load_compare(Load* load, const uint8_t* data, uint64_t first, uint64_t count, uint64_t* figures) noexcept nogil
