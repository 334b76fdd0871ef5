# Dice of the fuzzer's generators: one 64-bit state (splitmix64), everything else follows from it.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef struct Dice:
    uint64_t state

cdef inline void dice_init(Dice* dice, uint64_t seed) noexcept nogil:
    dice.state = seed * <uint64_t>0x9E3779B97F4A7C15 + 1

cdef inline uint64_t roll(Dice* dice) noexcept nogil:
    cdef uint64_t z
    dice.state += <uint64_t>0x9E3779B97F4A7C15
    z = dice.state
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)

cdef inline uint32_t below(Dice* dice, uint32_t bound) noexcept nogil:     # 0 to bound - 1; 0 where bound is 0
    return <uint32_t>(((roll(dice) >> 32) * bound) >> 32)

cdef inline bint chance(Dice* dice, uint32_t of_1024) noexcept nogil:
    return (roll(dice) >> 54) < of_1024

# A header's word to spoil: those of tags, numbers, offsets and lengths more often than others.
cdef inline uint32_t odd_place(Dice* dice) noexcept nogil:
    cdef uint32_t word = below(dice, 16)
    return 8 + 4 * word if word < 10 else 36 + 4 * (word % 3)

# A value that breaks things: near `near`, near a power of two, all ones, anything.
cdef inline uint32_t odd(Dice* dice, uint32_t near) noexcept nogil:
    cdef uint32_t kind = below(dice, 10)
    if kind == 8:
        return near + 512
    if kind == 9:
        return near - 512
    if kind == 0:
        return near - 1
    if kind == 1:
        return near + 1
    if kind == 2:
        return <uint32_t>1 << below(dice, 32)
    if kind == 3:
        return (<uint32_t>1 << below(dice, 32)) - 1
    if kind == 4:
        return <uint32_t>0 - below(dice, 3)
    if kind == 5:
        return near * 2
    if kind == 6:
        return near - below(dice, 64) + below(dice, 64)
    return <uint32_t>roll(dice)

cdef inline void put_little(uint8_t* out, uint32_t value) noexcept nogil:   # digests are sent so
    out[0] = <uint8_t>value
    out[1] = <uint8_t>(value >> 8)
    out[2] = <uint8_t>(value >> 16)
    out[3] = <uint8_t>(value >> 24)

cdef inline uint32_t get_little(const uint8_t* from_) noexcept nogil:
    return from_[0] | (<uint32_t>from_[1] << 8) | (<uint32_t>from_[2] << 16) | (<uint32_t>from_[3] << 24)

cdef inline bint takes_data(uint8_t opcode) noexcept nogil:                 # data goes to the target
    return opcode in (0x0A, 0x2A, 0x2E, 0x2F, 0x41, 0x42, 0x15, 0x55, 0x5F, 0x83, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x93,
                      0x9C, 0xAA, 0xAE, 0xAF, 0x04, 0x48)

cdef inline bint has_lba(uint8_t opcode) noexcept nogil:
    return opcode in (0x08, 0x0A, 0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x41, 0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90,
                      0x91, 0x93, 0x9C, 0x9E, 0xA8, 0xAA, 0xAE, 0xAF)
