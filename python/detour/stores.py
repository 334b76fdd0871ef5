"""Storage by URL: opens what a URL names and offers it to asyncio.

The data path takes an OpenStore's `handle`; what is rare (identity, verifying, tools) uses the coroutines. iSCSI is
opened by detour.iscsi.initiator, which answers an OpenStore too.
"""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detour.core.filestore import FileStoreHandle
from detour.core.reactor import Reactor
from detour.core.store import PART_BYTES, MemoryStore, StoreHandle
from detour.errors import ClosedError, ScsiError, StorageError, UsageError, from_status
from detour.redo import redo_path_of, replay
from detour.runtime import Answer, Runtime
from detour.urls import FileUrl, IscsiUrl, MemoryUrl, StoreUrl, parse_url

PARTS_AT_ONCE = 8
SCSI_GOOD = 0x00
STORE_READ_ONLY = 8
STATUS_CHECK = -11
STATUS_BUSY = -14


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a SCSI command ended: its status byte, what came in, sense data, and the residual that the target told."""

    scsi_status: int
    data: bytes
    sense: bytes
    residual: int
    residual_flags: int

    @property
    def good(self) -> bool:
        return self.scsi_status == SCSI_GOOD


class OpenStore:
    """An open store. `handle` is for the data path; the coroutines are for everything rare.

    Offsets and lengths are bytes and multiples of block_bytes. Errors are those of errors.py, with the URL (its secret
    hidden) in the sentence."""

    def __init__(self, runtime: Runtime, handle: StoreHandle, url: str) -> None:
        self.runtime = runtime
        self.handle = handle
        self.url = url
        self._closing = False
        self._closer = runtime.add_closer(self.close)

    @property
    def reactor(self) -> Reactor:
        return self.handle.reactor

    @property
    def size_bytes(self) -> int:
        return self.handle.size_bytes

    @property
    def block_bytes(self) -> int:
        return self.handle.block_bytes

    @property
    def read_only(self) -> bool:
        return bool(self.handle.flags & STORE_READ_ONLY)

    @property
    def closed(self) -> bool:
        return self._closing

    async def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """The bytes at a place; any length, moved in parts of 1 MiB."""
        parts = await self._in_parts(length_bytes, lambda at, size: self._ask(
            lambda: self.handle.submit_read(offset_bytes + at, size), "read", offset_bytes + at))
        return b"".join(part.data or b"" for part in parts) if len(parts) != 1 else parts[0].data or b""

    async def write(self, offset_bytes: int, data: bytes | bytearray | memoryview, fua: bool = False) -> None:
        """Writes any length in parts of 1 MiB; with `fua` everything is stable when it returns."""
        view = memoryview(data).cast("B")
        await self._in_parts(len(view), lambda at, size: self._ask(
            lambda: self.handle.submit_write(offset_bytes + at, view[at:at + size], fua), "write", offset_bytes + at))

    async def flush(self) -> None:
        """Everything written before is stable when it returns."""
        await self._ask(self.handle.submit_flush, "flush")

    async def unmap(self, offset_bytes: int, length_bytes: int) -> None:
        """The range reads as zeros afterwards."""
        await self._ask(lambda: self.handle.submit_unmap(offset_bytes, length_bytes), "unmap", offset_bytes)

    async def command(self, cdb: bytes, *, data_out: bytes = b"", data_in_bytes: int = 0, lun: bytes | None = None,
                      check: bool = True) -> CommandResult:
        """Sends any CDB, where the store is SCSI. With `check` a status other than GOOD raises ScsiError."""
        answer = await self.runtime.wait(self.handle.submit_command(cdb, data_out, data_in_bytes, lun), check=False)
        self._check(answer, f"command {cdb[0]:02x}h", (STATUS_CHECK, STATUS_BUSY))
        status, received, sense_bytes, residual, residual_flags = answer.results[:5]
        data = answer.data or b""
        result = CommandResult(status, data[:received], data[received:received + sense_bytes], residual, residual_flags)
        if check and not result.good:
            raise ScsiError(f"{self.url}: command {cdb[0]:02x}h ended with SCSI status {status:02x}h"
                            + (f", sense {result.sense[:18].hex()}" if result.sense else ""),
                            scsi_status=status, sense=result.sense, status=answer.status)
        return result

    async def close(self) -> None:
        """Ends what is in flight and gives the store's resources back. May be called twice."""
        if self._closing:
            return
        self._closing = True
        self.runtime.remove_closer(self._closer)
        await self.runtime.wait(self.handle.close(), context=f"close of {self.url}")

    async def __aenter__(self) -> OpenStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- inside

    async def _ask(self, submit: Callable[[], int], what: str, offset_bytes: int | None = None) -> Answer:
        if self._closing:
            raise ClosedError(f"{what} of {self.url}: it is closed")
        answer = await self.runtime.wait(submit(), check=False)
        self._check(answer, what if offset_bytes is None else f"{what} at {offset_bytes}")
        return answer

    def _check(self, answer: Answer, what: str, allowed: tuple[int, ...] = ()) -> None:
        if answer.status < 0 and answer.status not in allowed:
            raise from_status(answer.status, f"{what} of {self.url}")

    async def _in_parts(self, length_bytes: int, part: Callable[[int, int], Awaitable[Answer]]) -> list[Answer]:
        """Runs part(offset, size) for each MiB, a few at once; answers in order. The first error ends it, after what is
        under way has ended."""
        if length_bytes <= PART_BYTES:
            return [await part(0, length_bytes)]
        answers: list[Answer] = []
        step = PART_BYTES * PARTS_AT_ONCE
        for start in range(0, length_bytes, step):
            end = min(start + step, length_bytes)
            done = await asyncio.gather(*(part(at, min(PART_BYTES, end - at)) for at in range(start, end, PART_BYTES)),
                                        return_exceptions=True)
            for result in done:
                if isinstance(result, BaseException):
                    raise result
                answers.append(result)
        return answers


async def open_store(runtime: Runtime, url: str | StoreUrl, *, reactor: Reactor | None = None,
                     create_bytes: int | None = None, read_only: bool = False, block_bytes: int = 512,
                     **options: Any) -> OpenStore:
    """Opens a file, a block device, memory or an iSCSI logical unit.

    create_bytes: a file that is not there is made, sparse, of this size; one that is there must have it. options: for
    files those of FileStoreHandle (workers, inline_writes, direct, redo_path), for iSCSI those of
    iscsi.initiator.connect. An atomic write of a file that a crash cut short is completed first.
    """
    parsed = parse_url(url) if isinstance(url, str) else url
    if isinstance(parsed, FileUrl):
        return await _open_file(runtime, parsed, reactor or runtime.next_reactor(), create_bytes, read_only,
                                block_bytes, options)
    if isinstance(parsed, MemoryUrl):
        _refuse_options(parsed, options)
        try:
            handle = MemoryStore(reactor or runtime.next_reactor(), parsed.size_bytes, block_bytes, read_only,
                                 runtime.new_id())
        except ValueError as error:
            raise UsageError(f"{parsed}: {error}") from error
        return OpenStore(runtime, handle, str(parsed))
    if isinstance(parsed, IscsiUrl):
        if create_bytes is not None:
            raise UsageError(f"{parsed}: a logical unit cannot be created")
        from detour.iscsi.initiator import connect  # the initiator builds on OpenStore

        if reactor is not None:
            options["reactor"] = reactor
        if read_only:
            options["read_only"] = True
        return await connect(runtime, parsed, **options)
    raise UsageError(f"{parsed}: cannot be opened as a store")


def _refuse_options(url: StoreUrl, options: dict[str, Any]) -> None:
    if options:
        raise UsageError(f"{url}: takes no {', '.join(sorted(options))}")


async def _open_file(runtime: Runtime, url: FileUrl, reactor: Reactor, create_bytes: int | None, read_only: bool,
                     block_bytes: int, options: dict[str, Any]) -> OpenStore:
    known = {"workers", "inline_writes", "direct", "redo_path"}
    _refuse_options(url, {key: value for key, value in options.items() if key not in known})

    def opened() -> FileStoreHandle:
        replay(Path(options.get("redo_path") or redo_path_of(url.path)), Path(url.path), read_only=read_only)
        return FileStoreHandle(reactor, url.path, create_bytes, create_bytes is not None, read_only,
                               block_bytes=block_bytes, store_id=runtime.new_id(), **options)

    try:
        handle = await asyncio.to_thread(opened)        # a file on a dead server must not stop the event loop
    except OSError as error:
        raise StorageError(f"{url}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from error
    return OpenStore(runtime, handle, str(url))
