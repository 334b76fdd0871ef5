"""Foreign initiators on one disk: libiscsi's tools, its conformance suite, qemu-img and qemu-io, all through URLs.

`Clients(folder, portal, target, lun)` runs them one after the other; each method raises AssertionError with what the
program said when something is wrong. `work` is everything that changes the disk, in an order and with content that a
seed fixes, so that two disks that were equal before have to be equal afterwards.
"""
from __future__ import annotations

import random
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

PEERS = ("iscsi-ls", "iscsi-inq", "iscsi-readcapacity16", "iscsi-test-cu", "qemu-img", "qemu-io")
SECONDS = 90
# Read*, Write*, WriteVerify*, Verify*, ReadCapacity* and the rest of what a host's disk must pass.
FAMILIES = (
    "Read6", "Read10", "Read12", "Read16", "ReadCapacity10", "ReadCapacity16", "ReadDefectData10", "ReadDefectData12",
    "ReadOnly", "Write10", "Write12", "Write16", "WriteAtomic16", "WriteSame10", "WriteSame16", "WriteVerify10",
    "WriteVerify12", "WriteVerify16", "Verify10", "Verify12", "Verify16", "Inquiry", "TestUnitReady",
    "ReportSupportedOpcodes", "iSCSIResiduals",
)
SLOW_FAMILY = "iSCSIcmdsn"      # waits six seconds for answers that must not come: runs beside the others
# Which of these may pass over tests, because a disk need not have what they ask for.
OPTIONAL = {"CompareAndWrite", "ReadDefectData10", "ReadDefectData12", "ReadOnly", "WriteAtomic16", "WriteSame10",
            "WriteSame16", "ReportSupportedOpcodes"}
PREAMBLE = "PERSISTENT RESERVE IN is not implemented"      # asked before and after each family
PAGES = (0x00, 0x80, 0x83, 0xB0)
KIB = 1024
OPERATIONS = 120


def run(*words: str | Path, seconds: float = SECONDS) -> str:
    """What a program says on both outputs; AssertionError when it fails or hangs."""
    try:
        done = subprocess.run([str(word) for word in words], timeout=seconds, check=False, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{words[0]} did not end within {seconds} s: {error.output!r}") from None
    text = done.stdout.decode(errors="backslashreplace")
    assert done.returncode == 0, f"{' '.join(map(str, words))} ended with {done.returncode}\n{text}"
    return text


@dataclass
class Conformance:
    """What iscsi-test-cu found: tests that passed, and those of them that were passed over, with the reason."""

    passed: int = 0
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.passed} tests passed, of which {len(self.skipped)} found nothing to test"
        return "\n".join([head, *self.skipped])


def conform(url: str, family: str) -> Conformance:
    """Runs a family of iscsi-test-cu; AssertionError if a test fails, none runs, or one of a must is passed over."""
    text = run("iscsi-test-cu", "--dataloss", "-t", f"ALL.{family}", url)
    found = re.search(r"^\s+tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", text, re.MULTILINE)
    assert found is not None, text
    total, ran, passed, failed = (int(number) for number in found.groups())
    assert total == ran == passed > 0 and failed == 0, text
    skipped = []
    for part in re.split(r"^\s+Test: ", text, flags=re.MULTILINE)[1:]:
        reasons = [line for line in re.findall(r"\[SKIPPED\] (.*)", part) if PREAMBLE not in line]
        if reasons:
            skipped.append(f"{family}.{part.split()[0]}: {reasons[0].strip()}")
    assert not skipped or family in OPTIONAL, f"{skipped}\n{text}"
    return Conformance(passed, skipped)


class Patterns:
    """Commands for qemu-io from a seed, and what the disk holds after them."""

    def __init__(self, image: bytes, seed: int) -> None:
        self.model = bytearray(image)
        self.random = random.Random(seed)
        self.written: list[tuple[int, int, int]] = []
        self.commands: list[str] = []
        self.open: list[tuple[int, int]] = []       # where asynchronous writes are under way
        for _ in range(OPERATIONS):
            self.random.choice([self.write, self.write, self.write, self.zeroes, self.discard, self.read, self.read,
                                self.vector, self.later, self.flush])()
        self.flush()

    def place(self, step: int, length_max: int) -> tuple[int, int]:
        length = self.random.randint(1, length_max // step) * step
        return self.random.randrange(0, len(self.model) - length, step), length

    def keep(self, at: int, length: int, value: int) -> None:
        self.model[at:at + length] = bytes([value]) * length
        self.written.append((at, length, value))

    def write(self) -> None:
        at, length = self.place(self.random.choice([1, 512, 4096]), self.random.choice([8 * KIB, 300 * KIB]))
        value = self.random.randrange(1, 256)
        self.keep(at, length, value)
        self.commands.append(f"write {self.random.choice(['', '-f '])}-P {value} {at} {length}")

    def vector(self) -> None:
        at, length = self.place(1024, 16 * KIB)
        value = self.random.randrange(1, 256)
        self.keep(at, length, value)
        self.commands.append(f"writev -P {value} {at} 512 {length - 512}")

    def later(self) -> None:
        for _ in range(4):
            at, length = self.place(512, 128 * KIB)
            value = self.random.randrange(1, 256)
            if any(at < end and at + length > start for start, end in self.open):
                continue
            self.open.append((at, at + length))
            self.keep(at, length, value)
            self.commands.append(f"aio_write -P {value} {at} {length}")
        self.open.clear()
        self.commands.append("aio_flush")

    def zeroes(self) -> None:
        at, length = self.place(self.random.choice([1, 512, 4096]), 1024 * KIB)
        self.keep(at, length, 0)
        self.commands.append(f"write -z {self.random.choice(['', '-u ', '-f '])}{at} {length}")

    def discard(self) -> None:
        """In units that every disk here can unmap and then reads as zeros."""
        at, length = self.place(64 * KIB, 1024 * KIB)
        self.keep(at, length, 0)
        self.commands.append(f"discard {at} {length}")

    def read(self) -> None:
        """Of something that was written and not, or not differently, written again."""
        whole = [(at, length, value) for at, length, value in self.written[-20:]
                 if self.model.count(value, at, at + length) == length]
        if whole:
            at, length, value = self.random.choice(whole)
            first = self.random.randrange(length)
            self.commands.append(f"read -P {value} {at + first} {length - first}")

    def flush(self) -> None:
        self.commands.append("flush")


class Clients:
    """Foreign clients of one disk. `portal` is where they log in; where that sends them is not theirs to know."""

    def __init__(self, folder: Path, portal: str, target: str, lun: int) -> None:
        self.folder = folder
        self.portal, self.target, self.lun = portal, target, lun
        self.url = f"iscsi://{portal}/{target}/{lun}"

    def luns(self) -> list[str]:
        """What iscsi-ls lists of the target; its portal and this disk are checked."""
        text = run("iscsi-ls", "-s", f"iscsi://{self.portal}/")
        assert f"Target:{self.target} Portal:{self.portal}," in text, text
        found = re.findall(r"^Lun:\d+ .*$", text, re.MULTILINE)
        assert any(re.match(rf"Lun:{self.lun}\s+Type:DIRECT_ACCESS \(Size:\d+M\)", line) for line in found), text
        return found

    def describe(self) -> dict[str, str]:
        """What the tools that ask tell of the disk, by the name of the question."""
        told = {"inquiry": run("iscsi-inq", self.url), "capacity": run("iscsi-readcapacity16", self.url)}
        for page in PAGES:
            told[f"page {page:#x}"] = run("iscsi-inq", "-e", "1", "-c", str(page), self.url)
        return told

    def read_out(self) -> bytes:
        """The whole disk, by qemu-img."""
        place = self.folder / "out.img"
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", self.url, place)
        content = place.read_bytes()
        place.unlink()
        return content

    def write_in(self, content: bytes) -> None:
        """An image onto the whole disk, by qemu-img."""
        place = self.folder / "in.img"
        place.write_bytes(content)
        run("qemu-img", "convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", place, self.url)
        place.unlink()

    def exercise(self, commands: list[str]) -> str:
        """qemu-io. It ends with 0 after a command that failed if a later one worked, hence the look at its words."""
        words = [word for command in commands for word in ("-c", command)]
        text = run("qemu-io", "-f", "raw", "-t", "none", "-d", "unmap", *words, self.url)
        assert not re.search(r"fail|error|invalid|mismatch|not found", text, re.IGNORECASE), text
        return text

    def patterns(self, seed: int) -> None:
        """qemu-io by a seed, its own checks, and the whole disk against the model."""
        patterns = Patterns(self.read_out(), seed)
        self.exercise(patterns.commands)
        check_same(self.read_out(), bytes(patterns.model), "the disk after qemu-io")

    def conformance(self, families: tuple[str, ...] = FAMILIES, slow: bool = True) -> Conformance:
        whole = Conformance()
        with ThreadPoolExecutor(1) as beside:
            waiting = [beside.submit(conform, self.url, SLOW_FAMILY)] if slow else []
            found = [conform(self.url, family) for family in families]
            found += [one.result() for one in waiting]
        for one in found:
            whole.passed += one.passed
            whole.skipped += one.skipped
        return whole

    def work(self, before: bytes, seed: int) -> tuple[Conformance, bytes]:
        """All that reads and writes, from a disk that holds `before`; what the disk holds at the end."""
        check_same(self.read_out(), before, "the disk at the begin")
        image = random.Random(seed).randbytes(len(before) // 2) + bytes(len(before) - len(before) // 2)
        self.write_in(image)
        check_same(self.read_out(), image, "the disk after qemu-img")
        self.patterns(seed)
        report = self.conformance()
        return report, self.read_out()


def check_same(found: bytes, expected: bytes, what: str) -> None:
    """Byte for byte; tells the first difference."""
    assert len(found) == len(expected), f"{what} has {len(found)} bytes instead of {len(expected)}"
    if found != expected:
        at = next(i for i in range(0, len(found), 512) if found[i:i + 512] != expected[i:i + 512])
        wrong = sum(found[i:i + 512] != expected[i:i + 512] for i in range(0, len(found), 512))
        raise AssertionError(f"{what}: block {at // 512} and {wrong - 1} others are wrong: "
                             f"{found[at:at + 16].hex()} instead of {expected[at:at + 16].hex()}")
