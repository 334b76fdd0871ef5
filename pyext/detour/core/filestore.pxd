# Files and block devices: reads and writes by worker threads (pthreads in filestore_impl.c; they never see Python), so
# that a slow disk never stops the loop. Reads that the page cache has are done at once (preadv2 RWF_NOWAIT).
from detour.core.types cimport *
from detour.core.store cimport Store, StoreHandle, Io
from detour.core.reactor cimport Watch

cdef struct FileStore:
    Store store
    int fd
    void* workers               # filestore_impl.c
    Watch watch                 # eventfd of finished jobs
    bint inline_writes          # write into the page cache from the loop thread (plain target: a disk's own behaviour)
    uint64_t rate_bytes_s       # tests and throttling: bound on written bytes a second, 0: none
    int fail_after_errors

# FileStore(reactor, path, size_bytes=None, create=False, read_only=False, workers=4, inline_writes=False, block_bytes=512,
#           direct=False)
#   size_bytes with create=True makes a sparse file of that size; without it the size is the file's or the device's.
#   preallocate() reserves the room. .path .size_bytes
cdef class FileStoreHandle(StoreHandle):
    cdef FileStore* file
    cdef readonly object path
