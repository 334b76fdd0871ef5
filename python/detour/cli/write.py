"""`detour write URL`: a file or standard input onto a volume."""
from __future__ import annotations

import sys
from typing import BinaryIO

import click

from detour.cli.support import SIZE, login_options, run_async
from detour.urls import StoreUrl

PIECE_BYTES = 4 * 2**20


async def copy_in(url: str | StoreUrl, offset: int, source: BinaryIO) -> int:
    """Answers the bytes written. A last piece that ends inside of a block keeps the rest of that block."""
    from detour.errors import RangeError, UsageError
    from detour.runtime import Runtime
    from detour.stores import open_store

    written = 0
    async with Runtime() as runtime:
        store = await open_store(runtime, url)
        try:
            block = store.block_bytes
            if offset % block:
                raise UsageError(f"the offset {offset} is not a multiple of the block size, {block}")
            while data := source.read(PIECE_BYTES):
                place = offset + written
                if place + len(data) > store.size_bytes:
                    raise RangeError(f"the input goes beyond the end of the volume at {store.size_bytes} bytes")
                rest = -len(data) % block
                tail = b""
                if rest:
                    tail = (await store.read(place + len(data) - (block - rest), block))[-rest:]
                await store.write(place, data + tail)
                written += len(data)
            await store.flush()
        finally:
            await store.close()
    return written


@click.command()
@click.argument("url")
@login_options()
@click.option("--offset", type=SIZE, default=0, help="First byte; a multiple of the block size.")
@click.option("--input", "input_path", type=click.Path(exists=True, dir_okay=False),
              help="File to read (default: standard input).")
def command(url: StoreUrl, offset: int, input_path: str | None) -> int:
    """Write bytes to the volume URL, and flush its cache."""
    if input_path is None:
        run_async(copy_in(url, offset, sys.stdin.buffer))
    else:
        with open(input_path, "rb") as file:
            run_async(copy_in(url, offset, file))
    return 0
