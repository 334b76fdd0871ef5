"""Stores by URL: what opens, what is refused and how, and the coroutines of an open store."""
import asyncio
import random

import pytest

from detour.core.store import PART_BYTES
from detour.errors import ClosedError, DetourError, RangeError, StorageError, UnsupportedError, UrlError, UsageError
from detour.runtime import Runtime
from detour.stores import open_store


def run(scenario):
    """Runs scenario(runtime) with a runtime, bounded in time."""
    async def bounded():
        async with Runtime() as runtime:
            return await scenario(runtime)

    return asyncio.run(asyncio.wait_for(bounded(), 30))


@pytest.mark.parametrize("kind", ["mem", "file", "bare"])
def test_data_of_any_length_go_there_and_back(kind, tmp_path):
    path = tmp_path / "image"
    size = 24 << 20
    url = {"mem": "mem:24MiB", "file": path.as_uri(), "bare": str(path)}[kind]
    data = random.Random(3).randbytes(11 * PART_BYTES + 512)

    async def main(runtime):
        store = await open_store(runtime, url, create_bytes=None if kind == "mem" else size)
        assert (store.size_bytes, store.block_bytes, store.read_only) == (size, 512, False)
        await store.write(1536, data)
        await store.flush()
        assert await store.read(1536, len(data)) == data
        await store.unmap(1536, PART_BYTES * 2)
        assert await store.read(1536, len(data)) == bytes(PART_BYTES * 2) + data[PART_BYTES * 2:]
        await store.write(0, b"f" * 512, fua=True)
        assert await store.read(0, 1024) == b"f" * 512 + bytes(512)
        await store.close()
        await store.close()
        with pytest.raises(ClosedError):
            await store.read(0, 512)

    run(main)


def test_urls_are_shown_in_full_form(tmp_path):
    async def main(runtime):
        path = tmp_path / "image"
        async with await open_store(runtime, str(path), create_bytes=4096) as store:
            assert store.url == path.as_uri()
        async with await open_store(runtime, "mem:1MiB") as store:
            assert store.url == "mem:1MiB"

    run(main)


def test_errors_name_the_store_and_the_place():
    async def main(runtime):
        store = await open_store(runtime, "mem:1MiB", read_only=True)
        with pytest.raises(RangeError, match="read at 1048576 of mem:1MiB"):
            await store.read(1 << 20, 512)
        with pytest.raises(UnsupportedError, match="write at 0 of mem:1MiB"):
            await store.write(0, bytes(512))
        with pytest.raises(UnsupportedError, match="command 12h of mem:1MiB"):
            await store.command(b"\x12\0\0\0\x24\0", data_in_bytes=36)
        assert store.read_only

    run(main)


def test_a_long_transfer_ends_with_the_first_error():
    async def main(runtime):
        store = await open_store(runtime, "mem:4MiB")
        with pytest.raises(RangeError):
            await store.write(2 << 20, bytes(20 << 20))
        assert store.handle.in_flight == 0

    run(main)


@pytest.mark.parametrize(("url", "options", "error"), [
    ("/no/such/folder/image", {}, StorageError),
    ("/no/such/folder/image", {"create_bytes": 4096}, StorageError),
    ("/tmp", {}, StorageError),
    ("mem:0", {}, UrlError),
    ("mem:1000", {}, UsageError),
    ("mem:1MiB", {"workers": 2}, UsageError),
    ("warp:9", {}, UrlError),
    ("repo:///tmp", {}, UrlError),
    ("iscsi://127.0.0.1:1/iqn.2026-01.example:x/1", {"create_bytes": 4096}, UsageError),
])
def test_what_cannot_be_opened_is_told(url, options, error):
    async def main(runtime):
        with pytest.raises(error):
            await open_store(runtime, url, **options)

    run(main)


def test_an_odd_file_is_refused_with_a_sentence(tmp_path):
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 700)

    async def main(runtime):
        with pytest.raises(UsageError, match="700 bytes: not a number of blocks of 512"):
            await open_store(runtime, str(path))

    run(main)


def test_the_runtime_closes_what_was_left_open(tmp_path):
    async def main(runtime):
        return [await open_store(runtime, "mem:1MiB"),
                await open_store(runtime, str(tmp_path / "image"), create_bytes=1 << 20, workers=2)]

    for store in run(main):
        assert store.closed and store.handle.closed


def test_iscsi_goes_to_the_initiator():
    async def main(runtime):
        with pytest.raises(DetourError):
            await open_store(runtime, "iscsi://127.0.0.1:1/iqn.2026-01.example:x/1",
                             initiator_name="iqn.2026-01.example:host")

    run(main)
