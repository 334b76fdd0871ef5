/* Worker threads that read, write, flush and punch one file descriptor. They never see Python. */
#ifndef DETOUR_FILESTORE_IMPL_H
#define DETOUR_FILESTORE_IMPL_H
#include <stdint.h>

enum file_op { FILE_READ = 0, FILE_WRITE = 1, FILE_FLUSH = 2, FILE_UNMAP = 3, FILE_MAP = 4 };

struct file_job {
    struct file_job *next;      /* the workers' while submitted */
    void *owner;                /* the caller's */
    uint8_t *data;
    uint64_t offset_bytes;
    uint64_t length_bytes;
    int32_t status;             /* a Status of types.pxd when done */
    uint8_t op;                 /* enum file_op */
    uint8_t stable;             /* a write that is on the medium when done */
    uint8_t atomic;             /* a write of which no part is ever there alone; stable when done */
    uint8_t mapped;             /* FILE_MAP: the first length_bytes (set when done) are data, else a hole */
    uint32_t block_bytes;       /* FILE_MAP: what the answer is a multiple of */
    uint8_t redo_header[64];    /* of an atomic write: how it stands in the redo file, before its data (filestore.pyx) */
};

struct file_workers;

/* NULL when threads or descriptors are out. `direct`: fd is open with O_DIRECT, data may lie anywhere all the same. */
struct file_workers *file_workers_start(int fd, int threads, int direct);
/* Before the first atomic write: where the redo file is, or is to be made. -1 when memory is out. */
int file_workers_redo(struct file_workers *workers, const char *path);
int file_workers_event_fd(const struct file_workers *workers);          /* readable when jobs are done */
void file_workers_submit(struct file_workers *workers, struct file_job *job);
struct file_job *file_workers_take_done(struct file_workers *workers);  /* all of them, oldest first; resets the eventfd */
struct file_job *file_workers_take_queued(struct file_workers *workers); /* those that no thread has begun */
void file_workers_stop(struct file_workers *workers);                   /* waits for running jobs, frees the rest */

/* Reads what the page cache has, without waiting for the medium: bytes read, 0 for none, -1 where that is not offered. */
int64_t file_read_now(int fd, uint8_t *data, uint64_t length_bytes, uint64_t offset_bytes);
int file_write(int fd, const uint8_t *data, uint64_t length_bytes, uint64_t offset_bytes, int stable);  /* a Status */
#endif
