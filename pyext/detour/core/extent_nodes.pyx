# See extent_nodes.pxd.
#
# Owns: a piece of address space for each tree, of which as much may be touched as the tree has asked for, and a list of
#       free nodes. Numbers instead of pointers make nodes small; one piece makes large pages possible.
# Invariants: nodes_free counts the list and what is untouched; number 0 is no node. bytes_used never passes bytes_max.
# Cost: memory comes in steps of STEP_BYTES, from LARGE_FROM_BYTES on of STEP_LARGE_BYTES, which is a page of that size
#       where the system has one: a search among ten million extents then finds its page without a walk. Smaller trees
#       gain nothing from such pages, and would hold up to twice what they use. A step is one system call.
from detour.core.debug cimport invariant
from detour.core.extent_hints cimport hints_begin, hints_free

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset) noexcept
    int munmap(void* address, size_t length) noexcept
    int mprotect(void* address, size_t length, int protection) noexcept
    int madvise(void* address, size_t length, int advice) noexcept
    int PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED, MADV_HUGEPAGE
    void* MAP_FAILED

cdef enum:
    STEP_BYTES = 262144
    STEP_LARGE_BYTES = 2097152
    LARGE_FROM_BYTES = 8388608
    RESERVED_LEAST_BYTES = 67108864

cdef uint64_t RESERVED_BYTES = <uint64_t>16 << 30       # of address space, not of memory


# ---- memory ----

cdef int nodes_init(Extents* tree) noexcept nogil:
    invariant(sizeof(Node) == NODE_BYTES, b"a node fills its place")
    tree.reserved_bytes = RESERVED_BYTES
    tree.reserved = mmap(NULL, tree.reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    while tree.reserved == MAP_FAILED and tree.reserved_bytes > RESERVED_LEAST_BYTES:
        tree.reserved_bytes //= 2                       # a bound on the process's address space
        tree.reserved = mmap(NULL, tree.reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if tree.reserved == MAP_FAILED:
        tree.reserved = NULL
        return E_NOMEM
    tree.nodes = <uint8_t*>((<uint64_t>tree.reserved + STEP_LARGE_BYTES - 1) // STEP_LARGE_BYTES * STEP_LARGE_BYTES)
    tree.node_next = 1
    if nodes_grow(tree) < 0:
        nodes_free(tree)
        return E_NOMEM
    return OK


cdef void nodes_free(Extents* tree) noexcept nogil:
    hints_free(tree)
    if tree.reserved != NULL:
        munmap(tree.reserved, tree.reserved_bytes)
        tree.reserved = NULL


cdef int nodes_grow(Extents* tree) noexcept nogil:
    cdef uint64_t step = STEP_BYTES if tree.nodes_bytes < LARGE_FROM_BYTES else STEP_LARGE_BYTES
    if tree.bytes_max != 0 and tree.bytes_used + step > tree.bytes_max:
        return E_NOMEM
    if <uint64_t>tree.nodes + tree.nodes_bytes + step > <uint64_t>tree.reserved + tree.reserved_bytes:
        return E_NOMEM
    if mprotect(tree.nodes + tree.nodes_bytes, step, PROT_READ | PROT_WRITE) != 0:
        return E_NOMEM
    if step == STEP_LARGE_BYTES:
        madvise(tree.nodes + tree.nodes_bytes, step, MADV_HUGEPAGE)     # where there are none it is as before
    tree.nodes_free += step // NODE_BYTES - (1 if tree.nodes_bytes == 0 else 0)
    tree.nodes_bytes += step
    tree.bytes_used += step
    hints_begin(tree)
    return OK


cdef void nodes_clear(Extents* tree) noexcept nogil:
    hints_free(tree)
    if tree.nodes_bytes > STEP_BYTES:
        madvise(tree.nodes + STEP_BYTES, tree.nodes_bytes - STEP_BYTES, MADV_DONTNEED)
    tree.nodes_bytes = STEP_BYTES
    tree.bytes_used = STEP_BYTES
    tree.node_next = 1
    tree.free_nodes = 0
    tree.nodes_free = STEP_BYTES // NODE_BYTES - 1
    tree.nodes_used = 0


cdef Node* node_get(Extents* tree, int level) noexcept nogil:
    cdef Node* node
    if tree.free_nodes != 0:
        node = node_at(tree, tree.free_nodes)
        tree.free_nodes = node.next
    else:
        invariant(<uint64_t>tree.node_next * NODE_BYTES < tree.nodes_bytes, b"nodes are set aside before they are taken")
        node = node_at(tree, tree.node_next)
        tree.node_next += 1
    tree.nodes_free -= 1
    tree.nodes_used += 1
    node.count = 0
    node.level = <uint8_t>level
    node.length_bytes = 0
    node.next = 0
    if level == 0:
        node.body.leaf.previous = 0
        node.body.leaf.base = 0
    return node


cdef void node_put(Extents* tree, Node* node) noexcept nogil:
    node.next = tree.free_nodes
    tree.free_nodes = node_number(tree, node)
    tree.nodes_free += 1
    tree.nodes_used -= 1


# ---- extents in a leaf ----

# Bytes for each length of extents of which one is `longest`.
cdef inline uint8_t _length_bytes(bint one_length, blocks_t longest) noexcept nogil:
    return 0 if one_length else 2 if longest <= 0xFFFF else 4


cdef uint64_t leaf_holds(const Extent* extents, uint64_t count) noexcept nogil:
    cdef bint one_length = True
    cdef blocks_t longest = 0
    cdef uint64_t index
    for index in range(count):
        one_length = one_length and extents[index].blocks == extents[0].blocks
        longest = max(longest, extents[index].blocks)
        if index >= leaf_room(_length_bytes(one_length, longest)) or extents[index].lba - extents[0].lba > OFFSET_MAX:
            return index
    return count


cdef void leaf_pack(Node* leaf, const Extent* extents, uint64_t count) noexcept nogil:
    cdef bint one_length = True
    cdef blocks_t longest = 0
    cdef uint64_t index
    for index in range(count):
        one_length = one_length and extents[index].blocks == extents[0].blocks
        longest = max(longest, extents[index].blocks)
    leaf.count = <uint16_t>count
    leaf.length_bytes = _length_bytes(one_length, longest)
    leaf.body.leaf.base = extents[0].lba
    leaf.body.leaf.blocks = extents[0].blocks
    for index in range(count):
        leaf_put(leaf, index, &extents[index])


cdef void leaf_unpack(const Node* leaf, Extent* out) noexcept nogil:
    cdef uint64_t index
    for index in range(leaf.count):
        leaf_get(leaf, index, &out[index])
