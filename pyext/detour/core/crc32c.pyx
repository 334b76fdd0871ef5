# CRC32C for digests and checksums: chooses a kernel of crc32c_impl.c when it is imported.
#
# Owns: the choice. DETOUR_CRC32C=portable|hardware names a kernel; a name that cannot run here is an import error
#       that says why, never a silent fallback. Without the variable the hardware kernel is taken where it runs.
# Invariants: every kernel answers the same bits (RFC 3720 B.4 vectors, tests/unit/test_crc32c.py); the choice is made
#       once, before any reactor runs, so it needs no lock.
# Cost: measured by bench/micro/test_index.py. One indirect call a span, never one a byte.
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

from detour.core.types cimport *


cdef extern from "crc32c_impl.h" nogil:
    ctypedef enum detour_crc32c_support:
        DETOUR_CRC32C_READY
        DETOUR_CRC32C_NOT_BUILT
        DETOUR_CRC32C_NO_CPU
        DETOUR_CRC32C_MISMATCH
    void detour_crc32c_setup() noexcept
    detour_crc32c_support detour_crc32c_hardware_support() noexcept
    void detour_crc32c_choose(int hardware) noexcept
    uint32_t detour_crc32c_portable(uint32_t crc, const void* data, size_t length) noexcept
    uint32_t detour_crc32c_hardware(uint32_t crc, const void* data, size_t length) noexcept
    uint32_t detour_crc32c_update(uint32_t crc, const void* data, size_t length) noexcept
    uint32_t detour_crc32c_copy(uint32_t crc, void* to, const void* source, size_t length) noexcept


cdef enum:
    GIL_KEPT_BYTES = 16384      # below, releasing and retaking the GIL costs more than the sum


cdef uint32_t crc32c_update(uint32_t crc, const void* data, size_t length_bytes) noexcept nogil:
    return detour_crc32c_update(crc, data, length_bytes)


cdef uint32_t crc32c_copy(uint32_t crc, void* to, const void* source, size_t length_bytes) noexcept nogil:
    return detour_crc32c_copy(crc, to, source, length_bytes)


cdef uint32_t crc32c_update_portable(uint32_t crc, const void* data, size_t length_bytes) noexcept nogil:
    return detour_crc32c_portable(crc, data, length_bytes)


cdef uint32_t crc32c_update_hardware(uint32_t crc, const void* data, size_t length_bytes) noexcept nogil:
    return detour_crc32c_hardware(crc, data, length_bytes)


def crc32c(data, uint32_t value=0):
    """CRC32C of a contiguous buffer, continued from `value` (RFC 7143 section 13.1, RFC 3720 appendix B.4).

    `crc32c(b, crc32c(a)) == crc32c(a + b)`. The GIL is released for long buffers.
    """
    cdef Py_buffer view
    cdef uint32_t crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len < GIL_KEPT_BYTES:
            crc = detour_crc32c_update(value, view.buf, <size_t> view.len)
        else:
            with nogil:
                crc = detour_crc32c_update(value, view.buf, <size_t> view.len)
    finally:
        PyBuffer_Release(&view)
    return crc


def crc32c_kernel():
    """Name of the kernel in use: "hardware" or "portable"."""
    return KERNEL


def crc32c_kernels():
    """Names of the kernels that run on this machine."""
    return ("hardware", "portable") if SUPPORT == DETOUR_CRC32C_READY else ("portable",)


cdef str _refusal(detour_crc32c_support support):
    if support == DETOUR_CRC32C_NOT_BUILT:
        return "this build has no hardware kernel for the processor's architecture"
    if support == DETOUR_CRC32C_NO_CPU:
        return "this processor lacks the instructions (SSE4.2 and PCLMULQDQ)"
    return "the hardware kernel disagrees with the reference on this processor"


cdef str _choose(str wanted):
    if wanted == "portable" or (not wanted and SUPPORT != DETOUR_CRC32C_READY):
        detour_crc32c_choose(0)
        return "portable"
    if wanted and wanted != "hardware":
        raise ImportError(f"DETOUR_CRC32C={wanted!r}: no such kernel; there are 'portable' and 'hardware'")
    if SUPPORT != DETOUR_CRC32C_READY:
        raise ImportError(f"DETOUR_CRC32C=hardware cannot run: {_refusal(SUPPORT)}")
    detour_crc32c_choose(1)
    return "hardware"


detour_crc32c_setup()
cdef detour_crc32c_support SUPPORT = detour_crc32c_hardware_support()
cdef str KERNEL = _choose(os.environ.get("DETOUR_CRC32C", ""))
