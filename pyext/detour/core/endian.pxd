# Big-endian loads and stores of unaligned fields, as the wire has them.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "endian.h" nogil:
    uint16_t get_be16(const uint8_t* p) noexcept
    uint32_t get_be24(const uint8_t* p) noexcept
    uint32_t get_be32(const uint8_t* p) noexcept
    uint64_t get_be48(const uint8_t* p) noexcept
    uint64_t get_be64(const uint8_t* p) noexcept
    void put_be16(uint8_t* p, uint16_t v) noexcept
    void put_be24(uint8_t* p, uint32_t v) noexcept
    void put_be32(uint8_t* p, uint32_t v) noexcept
    void put_be48(uint8_t* p, uint64_t v) noexcept
    void put_be64(uint8_t* p, uint64_t v) noexcept
