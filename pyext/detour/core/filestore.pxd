# Files and block devices: reads and writes by worker threads (pthreads in filestore_impl.c; they never see Python), so
# that a slow disk never stops the loop. Reads that the page cache has are done at once (preadv2 RWF_NOWAIT).
from detour.core.types cimport *
from detour.core.store cimport Store, StoreHandle, Io
from detour.core.reactor cimport Timer, Watch
from detour.core.pool cimport Slab

cdef struct FileStore:
    Store store
    int fd
    void* workers               # struct file_workers of filestore_impl.c
    Watch watch                 # eventfd of finished jobs
    Slab jobs                   # what is at the workers: bounded
    Io* backlog_head            # waits for a job
    Io* backlog_tail
    Io* paced_head              # writes that wait for the rate
    Io* paced_tail
    Timer pace
    ns_t paced_until_ns         # when the bytes written so far are paid for
    bint try_now                # reads try the page cache first
    uint64_t inode              # of the file: a redo file belongs to one
    bint inline_writes          # write into the page cache from the loop thread (plain target: a disk's own behaviour)
    uint64_t rate_bytes_s       # bound on written bytes a second, 0: none

# FileStoreHandle(reactor, path, size_bytes=None, create=False, read_only=False, workers=4, inline_writes=False,
#                 block_bytes=512, direct=False, store_id=0, redo_path=None)
#   create=True with size_bytes makes a sparse file of that size (one that is there keeps its content and must have that
#   size); without it the size is the file's or the device's. preallocate() reserves the room. set_write_rate(bytes_s).
#   .path .size_bytes
cdef class FileStoreHandle(StoreHandle):
    cdef FileStore* file
    cdef readonly object path
