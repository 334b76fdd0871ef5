"""A page of a journal's mapping that the medium cannot bring: zeros and a mark, in a process of its own; any other
SIGBUS goes where it went before."""
import signal
import subprocess
import sys

OPEN = """
import mmap, os, signal, sys
from detour.core.journal import JournalHandle
from detour.core.reactor import Reactor
reactor = Reactor()
path = sys.argv[1]
handle = JournalHandle.create(reactor, path, 8 << 20, 512, 4096)
"""


def run(tmp_path, script):
    return subprocess.run([sys.executable, "-c", OPEN + script, str(tmp_path / "j")], capture_output=True, text=True,
                          timeout=60, check=False)


def test_a_lost_page_is_zeros_and_the_journal_has_failed(tmp_path):
    done = run(tmp_path, """
assert not handle.failed
os.truncate(path, 4096)
found = handle.entries()
assert int(found["seq"].sum()) == 0 and handle.failed
memory = memoryview(handle.mapping)
assert memory[-1] == 0 and bytes(memory[:4]) == bytes(memory[:4]), "what is there still is"
assert bytes(memory[:8]).strip(bytes(1)), "the first page was not lost"
print("alive")
""")
    assert done.returncode == 0 and "alive" in done.stdout, done.stderr


def test_a_write_into_pages_that_cannot_be_made_ready_is_noticed(tmp_path):
    done = run(tmp_path, """
from detour.core._testing_journal import JournalHarness
journal = JournalHarness(handle)
assert journal.write(0, bytes(4096))[0] == 0 and not handle.failed
os.truncate(path, 4096)
for number in range(64):
    status = journal.write(8 * number, bytes(4096))[0]
assert status == 0 and handle.failed and handle.stats["fault"] < 0
print("alive")
""")
    assert done.returncode == 0 and "alive" in done.stdout, done.stderr


def test_a_foreign_one_ends_the_process_as_before(tmp_path):
    done = run(tmp_path, """
with open(path + "2", "wb+") as other:
    other.truncate(8192)
    view = mmap.mmap(other.fileno(), 8192)
    os.truncate(path + "2", 0)
    print("touching", flush=True)
    view[5000]
""")
    assert done.returncode == -signal.SIGBUS and "touching" in done.stdout, done


def test_the_handler_from_before_is_asked_about_a_foreign_one(tmp_path):
    script = "import faulthandler; faulthandler.enable()\n" + OPEN + """
os.kill(os.getpid(), signal.SIGBUS)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "k")], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == -signal.SIGBUS and "Bus error" in done.stderr, done
