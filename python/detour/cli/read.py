"""`detour read URL`: bytes of a volume to a file or standard output."""
from __future__ import annotations

import sys
from typing import BinaryIO

import click

from detour.cli.support import SIZE, login_options, run_async
from detour.urls import StoreUrl

PIECE_BYTES = 4 * 2**20


async def copy_out(url: str | StoreUrl, offset: int, length: int | None, output: BinaryIO) -> None:
    from detour.errors import RangeError
    from detour.runtime import Runtime
    from detour.stores import open_store

    async with Runtime() as runtime:
        store = await open_store(runtime, url, read_only=True)
        try:
            end = store.size_bytes if length is None else offset + length
            if not 0 <= offset <= end <= store.size_bytes:
                raise RangeError(f"bytes {offset}..{end} are not inside of the volume of {store.size_bytes} bytes")
            block = store.block_bytes
            while offset < end:
                first = offset - offset % block
                stop = min(end, first + PIECE_BYTES)
                data = await store.read(first, -(-stop // block) * block - first)
                output.write(data[offset - first : stop - first])
                offset = stop
            output.flush()
        finally:
            await store.close()


@click.command()
@click.argument("url")
@login_options()
@click.option("--offset", type=SIZE, default=0, help="First byte.")
@click.option("--length", type=SIZE, help="Number of bytes (default: up to the end).")
@click.option("--output", type=click.Path(dir_okay=False), help="File to write (default: standard output).")
def command(url: StoreUrl, offset: int, length: int | None, output: str | None) -> int:
    """Read bytes of the volume URL; they need not lie on block boundaries."""
    if output is None:
        run_async(copy_out(url, offset, length, sys.stdout.buffer))
    else:
        with open(output, "wb") as file:
            run_async(copy_out(url, offset, length, file))
    return 0
