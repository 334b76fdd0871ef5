# Extents in a B+tree: which journal entry holds the newest content of an LBA.
#
# Owns: nodes of NODE_BYTES in arenas of ARENA_BYTES, and a free list; arenas are taken from the system, never one
#       node.
# Invariants: extents are sorted and do not overlap; none is empty. All leaves are on one level, linked both ways in
#       LBA order; none is empty but the root. keys[i] of an inner node is exactly the first LBA below children[i],
#       for i > 0; keys[0] is not looked at, the way down to it is open to the left. A node under a quarter full is
#       joined with a neighbour when both then leave room for more.
# Nodes that a change may need are set aside before it begins, so that it is done whole or not at all: one split a
#       level for each of at most two additions.
# Cost: a node is searched by halves, 62 entries wide, its cache lines fetched at once: 10 million extents are 5
#       levels and about half a microsecond where nothing is in the cache. Overwriting an extent exactly changes its
#       slot in place. Sequential insertion packs leaves full; memory is 16 bytes an extent, times 1.0 to 1.6.
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset

from detour.core.debug cimport invariant, likely, unlikely
from detour.core.types cimport *


cdef extern from * nogil:
    void prefetch "__builtin_prefetch"(const void* at) noexcept

cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t alignment, size_t size) noexcept

cdef enum:
    NODE_BYTES = 1024
    ENTRIES_MAX = 62            # of a leaf or an inner node
    ENTRIES_SPARSE = 15         # below, a neighbour to join with is looked for
    ENTRIES_JOINED = 46         # as many at most after joining, so that the next addition does not split again
    HEIGHT_MAX = 16
    CACHE_LINE_BYTES = 64
    LEAF_LINES = 16             # all of the node
    INNER_LINES = 9             # head and keys
    ARENA_BYTES = 262144
    ARENA_NODES = 255           # the first slot holds the arena's head

cdef struct Branches:
    lba_t keys[ENTRIES_MAX]
    Node* children[ENTRIES_MAX]

cdef union NodeBody:
    Extent extents[ENTRIES_MAX]
    Branches branches

cdef struct Node:
    uint64_t count
    Node* next                  # leaf: neighbour; free node: next free one
    Node* prev
    NodeBody body

cdef struct Arena:
    Arena* next

cdef struct Path:               # the way from the root to a leaf
    Node* nodes[HEIGHT_MAX]
    uint64_t index[HEIGHT_MAX]

# ---- nodes ----

cdef int _arena_add(Extents* tree) noexcept nogil:
    cdef Arena* arena
    if tree.bytes_max != 0 and tree.bytes_used + ARENA_BYTES > tree.bytes_max:
        return E_NOMEM
    arena = <Arena*> aligned_alloc(NODE_BYTES, ARENA_BYTES)
    if arena == NULL:
        return E_NOMEM
    _arena_rest_to_list(tree)
    arena.next = <Arena*> tree.arenas
    tree.arenas = arena
    tree.arena_next = <uint8_t*> arena + NODE_BYTES
    tree.bytes_used += ARENA_BYTES
    tree.nodes_free += ARENA_NODES
    return OK


cdef inline uint8_t* _arena_end(const Extents* tree) noexcept nogil:
    return <uint8_t*> tree.arenas + ARENA_BYTES


# What is left untouched of the newest arena goes to the free list before another arena becomes the newest.
cdef void _arena_rest_to_list(Extents* tree) noexcept nogil:
    cdef Node* node
    if tree.arenas == NULL:
        return
    while <uint8_t*> tree.arena_next < _arena_end(tree):
        node = <Node*> tree.arena_next
        node.next = <Node*> tree.free_nodes
        tree.free_nodes = node
        tree.arena_next = <uint8_t*> tree.arena_next + NODE_BYTES


cdef inline int _set_aside(Extents* tree, uint64_t nodes) noexcept nogil:
    if likely(tree.nodes_free >= nodes):
        return OK
    return _arena_add(tree)


# Never fails: the nodes were set aside.
cdef Node* _node_get(Extents* tree) noexcept nogil:
    cdef Node* node = <Node*> tree.free_nodes
    if node != NULL:
        tree.free_nodes = node.next
    else:
        invariant(<uint8_t*> tree.arena_next < _arena_end(tree), b"nodes are set aside before they are taken")
        node = <Node*> tree.arena_next
        tree.arena_next = <uint8_t*> tree.arena_next + NODE_BYTES
    tree.nodes_free -= 1
    tree.nodes_used += 1
    node.count = 0
    node.next = NULL
    node.prev = NULL
    return node


cdef void _node_put(Extents* tree, Node* node) noexcept nogil:
    node.next = <Node*> tree.free_nodes
    tree.free_nodes = node
    tree.nodes_free += 1
    tree.nodes_used -= 1


# ---- life ----

cdef int extents_init(Extents* tree) noexcept nogil:
    invariant(sizeof(Node) <= NODE_BYTES, b"a node fits into its slot")
    memset(tree, 0, sizeof(Extents))
    if _arena_add(tree) < 0:
        return E_NOMEM
    tree.root = _node_get(tree)
    tree.height = 1
    return OK


cdef void extents_free(Extents* tree) noexcept nogil:
    cdef Arena* arena = <Arena*> tree.arenas
    cdef Arena* following
    while arena != NULL:
        following = arena.next
        free(arena)
        arena = following
    memset(tree, 0, sizeof(Extents))


cdef void extents_clear(Extents* tree) noexcept nogil:
    cdef Arena* kept = <Arena*> tree.arenas
    cdef Arena* arena
    while kept.next != NULL:
        arena = kept.next
        kept.next = arena.next
        free(arena)
    tree.bytes_used = ARENA_BYTES
    tree.arena_next = <uint8_t*> kept + NODE_BYTES
    tree.free_nodes = NULL
    tree.nodes_free = ARENA_NODES
    tree.nodes_used = 0
    tree.extents_count = 0
    tree.blocks_count = 0
    tree.root = _node_get(tree)
    tree.height = 1


# ---- search ----

# Asks for the cache lines of a node's keys at once, so that the search by halves waits for memory once, not at each
# step.
cdef inline void _prefetch(const Node* node, bint leaf) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*> node
    cdef int line
    for line in range(LEAF_LINES if leaf else INNER_LINES):
        prefetch(at + line * CACHE_LINE_BYTES)



# How many entries of a leaf begin at or before `lba`. Halving without a branch that could be guessed wrong.
cdef inline uint64_t _leaf_upper(const Node* leaf, lba_t lba) noexcept nogil:
    cdef const Extent* base = &leaf.body.extents[0]
    cdef uint64_t length = leaf.count
    cdef uint64_t half
    while length > 1:
        half = length >> 1
        base += half * <uint64_t> (base[half - 1].lba <= lba)
        length -= half
    return <uint64_t> (base - &leaf.body.extents[0]) + <uint64_t> (length == 1 and base[0].lba <= lba)


# The child to go down to: the last whose key is not behind `lba`, else the first.
cdef inline uint64_t _child_index(const Node* inner, lba_t lba) noexcept nogil:
    cdef const lba_t* base = inner.body.branches.keys + 1
    cdef uint64_t length = inner.count - 1
    cdef uint64_t half
    if length == 0:
        return 0
    while length > 1:
        half = length >> 1
        base += half * <uint64_t> (base[half - 1] <= lba)
        length -= half
    return <uint64_t> (base - (inner.body.branches.keys + 1)) + <uint64_t> (base[0] <= lba)


cdef inline lba_t _end(const Extent* extent) noexcept nogil:
    return extent.lba + extent.blocks


# The first extent of the leaf that ends behind `lba`; leaf.count when there is none.
cdef inline uint64_t _first_behind(const Node* leaf, lba_t lba) noexcept nogil:
    cdef uint64_t index = _leaf_upper(leaf, lba)
    if index > 0 and _end(&leaf.body.extents[index - 1]) > lba:
        return index - 1
    return index


cdef Node* _descend(const Extents* tree, lba_t lba, Path* path) noexcept nogil:
    cdef Node* node = <Node*> tree.root
    cdef uint64_t index
    cdef int level
    for level in range(tree.height - 1):
        index = _child_index(node, lba)
        path.nodes[level] = node
        path.index[level] = index
        node = node.body.branches.children[index]
        _prefetch(node, level + 2 == tree.height)
    path.nodes[tree.height - 1] = node
    return node


cdef bint extents_find(const Extents* tree, lba_t lba, ExtentCursor* cursor, Extent* out) noexcept nogil:
    cdef Node* node = <Node*> tree.root
    cdef int level
    for level in range(tree.height - 1):
        node = node.body.branches.children[_child_index(node, lba)]
        _prefetch(node, level + 2 == tree.height)
    cursor.tree = tree
    cursor.leaf = node
    cursor.index = <int> _first_behind(node, lba) - 1
    return extents_next(cursor, out)


cdef bint extents_next(ExtentCursor* cursor, Extent* out) noexcept nogil:
    cdef Node* leaf = <Node*> cursor.leaf
    cursor.index += 1
    if <uint64_t> cursor.index >= leaf.count:
        if leaf.next == NULL:
            cursor.index = <int> leaf.count - 1     # asked again, the answer is the same
            return False
        leaf = leaf.next
        cursor.leaf = leaf
        cursor.index = 0
    out[0] = leaf.body.extents[cursor.index]
    return True


# ---- shape ----

# The first LBA below path.nodes[level] is `lba` now: the key that leads there says so too.
cdef void _key_follows(const Path* path, int level, lba_t lba) noexcept nogil:
    while level > 0:
        level -= 1
        if path.index[level] > 0:
            path.nodes[level].body.branches.keys[path.index[level]] = lba
            return


cdef inline void _inner_insert(Node* inner, uint64_t index, lba_t key, Node* child) noexcept nogil:
    cdef Branches* branches = &inner.body.branches
    memmove(&branches.keys[index + 1], &branches.keys[index], (inner.count - index) * sizeof(lba_t))
    memmove(&branches.children[index + 1], &branches.children[index], (inner.count - index) * sizeof(Node*))
    branches.keys[index] = key
    branches.children[index] = child
    inner.count += 1


cdef inline void _inner_remove(Node* inner, uint64_t index) noexcept nogil:
    cdef Branches* branches = &inner.body.branches
    inner.count -= 1
    memmove(&branches.keys[index], &branches.keys[index + 1], (inner.count - index) * sizeof(lba_t))
    memmove(&branches.children[index], &branches.children[index + 1], (inner.count - index) * sizeof(Node*))


# Splits a full inner node; the upper half is answered. Entries added at the very end leave the lower part full.
cdef Node* _inner_split(Extents* tree, Node* inner, uint64_t index) noexcept nogil:
    cdef Node* upper = _node_get(tree)
    cdef uint64_t kept = ENTRIES_MAX if index == ENTRIES_MAX else ENTRIES_MAX // 2
    upper.count = inner.count - kept
    memcpy(upper.body.branches.keys, &inner.body.branches.keys[kept], upper.count * sizeof(lba_t))
    memcpy(upper.body.branches.children, &inner.body.branches.children[kept], upper.count * sizeof(Node*))
    inner.count = kept
    return upper


# Hangs `child`, whose first LBA is `key`, in behind the child on the path at `level`; splits upwards as far as needed.
cdef void _child_add(Extents* tree, Path* path, int level, lba_t key, Node* child) noexcept nogil:
    cdef Node* inner
    cdef Node* upper
    cdef uint64_t index
    while level >= 0:
        inner = path.nodes[level]
        index = path.index[level] + 1
        if inner.count < ENTRIES_MAX:
            _inner_insert(inner, index, key, child)
            return
        upper = _inner_split(tree, inner, index)
        if index > inner.count or upper.count == 0:
            _inner_insert(upper, index - inner.count, key, child)
        else:
            _inner_insert(inner, index, key, child)
        key = upper.body.branches.keys[0]
        child = upper
        level -= 1
    invariant(tree.height < HEIGHT_MAX, b"the tree's height is bounded")
    inner = _node_get(tree)
    inner.count = 2
    inner.body.branches.keys[0] = 0
    inner.body.branches.children[0] = <Node*> tree.root
    inner.body.branches.keys[1] = key
    inner.body.branches.children[1] = child
    tree.root = inner
    tree.height += 1


cdef Node* _leaf_split(Extents* tree, Node* leaf, uint64_t index) noexcept nogil:
    cdef Node* upper = _node_get(tree)
    cdef uint64_t kept = ENTRIES_MAX if index == ENTRIES_MAX and leaf.next == NULL else ENTRIES_MAX // 2
    upper.count = leaf.count - kept
    memcpy(upper.body.extents, &leaf.body.extents[kept], upper.count * sizeof(Extent))
    leaf.count = kept
    upper.prev = leaf
    upper.next = leaf.next
    if leaf.next != NULL:
        leaf.next.prev = upper
    leaf.next = upper
    return upper


cdef void _leaf_unlink(Node* leaf) noexcept nogil:
    if leaf.prev != NULL:
        leaf.prev.next = leaf.next
    if leaf.next != NULL:
        leaf.next.prev = leaf.prev


# Moves all of `right` behind `left`; both are on the level, neighbours, `key` leads to `right`.
cdef void _join(Extents* tree, Node* left, Node* right, bint leaves, lba_t key) noexcept nogil:
    if leaves:
        memcpy(&left.body.extents[left.count], right.body.extents, right.count * sizeof(Extent))
        _leaf_unlink(right)
    else:
        right.body.branches.keys[0] = key
        memcpy(&left.body.branches.keys[left.count], right.body.branches.keys, right.count * sizeof(lba_t))
        memcpy(&left.body.branches.children[left.count], right.body.branches.children, right.count * sizeof(Node*))
    left.count += right.count
    _node_put(tree, right)


# Joins path.nodes[level] with a neighbour under the same parent where both fit; answers whether the parent lost a
# child.
cdef bint _join_sparse(Extents* tree, Path* path, int level) noexcept nogil:
    cdef Node* node = path.nodes[level]
    cdef Node* parent = path.nodes[level - 1]
    cdef uint64_t index = path.index[level - 1]
    cdef bint leaves = level == tree.height - 1
    cdef Branches* branches = &parent.body.branches
    if index + 1 < parent.count and node.count + branches.children[index + 1].count <= ENTRIES_JOINED:
        _join(tree, node, branches.children[index + 1], leaves, branches.keys[index + 1])
        _inner_remove(parent, index + 1)
        return True
    if index > 0 and node.count + branches.children[index - 1].count <= ENTRIES_JOINED:
        _join(tree, branches.children[index - 1], node, leaves, branches.keys[index])
        _inner_remove(parent, index)
        return True
    return False


# Entries have left the leaf on the path: empty nodes go, sparse ones are joined, a root with one child gives way to it.
# Keys above are right already unless the leaf is empty.
cdef void _shrink(Extents* tree, Path* path) noexcept nogil:
    cdef int level = tree.height - 1
    cdef Node* node
    while level > 0:
        node = path.nodes[level]
        if node.count == 0:
            if level == tree.height - 1:
                _leaf_unlink(node)
            _node_put(tree, node)
            _inner_remove(path.nodes[level - 1], path.index[level - 1])
            if path.index[level - 1] == 0 and path.nodes[level - 1].count > 0:
                _key_follows(path, level - 1, path.nodes[level - 1].body.branches.keys[0])
        elif node.count >= ENTRIES_SPARSE or not _join_sparse(tree, path, level):
            break
        level -= 1
    node = <Node*> tree.root
    if tree.height > 1 and node.count == 0:
        tree.height = 1                             # the last leaf went: the root is an empty leaf again
    while tree.height > 1 and node.count == 1:
        tree.root = node.body.branches.children[0]
        tree.height -= 1
        _node_put(tree, node)
        node = <Node*> tree.root


# ---- change ----

# Takes `count` extents out of the leaf on the path.
cdef void _leaf_take(Extents* tree, Path* path, uint64_t index, uint64_t count) noexcept nogil:
    cdef Node* leaf = path.nodes[tree.height - 1]
    cdef Extent* extents = leaf.body.extents
    leaf.count -= count
    tree.extents_count -= count
    memmove(&extents[index], &extents[index + count], (leaf.count - index) * sizeof(Extent))
    if index == 0 and leaf.count > 0:
        _key_follows(path, tree.height - 1, extents[0].lba)
    if leaf.count < ENTRIES_SPARSE:
        _shrink(tree, path)


cdef inline bint _touches(const Extent* left, const Extent* right) noexcept nogil:
    return left.slot == right.slot and _end(left) == right.lba and left.blocks <= ~right.blocks


# Lets a neighbour of the same slot in the leaf take [lba, lba+blocks) in, or both neighbours become one.
cdef bint _grow_neighbour(Extents* tree, Path* path, uint64_t index, const Extent* added) noexcept nogil:
    cdef Node* leaf = path.nodes[tree.height - 1]
    cdef Extent* left = &leaf.body.extents[index] - 1
    cdef Extent* right = &leaf.body.extents[index]
    if index > 0 and _touches(left, added):
        left.blocks += added.blocks
        if index < leaf.count and _touches(left, right):
            left.blocks += right.blocks
            _leaf_take(tree, path, index, 1)
        return True
    if index < leaf.count and _touches(added, right):
        right.lba = added.lba
        right.blocks += added.blocks        # at index 0 only in the first leaf of all, to which no key leads
        return True
    return False


# Adds at `index` of the leaf on the path, where nothing is.
cdef void _add_at(Extents* tree, Path* path, uint64_t index, const Extent* added) noexcept nogil:
    cdef Node* leaf = path.nodes[tree.height - 1]
    cdef Node* target = leaf
    cdef Node* upper = NULL
    tree.blocks_count += added.blocks
    if _grow_neighbour(tree, path, index, added):
        return
    tree.extents_count += 1
    if unlikely(leaf.count == ENTRIES_MAX):
        upper = _leaf_split(tree, leaf, index)
        if index > leaf.count or upper.count == 0:
            index -= leaf.count
            target = upper
    memmove(&target.body.extents[index + 1], &target.body.extents[index], (target.count - index) * sizeof(Extent))
    target.body.extents[index] = added[0]
    target.count += 1
    if upper != NULL:
        _child_add(tree, path, tree.height - 2, upper.body.extents[0].lba, upper)


cdef inline void _tell(Extents* tree, extent_replaced_fn replaced, void* owner, uint32_t slot,
                       lba_t blocks) noexcept nogil:
    tree.blocks_count -= blocks
    if replaced != NULL:
        replaced(owner, slot, <blocks_t> blocks)


# `cut` begins before `at` and reaches into [at, end). What lies behind `end` stays, as an extent of its own.
cdef void _cut_middle(Extents* tree, Extent* cut, lba_t at, lba_t end, extent_replaced_fn replaced,
                      void* owner) noexcept nogil:
    cdef Path path
    cdef Extent rest
    cdef Node* leaf
    cdef lba_t cut_end = _end(cut)
    cut.blocks = <blocks_t> (at - cut.lba)
    if cut_end <= end:
        _tell(tree, replaced, owner, cut.slot, cut_end - at)
        return
    rest.lba = end
    rest.blocks = <blocks_t> (cut_end - end)
    rest.slot = cut.slot
    _tell(tree, replaced, owner, rest.slot, end - at)
    tree.blocks_count -= rest.blocks                # _add_at counts them again
    leaf = _descend(tree, end, &path)
    _add_at(tree, &path, _leaf_upper(leaf, end), &rest)


# Takes what lies in [at, end) out of one leaf, from its first extent that ends behind `at`. Answers where to go on;
# `end` when all is done.
cdef lba_t _carve_leaf(Extents* tree, Path* path, lba_t at, lba_t end, int64_t only_slot, extent_replaced_fn replaced,
                       void* owner) noexcept nogil:
    cdef Node* leaf = path.nodes[tree.height - 1]
    cdef Extent* extents = leaf.body.extents
    cdef uint64_t first = _first_behind(leaf, at)
    cdef uint64_t index
    cdef lba_t behind
    while only_slot >= 0 and first < leaf.count and extents[first].slot != <uint64_t> only_slot:
        first += 1
    if first == leaf.count:
        return leaf.next.body.extents[0].lba if leaf.next != NULL else end
    if extents[first].lba >= end:
        return end
    if extents[first].lba < at:
        behind = _end(&extents[first])
        _cut_middle(tree, &extents[first], at, end, replaced, owner)
        return behind
    index = first
    while index < leaf.count and _end(&extents[index]) <= end \
            and (only_slot < 0 or extents[index].slot == <uint64_t> only_slot):
        at = _end(&extents[index])
        _tell(tree, replaced, owner, extents[index].slot, extents[index].blocks)
        index += 1
    if index > first:
        _leaf_take(tree, path, first, index - first)
        return at
    _tell(tree, replaced, owner, extents[first].slot, end - extents[first].lba)
    extents[first].blocks = <blocks_t> (_end(&extents[first]) - end)
    extents[first].lba = end
    if first == 0:
        _key_follows(path, tree.height - 1, end)
    return end


cdef void _carve(Extents* tree, lba_t at, lba_t end, int64_t only_slot, extent_replaced_fn replaced,
                 void* owner) noexcept nogil:
    cdef Path path
    while at < end:
        _descend(tree, at, &path)
        at = _carve_leaf(tree, &path, at, end, only_slot, replaced, owner)


# Overwrites the extent at `index` in place when it covers the same blocks and no neighbour could take the new one in.
cdef bint _overwrite(Node* leaf, uint64_t index, const Extent* added, extent_replaced_fn replaced,
                     void* owner) noexcept nogil:
    cdef Extent* there = &leaf.body.extents[index]
    cdef uint32_t before
    if index == leaf.count or there.lba != added.lba or there.blocks != added.blocks:
        return False
    if index > 0 and (there - 1).slot == added.slot:
        return False
    if index + 1 < leaf.count and (there + 1).slot == added.slot:
        return False
    before = there.slot
    there.slot = added.slot
    if replaced != NULL:
        replaced(owner, before, added.blocks)
    return True


cdef bint _is_free(const Node* leaf, uint64_t index, lba_t end) noexcept nogil:
    if index < leaf.count:
        return leaf.body.extents[index].lba >= end
    return leaf.next == NULL or leaf.next.body.extents[0].lba >= end


cdef int extents_insert(Extents* tree, lba_t lba, blocks_t blocks, uint32_t slot, extent_replaced_fn replaced,
                        void* owner) noexcept nogil:
    cdef Path path
    cdef Node* leaf
    cdef Extent added
    cdef uint64_t index
    if blocks == 0:
        return OK
    if lba + blocks < lba:
        return E_RANGE
    added.lba = lba
    added.blocks = blocks
    added.slot = slot
    leaf = _descend(tree, lba, &path)
    index = _first_behind(leaf, lba)
    if _overwrite(leaf, index, &added, replaced, owner):
        return OK
    if _set_aside(tree, 2 * (<uint64_t> tree.height + 1)) < 0:
        return E_NOMEM
    if not _is_free(leaf, index, lba + blocks):
        _carve(tree, lba, lba + blocks, -1, replaced, owner)
        leaf = _descend(tree, lba, &path)
        index = _leaf_upper(leaf, lba)
    _add_at(tree, &path, index, &added)
    return OK


cdef int extents_remove(Extents* tree, lba_t lba, blocks_t blocks, int64_t only_slot, extent_replaced_fn replaced,
                        void* owner) noexcept nogil:
    cdef ExtentCursor cursor
    cdef Extent there
    if blocks == 0:
        return OK
    if lba + blocks < lba:
        return E_RANGE
    # Only a range inside of one extent adds to the tree: that one is split.
    if not extents_find(tree, lba, &cursor, &there) or there.lba >= lba + blocks:
        return OK
    if there.lba < lba and _end(&there) > lba + blocks and _set_aside(tree, <uint64_t> tree.height + 1) < 0:
        return E_NOMEM
    _carve(tree, lba, lba + blocks, only_slot, replaced, owner)
    return OK


# ---- check ----

# Counts what is wrong below `node`, whose extents lie in [low, high), and begin exactly at `low` where `exact`.
cdef uint64_t _check_node(const Extents* tree, const Node* node, int level, lba_t low, lba_t high, bint exact,
                          uint64_t* nodes) noexcept nogil:
    cdef uint64_t wrong = 0
    cdef uint64_t index
    cdef lba_t child_low, child_high
    nodes[0] += 1
    if node.count > ENTRIES_MAX or (node.count == 0 and node != <const Node*> tree.root):
        return 1
    if level == tree.height - 1:
        wrong += exact and node.body.extents[0].lba != low
        for index in range(node.count):
            wrong += node.body.extents[index].blocks == 0 or node.body.extents[index].lba < low
            low = _end(&node.body.extents[index])
        return wrong + <uint64_t> (low > high)
    for index in range(node.count):
        child_low = node.body.branches.keys[index] if index > 0 else low
        child_high = node.body.branches.keys[index + 1] if index + 1 < node.count else high
        wrong += child_low < low or child_high > high or child_low >= child_high
        wrong += _check_node(tree, node.body.branches.children[index], level + 1, child_low, child_high,
                             exact or index > 0, nodes)
    return wrong


cdef uint64_t _check_leaves(const Extents* tree) noexcept nogil:
    cdef const Node* leaf = <const Node*> tree.root
    cdef const Node* before = NULL
    cdef uint64_t wrong = 0
    cdef uint64_t extents_count = 0
    cdef uint64_t blocks_count = 0
    cdef uint64_t index
    cdef int level
    for level in range(tree.height - 1):
        leaf = leaf.body.branches.children[0]
    while leaf != NULL:
        wrong += leaf.prev != before
        extents_count += leaf.count
        for index in range(leaf.count):
            blocks_count += leaf.body.extents[index].blocks
        before = leaf
        leaf = leaf.next
    return wrong + <uint64_t> (extents_count != tree.extents_count) + <uint64_t> (blocks_count != tree.blocks_count)


cdef uint64_t extents_check(const Extents* tree) noexcept nogil:
    cdef uint64_t nodes = 0
    cdef uint64_t free_listed = 0
    cdef uint64_t wrong = _check_node(tree, <const Node*> tree.root, 0, 0, ~(<lba_t> 0), False, &nodes)
    cdef const Node* unused = <const Node*> tree.free_nodes
    while unused != NULL:
        free_listed += 1
        unused = unused.next
    wrong += <uint64_t> (_arena_end(tree) - <uint8_t*> tree.arena_next) // NODE_BYTES + free_listed != tree.nodes_free
    wrong += nodes != tree.nodes_used
    wrong += (tree.nodes_used + tree.nodes_free) * ARENA_BYTES != tree.bytes_used * ARENA_NODES
    return wrong + _check_leaves(tree)
