/* See filestore_impl.h. One mutex guards two lists; it is held for a few instructions, never during a system call on
 * the file. Every transfer goes on until its full length is done: EINTR and short transfers are no errors. */
#include "filestore_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

/* Status of types.pxd */
enum { STATUS_OK = 0, STATUS_IO = -2, STATUS_FULL = -4 };

enum { PIECE_BYTES = 1 << 20, DIRECT_ALIGN = 4096, STACK_BYTES = 256 << 10 };

struct job_list {
    struct file_job *head;
    struct file_job *tail;
};

struct file_workers {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct job_list queued;
    struct job_list done;
    pthread_t *threads;
    int threads_started;
    int fd;
    int direct;
    int event_fd;
    int stopping;
    pthread_mutex_t redo_mutex; /* one atomic write at a time: the redo file holds one */
    char *redo_path;
    int redo_fd;                /* -1: not opened yet */
};

static const uint8_t zeros[PIECE_BYTES] __attribute__((aligned(DIRECT_ALIGN)));

static void list_push(struct job_list *list, struct file_job *job) {
    job->next = NULL;
    if (list->tail)
        list->tail->next = job;
    else
        list->head = job;
    list->tail = job;
}

static struct file_job *list_pop(struct job_list *list) {
    struct file_job *job = list->head;
    if (job) {
        list->head = job->next;
        if (!list->head)
            list->tail = NULL;
        job->next = NULL;
    }
    return job;
}

static struct file_job *list_take(struct job_list *list) {
    struct file_job *head = list->head;
    list->head = list->tail = NULL;
    return head;
}

static int status_of_errno(void) {
    return errno == ENOSPC || errno == EDQUOT ? STATUS_FULL : STATUS_IO;
}

static int file_read(int fd, uint8_t *data, uint64_t length_bytes, uint64_t offset_bytes) {
    while (length_bytes > 0) {
        ssize_t moved = pread(fd, data, length_bytes, (off_t)offset_bytes);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return STATUS_IO;   /* 0: the file was cut short under us */
        data += moved;
        length_bytes -= (uint64_t)moved;
        offset_bytes += (uint64_t)moved;
    }
    return STATUS_OK;
}

static int file_flush(int fd) {
    while (fdatasync(fd) != 0) {
        if (errno != EINTR)
            return status_of_errno();
    }
    return STATUS_OK;
}

int file_write(int fd, const uint8_t *data, uint64_t length_bytes, uint64_t offset_bytes, int stable) {
    int flags = stable ? RWF_DSYNC : 0;
    int flush_after = 0;
    while (length_bytes > 0) {
        struct iovec piece = {(void *)data, length_bytes};
        ssize_t moved = pwritev2(fd, &piece, 1, (off_t)offset_bytes, flags);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved < 0 && flags && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS)) {
            flags = 0;          /* this file takes no flags: write, then flush */
            flush_after = 1;
            continue;
        }
        if (moved <= 0)
            return status_of_errno();
        data += moved;
        length_bytes -= (uint64_t)moved;
        offset_bytes += (uint64_t)moved;
    }
    return flush_after ? file_flush(fd) : STATUS_OK;
}

int64_t file_read_now(int fd, uint8_t *data, uint64_t length_bytes, uint64_t offset_bytes) {
    struct iovec piece = {data, length_bytes};
    ssize_t moved = preadv2(fd, &piece, 1, (off_t)offset_bytes, RWF_NOWAIT);
    if (moved >= 0)
        return moved;
    return errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL ? -1 : 0;
}

static int file_unmap(int fd, uint64_t length_bytes, uint64_t offset_bytes) {
    static const int modes[] = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    size_t i = 0;
    int status = STATUS_OK;
    while (i < sizeof(modes) / sizeof(modes[0])) {
        if (fallocate(fd, modes[i], (off_t)offset_bytes, (off_t)length_bytes) == 0)
            return STATUS_OK;
        if (errno != EINTR)
            i++;
    }
    while (length_bytes > 0 && status == STATUS_OK) {
        uint64_t piece_bytes = length_bytes < PIECE_BYTES ? length_bytes : PIECE_BYTES;
        status = file_write(fd, zeros, piece_bytes, offset_bytes, 0);
        length_bytes -= piece_bytes;
        offset_bytes += piece_bytes;
    }
    return status;
}

/* Whether the range begins with data or with a hole, and for how far. A block that holds both is data. A file system or
 * device that cannot tell (EINVAL) has data everywhere. */
static int file_map(int fd, struct file_job *job) {
    uint64_t end = job->offset_bytes + job->length_bytes;
    uint64_t block_bytes = job->block_bytes;
    off_t data = lseek(fd, (off_t)job->offset_bytes, SEEK_DATA);
    uint64_t data_block = end;
    off_t hole;
    job->mapped = 1;
    if (data < 0 && errno != ENXIO)         /* ENXIO: a hole up to the end of the file */
        return errno == EINVAL || errno == EOPNOTSUPP || errno == ESPIPE ? STATUS_OK : STATUS_IO;
    if (data >= 0)
        data_block = (uint64_t)data - (uint64_t)data % block_bytes;
    if (data_block > job->offset_bytes) {
        job->mapped = 0;
        if (data_block < end)
            job->length_bytes = data_block - job->offset_bytes;
        return STATUS_OK;
    }
    hole = lseek(fd, data, SEEK_HOLE);
    if (hole >= 0 && (uint64_t)hole < end) {
        uint64_t hole_block = ((uint64_t)hole + block_bytes - 1) / block_bytes * block_bytes;
        if (hole_block < end)
            job->length_bytes = hole_block - job->offset_bytes;
    }
    return STATUS_OK;
}

/* Moves a job's data through an aligned buffer, piece by piece: O_DIRECT takes no other memory. */
static int move_by_bounce(int fd, struct file_job *job, uint8_t *bounce) {
    uint64_t done = 0;
    int status = STATUS_OK;
    while (done < job->length_bytes && status == STATUS_OK) {
        uint64_t piece_bytes = job->length_bytes - done < PIECE_BYTES ? job->length_bytes - done : PIECE_BYTES;
        if (job->op == FILE_READ) {
            status = file_read(fd, bounce, piece_bytes, job->offset_bytes + done);
            if (status == STATUS_OK)
                memcpy(job->data + done, bounce, piece_bytes);
        } else {
            memcpy(bounce, job->data + done, piece_bytes);
            status = file_write(fd, bounce, piece_bytes, job->offset_bytes + done, job->stable);
        }
        done += piece_bytes;
    }
    return status;
}

/* ---- atomic writes: first whole and stable in the redo file, then in place, then the redo file is cleared ---- */

/* The name of a new file is stable only when its folder is. */
static int flush_folder(const char *path) {
    char folder[4096];
    size_t length = strlen(path);
    int fd, status;
    if (length >= sizeof(folder))
        return STATUS_IO;
    memcpy(folder, path, length + 1);
    while (length > 0 && folder[length - 1] != '/')
        length--;
    strcpy(folder + length, ".");
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return STATUS_IO;
    status = fsync(fd) == 0 ? STATUS_OK : STATUS_IO;
    close(fd);
    return status;
}

static int redo_open(struct file_workers *workers) {
    if (workers->redo_fd >= 0)
        return STATUS_OK;
    workers->redo_fd = open(workers->redo_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return workers->redo_fd < 0 ? STATUS_IO : flush_folder(workers->redo_path);
}

static int redo_keep(struct file_workers *workers, const struct file_job *job) {
    uint64_t header_bytes = sizeof(job->redo_header);
    int status = redo_open(workers);
    if (status == STATUS_OK)
        status = file_write(workers->redo_fd, job->redo_header, header_bytes, 0, 0);
    if (status == STATUS_OK)
        status = file_write(workers->redo_fd, job->data, job->length_bytes, header_bytes, 0);
    return status == STATUS_OK ? file_flush(workers->redo_fd) : status;
}

static int redo_clear(struct file_workers *workers) {
    int status = file_write(workers->redo_fd, zeros, sizeof(((struct file_job *)0)->redo_header), 0, 0);
    return status == STATUS_OK ? file_flush(workers->redo_fd) : status;
}

/* Room is taken first, so that a full file system is met before a byte has changed. A file system that cannot promise
 * room is taken at its word. */
static int reserve_room(int fd, const struct file_job *job) {
    while (fallocate(fd, 0, (off_t)job->offset_bytes, (off_t)job->length_bytes) != 0) {
        if (errno == ENOSPC || errno == EDQUOT)
            return STATUS_FULL;
        if (errno != EINTR)
            return STATUS_OK;
    }
    return STATUS_OK;
}

static int run_job(struct file_workers *workers, struct file_job *job, uint8_t **bounce);

static int run_atomic(struct file_workers *workers, struct file_job *job, uint8_t **bounce) {
    int status, cleared;
    if (!workers->redo_path)
        return STATUS_IO;
    job->atomic = 0;            /* from here on an ordinary, stable write */
    job->stable = 1;
    pthread_mutex_lock(&workers->redo_mutex);
    status = reserve_room(workers->fd, job);
    if (status == STATUS_OK)
        status = redo_keep(workers, job);
    if (status == STATUS_OK) {
        status = run_job(workers, job, bounce);
        cleared = redo_clear(workers);
        status = status == STATUS_OK ? cleared : status;
    }
    pthread_mutex_unlock(&workers->redo_mutex);
    return status;
}

static int run_job(struct file_workers *workers, struct file_job *job, uint8_t **bounce) {
    if (job->op == FILE_FLUSH)
        return file_flush(workers->fd);
    if (job->op == FILE_UNMAP)
        return file_unmap(workers->fd, job->length_bytes, job->offset_bytes);
    if (job->op == FILE_MAP)
        return file_map(workers->fd, job);
    if (job->op == FILE_WRITE && job->atomic)
        return run_atomic(workers, job, bounce);
    if (workers->direct && (uintptr_t)job->data % DIRECT_ALIGN != 0) {
        if (!*bounce && posix_memalign((void **)bounce, DIRECT_ALIGN, PIECE_BYTES) != 0) {
            *bounce = NULL;
            return STATUS_IO;
        }
        return move_by_bounce(workers->fd, job, *bounce);
    }
    if (job->op == FILE_READ)
        return file_read(workers->fd, job->data, job->length_bytes, job->offset_bytes);
    return file_write(workers->fd, job->data, job->length_bytes, job->offset_bytes, job->stable);
}

static void finish_job(struct file_workers *workers, struct file_job *job) {
    /* mutex is held */
    int first = workers->done.head == NULL;
    uint64_t one = 1;
    list_push(&workers->done, job);
    if (first) {
        ssize_t written = write(workers->event_fd, &one, sizeof(one));
        (void)written;          /* fails only when the counter is full, and then it is readable already */
    }
}

static void *worker(void *argument) {
    struct file_workers *workers = argument;
    uint8_t *bounce = NULL;
    pthread_mutex_lock(&workers->mutex);
    while (!workers->stopping) {
        struct file_job *job = list_pop(&workers->queued);
        if (!job) {
            pthread_cond_wait(&workers->wake, &workers->mutex);
            continue;
        }
        pthread_mutex_unlock(&workers->mutex);
        job->status = run_job(workers, job, &bounce);
        pthread_mutex_lock(&workers->mutex);
        finish_job(workers, job);
    }
    pthread_mutex_unlock(&workers->mutex);
    free(bounce);
    return NULL;
}

static int start_threads(struct file_workers *workers, int threads) {
    pthread_attr_t attributes;
    sigset_t all, before;
    if (pthread_attr_init(&attributes) != 0)
        return -1;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);        /* threads inherit it: signals go to Python's main thread */
    while (workers->threads_started < threads) {
        pthread_t *thread = &workers->threads[workers->threads_started];
        if (pthread_create(thread, &attributes, worker, workers) != 0)
            break;
        pthread_setname_np(*thread, "detour-file");
        workers->threads_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return workers->threads_started == threads ? 0 : -1;
}

struct file_workers *file_workers_start(int fd, int threads, int direct) {
    struct file_workers *workers = calloc(1, sizeof(*workers));
    if (!workers)
        return NULL;
    pthread_mutex_init(&workers->mutex, NULL);
    pthread_cond_init(&workers->wake, NULL);
    pthread_mutex_init(&workers->redo_mutex, NULL);
    workers->redo_fd = -1;
    workers->fd = fd;
    workers->direct = direct;
    workers->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    workers->threads = calloc((size_t)threads, sizeof(pthread_t));
    if (workers->event_fd < 0 || !workers->threads || start_threads(workers, threads) != 0) {
        file_workers_stop(workers);
        return NULL;
    }
    return workers;
}

int file_workers_redo(struct file_workers *workers, const char *path) {
    workers->redo_path = strdup(path);
    return workers->redo_path ? 0 : -1;
}

int file_workers_event_fd(const struct file_workers *workers) {
    return workers->event_fd;
}

void file_workers_submit(struct file_workers *workers, struct file_job *job) {
    pthread_mutex_lock(&workers->mutex);
    list_push(&workers->queued, job);
    pthread_mutex_unlock(&workers->mutex);
    pthread_cond_signal(&workers->wake);
}

struct file_job *file_workers_take_done(struct file_workers *workers) {
    struct file_job *head;
    uint64_t count;
    ssize_t moved = read(workers->event_fd, &count, sizeof(count));
    (void)moved;
    pthread_mutex_lock(&workers->mutex);
    head = list_take(&workers->done);
    pthread_mutex_unlock(&workers->mutex);
    return head;
}

struct file_job *file_workers_take_queued(struct file_workers *workers) {
    struct file_job *head;
    pthread_mutex_lock(&workers->mutex);
    head = list_take(&workers->queued);
    pthread_mutex_unlock(&workers->mutex);
    return head;
}

void file_workers_stop(struct file_workers *workers) {
    int i;
    pthread_mutex_lock(&workers->mutex);
    workers->stopping = 1;
    pthread_mutex_unlock(&workers->mutex);
    pthread_cond_broadcast(&workers->wake);
    for (i = 0; i < workers->threads_started; i++)
        pthread_join(workers->threads[i], NULL);
    pthread_mutex_destroy(&workers->mutex);
    pthread_cond_destroy(&workers->wake);
    pthread_mutex_destroy(&workers->redo_mutex);
    free(workers->redo_path);
    if (workers->redo_fd >= 0)
        close(workers->redo_fd);
    if (workers->event_fd >= 0)
        close(workers->event_fd);
    free(workers->threads);
    free(workers);
}
