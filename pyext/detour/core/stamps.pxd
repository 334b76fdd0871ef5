# Self-describing data for the load generator: every sector of 512 bytes tells whose it is, where it belongs and which
# version it is, and the rest of it follows from that, so that a lost, stale, shifted, foreign or torn sector is seen.
#
# A sector is 64 words: seed (mixed), absolute sector number on the store, version, check over the three, then a fill that
# is derived from the check. Costs about 100 ns a sector, both to write and to check.
from detour.core.types cimport *

cdef enum:
    ORDERED_REGIONS = 8         # regions that a writer of ordered numbers goes round
    STAMP_BYTES = 512           # a sector
    STAMP_WORDS = 64
    STAMP_FILL_FROM = 4

cdef enum StampFault:           # what is wrong with a sector; 0: nothing
    STAMP_GOOD = 0
    STAMP_FOREIGN = 1           # not a stamp of this seed
    STAMP_SHIFTED = 2           # a stamp of this seed for another place
    STAMP_TORN = 3              # header and fill do not belong together
    STAMP_OLD = 4               # an older version than the newest that was acknowledged or seen
    STAMP_NEW = 5               # a version that was never written
    STAMP_MIXED = 6             # sectors of one block have different versions

cdef inline uint64_t stamp_mix(uint64_t value) noexcept nogil:      # splitmix64
    value += <uint64_t>0x9E3779B97F4A7C15
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)

cdef inline uint64_t stamp_check(uint64_t seed_word, uint64_t sector, uint32_t version) noexcept nogil:
    return stamp_mix(seed_word ^ stamp_mix(sector) ^ stamp_mix(<uint64_t>version << 20))

cdef inline void stamp_write(uint8_t* place, uint64_t seed_word, uint64_t sector, uint32_t version) noexcept nogil:
    cdef uint64_t* words = <uint64_t*>place
    cdef uint64_t check = stamp_check(seed_word, sector, version)
    cdef int i
    words[0] = seed_word
    words[1] = sector
    words[2] = version
    words[3] = check
    for i in range(STAMP_FILL_FROM, STAMP_WORDS):
        words[i] = stamp_mix(check + <uint64_t>i)

# Answers a StampFault; *version is set when the sector is good.
cdef inline int stamp_read(const uint8_t* place, uint64_t seed_word, uint64_t sector, uint32_t* version) noexcept nogil:
    cdef const uint64_t* words = <const uint64_t*>place
    cdef uint64_t check
    cdef uint64_t different = 0
    cdef int i
    if words[0] != seed_word:
        return STAMP_FOREIGN
    check = stamp_check(seed_word, words[1], <uint32_t>words[2])
    if words[3] != check or words[2] >> 32 != 0:
        return STAMP_TORN
    for i in range(STAMP_FILL_FROM, STAMP_WORDS):
        different |= words[i] ^ stamp_mix(check + <uint64_t>i)
    if different != 0:
        return STAMP_TORN
    if words[1] != sector:
        return STAMP_SHIFTED
    version[0] = <uint32_t>words[2]
    return STAMP_GOOD

cdef inline uint64_t stamp_ordered_unit(uint64_t units, uint64_t number) noexcept nogil:
    # The unit that a number is written to. Numbers go round the regions, and in each region from its start to its end.
    cdef uint64_t region_units = units // ORDERED_REGIONS
    return number % ORDERED_REGIONS * region_units + number // ORDERED_REGIONS % region_units
