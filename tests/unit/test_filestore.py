"""Files by worker threads: data, sizes, unmap, pacing, errors and closing with work under way."""
import errno
import gc
import os
import random
import resource
import signal

import pytest

from detour.core.filestore import FileStoreHandle
from detour.core.reactor import Reactor

SIZE = 8 << 20
E_IO, E_RANGE, E_FULL, E_CLOSED, E_UNSUPPORTED = -2, -3, -4, -7, -10


@pytest.fixture
def reactor():
    return Reactor()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


class Asker:
    """Turns the reactor until a ticket is answered."""

    def __init__(self, reactor):
        self.reactor = reactor
        self.answers = {}

    def __call__(self, ticket):
        for _ in range(10000):
            if ticket in self.answers:
                return self.answers.pop(ticket)
            self.reactor.turn(100)
            for _, number, status, _, data in self.reactor.drain():
                self.answers[number] = (status, data)
        raise AssertionError(f"ticket {ticket} was never answered")


@pytest.fixture
def ask(reactor):
    return Asker(reactor)


def evict(path):
    """Drops a file from the page cache, where the file system follows such advice."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("options", [{}, {"inline_writes": True}, {"workers": 1}, {"direct": True}])
def test_random_access_agrees_with_a_bytearray(reactor, ask, image, options):
    model = bytearray(image.read_bytes())
    try:
        store = FileStoreHandle(reactor, image, **options)
    except OSError as error:
        assert options == {"direct": True} and error.errno == errno.EINVAL
        pytest.skip("this file system has no O_DIRECT")
    chance = random.Random(7)
    align = 4096 if options.get("direct") else 512
    for step in range(150):
        offset = chance.randrange(SIZE // align) * align
        length = min(chance.choice([align, 2 * align, 65536, 1 << 20]), SIZE - offset)
        kind = chance.randrange(4)
        if kind == 0:
            assert ask(store.submit_read(offset, length)) == (0, bytes(model[offset:offset + length]))
        elif kind == 1:
            assert ask(store.submit_unmap(offset, length))[0] == 0
            model[offset:offset + length] = bytes(length)
        else:
            data = chance.randbytes(length)
            assert ask(store.submit_write(offset, data, fua=kind == 3)) == (0, None)
            model[offset:offset + length] = data
        if step % 50 == 0:
            evict(image)
    assert ask(store.submit_flush()) == (0, None)
    assert ask(store.close()) == (0, None)
    assert image.read_bytes() == model


def test_many_requests_at_once_all_end(reactor, ask, image):
    before = image.read_bytes()
    store = FileStoreHandle(reactor, image, workers=3)
    evict(image)
    writes = {store.submit_write(i * 512, bytes([i % 251]) * 512): i for i in range(0, 4000, 2)}
    for ticket in writes:
        assert ask(ticket)[0] == 0
    reads = {store.submit_read(i * 512, 512): i for i in range(4000)}
    for ticket, i in reads.items():
        assert ask(ticket) == (0, before[i * 512:i * 512 + 512] if i % 2 else bytes([i % 251]) * 512)
    assert store.in_flight == 0


def test_create_makes_a_sparse_file_and_keeps_one_that_is_there(reactor, ask, tmp_path):
    path = tmp_path / "new"
    store = FileStoreHandle(reactor, path, 64 << 20, create=True)
    assert (store.size_bytes, store.path) == (64 << 20, str(path))
    assert os.stat(path).st_blocks == 0
    assert os.stat(path).st_mode & 0o077 == 0
    ask(store.submit_write(0, b"k" * 512))
    ask(store.close())
    again = FileStoreHandle(reactor, path, 64 << 20, create=True)
    assert ask(again.submit_read(0, 512)) == (0, b"k" * 512)
    with pytest.raises(OSError, match="67108864 bytes, not 512"):
        FileStoreHandle(reactor, path, 512, create=True)


def test_preallocate_reserves_the_room(reactor, tmp_path):
    store = FileStoreHandle(reactor, tmp_path / "full", 4 << 20, create=True)
    try:
        store.preallocate()
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        pytest.skip("this file system has no fallocate")
    assert os.stat(store.path).st_blocks * 512 >= 4 << 20


def test_unmap_gives_room_back(reactor, ask, image):
    store = FileStoreHandle(reactor, image)
    ask(store.submit_flush())
    before = os.stat(image).st_blocks
    assert ask(store.submit_unmap(0, SIZE))[0] == 0
    assert ask(store.submit_read(0, 1 << 20)) == (0, bytes(1 << 20))
    assert os.stat(image).st_blocks <= before
    assert os.stat(image).st_size == SIZE


def test_unusable_paths_are_refused(reactor, tmp_path, image):
    with pytest.raises(FileNotFoundError):
        FileStoreHandle(reactor, tmp_path / "none")
    with pytest.raises(OSError):
        FileStoreHandle(reactor, tmp_path)
    with pytest.raises(OSError):
        FileStoreHandle(reactor, "/dev/null")
    with pytest.raises(ValueError):
        FileStoreHandle(reactor, image, create=True)
    with pytest.raises(ValueError):
        FileStoreHandle(reactor, image, workers=0)
    with pytest.raises(ValueError):
        FileStoreHandle(reactor, image, block_bytes=1000)
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 700)
    with pytest.raises(ValueError, match="not a number of blocks"):
        FileStoreHandle(reactor, odd)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError):
        FileStoreHandle(reactor, tmp_path / "empty")


def test_read_only(reactor, ask, image):
    store = FileStoreHandle(reactor, image, read_only=True)
    assert ask(store.submit_write(0, bytes(512)))[0] == E_UNSUPPORTED
    assert ask(store.submit_read(0, 512))[0] == 0


def test_a_file_cut_short_is_an_error_and_not_zeros(reactor, ask, image):
    store = FileStoreHandle(reactor, image)
    os.truncate(image, 4096)
    assert ask(store.submit_read(4096, 512))[0] == E_IO
    assert ask(store.submit_read(3584, 1024))[0] == E_IO
    assert ask(store.submit_read(3584, 512))[0] == 0


def test_a_write_that_the_system_refuses_is_an_error(reactor, ask, tmp_path):
    path = tmp_path / "large"
    store = FileStoreHandle(reactor, path, 1 << 20, create=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        assert ask(store.submit_write(8192, bytes(512)))[0] in (E_IO, E_FULL)
        assert ask(store.submit_write(0, bytes(512)))[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)


def test_the_write_rate_is_kept(reactor, ask, image):
    reactor.set_clock(10**9)
    store = FileStoreHandle(reactor, image, inline_writes=True)
    ask(store.set_write_rate(1 << 20))
    tickets = [store.submit_write(i << 19, b"r" * (1 << 19)) for i in range(4)]
    for _ in range(5):
        reactor.turn()
    done = {item[1] for item in reactor.drain()}
    assert done == {tickets[0]}
    for i in range(1, 4):
        reactor.set_clock(10**9 + i * 500_000_000 - 1)
        reactor.turn()
        assert reactor.drain() == []
        reactor.set_clock(10**9 + i * 500_000_000)
        reactor.turn()
        assert [item[1] for item in reactor.drain()] == [tickets[i]]


def test_paced_writes_go_on_when_the_rate_is_lifted(reactor, ask, image):
    reactor.set_clock(10**9)
    store = FileStoreHandle(reactor, image)
    ask(store.set_write_rate(1))
    tickets = [store.submit_write(i * 512, b"r" * 512) for i in range(3)]
    lift = store.set_write_rate(0)
    ask(lift)
    reactor.set_clock(10**9 + 1)
    for ticket in tickets:
        assert ask(ticket)[0] == 0


def test_closing_answers_each_request_once(reactor, image):
    store = FileStoreHandle(reactor, image, workers=2)
    evict(image)
    tickets = [store.submit_write((i % 64) << 16, bytes(1 << 16)) for i in range(600)] + [store.submit_flush()]
    close = store.close()
    got = []
    while close not in [ticket for ticket, _ in got]:
        reactor.turn(100)
        got += [(item[1], item[2]) for item in reactor.drain()]
    assert sorted(ticket for ticket, _ in got) == sorted([*tickets, close])
    assert {status for _, status in got} <= {0, E_CLOSED}
    assert got[-1] == (close, 0)


def test_paced_writes_end_when_the_store_is_closed(reactor, ask, image):
    store = FileStoreHandle(reactor, image)
    ask(store.set_write_rate(1))
    tickets = [store.submit_write(0, bytes(512)) for _ in range(3)]
    close = store.close()
    assert ask(close)[0] == 0
    assert [ask(ticket)[0] for ticket in tickets[1:]] == [E_CLOSED, E_CLOSED]


def test_threads_and_descriptors_are_given_back(reactor, ask, image):
    gc.collect()                    # what earlier tests dropped must not go while this one counts
    tasks = len(os.listdir("/proc/self/task"))
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        store = FileStoreHandle(reactor, image, workers=3)
        assert len(os.listdir("/proc/self/task")) == tasks + 3
        ask(store.submit_read(0, 512))
        ask(store.close())
    dropped = FileStoreHandle(reactor, image, workers=3)
    dropped.submit_write(0, bytes(512))
    reactor.turn()
    del dropped, store
    gc.collect()
    assert len(os.listdir("/proc/self/task")) == tasks
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_signals_are_blocked_in_the_worker_threads(reactor, image):
    before = set(os.listdir("/proc/self/task"))
    store = FileStoreHandle(reactor, image, workers=1)
    (task,) = set(os.listdir("/proc/self/task")) - before
    with open(f"/proc/self/task/{task}/status") as status:
        blocked = next(line for line in status if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) & (1 << 14)      # SIGTERM
    del store


def test_it_works_with_a_running_reactor(image):
    reactor = Reactor()
    reactor.start()
    store = FileStoreHandle(reactor, image)
    tickets = {store.submit_write(i * 4096, bytes([i]) * 4096) for i in range(100)}
    while tickets:
        tickets -= {item[1] for item in reactor.drain()}
    close = store.close()
    while close not in {item[1] for item in reactor.drain()}:
        pass
    reactor.stop()
    assert image.read_bytes()[:409600] == b"".join(bytes([i]) * 4096 for i in range(100))
