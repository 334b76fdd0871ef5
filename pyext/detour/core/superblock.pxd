# Superblock copies of a mapped journal, before it is open.
from detour.core.types cimport *
from detour.core.mapping cimport Mapping

# Index of the copy that counts; the others are brought to what it says, where they are damaged or of another phase, and
# `healed` gets a sentence for each damaged one. Raises UsageError where there is no journal, CorruptError where it is damaged.
# `failed`: the medium does not flush; it is not asked any more, and what is brought in line is so in memory.
cdef int newest_copy(Mapping mapping, list healed, bint* failed) except -1
# A new random number for a life of the rings.
cdef uint32_t another_generation(uint32_t generation) except? 0
# Writes an empty journal: the superblock copies, and zeros before the data where something else was.
cdef int format_mapping(Mapping mapping, uint64_t size_bytes, uint32_t block_bytes, uint64_t volume_blocks,
                        bytes note) except -1
