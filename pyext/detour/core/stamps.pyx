# Reads an image of an ordered load (loadgen.pxd) by itself: no store, no loop. One pass over the image for the newest
# number, one look at each unit for the rest.
from detour.core.stamps cimport *

cdef struct Image:
    const uint8_t* data
    uint64_t first_sector       # of the region, on the store that the load ran on
    uint64_t unit_bytes
    uint64_t units
    uint64_t seed_word


def ordered_prefix(data, *, seed=1, unit_bytes=4096, offset_bytes=0):
    """What an image (bytes-like) of the region of an ORDERED load holds.

    Answers (newest, wrong): the newest number in the image, and the first unit that does not hold the newest number
    up to there that belongs to it, or -1. With wrong == -1 the image is a point in time of that image.
    """
    cdef const uint8_t[::1] view = data
    cdef Image image
    cdef uint64_t units = view.shape[0] // unit_bytes
    cdef uint64_t newest = 0
    cdef int64_t wrong = -1
    if units < ORDERED_REGIONS:
        raise ValueError(f"the image is smaller than {ORDERED_REGIONS} units")
    image.data = &view[0]
    image.first_sector = offset_bytes // STAMP_BYTES
    image.unit_bytes = unit_bytes
    image.units = units
    image.seed_word = stamp_mix(seed)
    with nogil:
        newest = ordered_newest(&image)
        wrong = ordered_wrong(&image, newest)
    return newest, wrong


cdef uint32_t ordered_version(const Image* image, uint64_t unit) noexcept nogil:
    # The version of a whole unit, 0: it holds none.
    cdef uint32_t first = 0
    cdef uint32_t version = 0
    cdef uint64_t index, place
    cdef uint64_t sectors = image.unit_bytes // STAMP_BYTES
    cdef uint64_t sector = image.first_sector + unit * sectors
    for index in range(image.unit_bytes // STAMP_BYTES):
        place = index * STAMP_BYTES
        if stamp_read(image.data + unit * image.unit_bytes + place, image.seed_word, sector + index,
                      &version) != STAMP_GOOD or (place and version != first):
            return 0
        first = version
    return first


cdef uint64_t ordered_newest(const Image* image) noexcept nogil:
    cdef uint64_t unit
    cdef uint64_t newest = 0
    cdef uint32_t version
    for unit in range(image.units):
        version = ordered_version(image, unit)
        if version > newest:
            newest = version
    return newest


cdef int64_t ordered_wrong(const Image* image, uint64_t newest) noexcept nogil:
    # The last numbers, one for each unit (or as many as there are), must all be there.
    cdef uint64_t count = image.units // ORDERED_REGIONS * ORDERED_REGIONS
    cdef uint64_t number, unit
    for number in range(newest - count if newest > count else 0, newest):
        unit = stamp_ordered_unit(image.units, number)
        if ordered_version(image, unit) != number + 1:
            return <int64_t>unit
    return -1
