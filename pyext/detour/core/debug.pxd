# `invariant` costs nothing in a release build. It never checks what comes from network or disk: that is always checked.
cdef extern from "debug.h" nogil:
    void invariant(bint condition, const char* message) noexcept
    bint likely(bint condition) noexcept
    bint unlikely(bint condition) noexcept
    enum: DETOUR_DEBUG
