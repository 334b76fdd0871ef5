"""`detour inq URL`: what a logical unit says of itself (SPC-4 INQUIRY and VPD pages, SBC-3 READ CAPACITY)."""
from __future__ import annotations

import struct
from typing import Any

import click

from detour.cli.support import human_bytes, json_option, login_options, print_json, run_async
from detour.urls import StoreUrl

INQUIRY = 0x12
SERVICE_ACTION_IN_16 = 0x9E
READ_CAPACITY_16 = 0x10
VPD_BYTES_MAX = 1024
CODE_SETS = {1: "binary", 2: "ASCII", 3: "UTF-8"}
DESIGNATORS = {0: "vendor", 1: "T10", 2: "EUI-64", 3: "NAA", 4: "relative port", 5: "port group", 8: "SCSI name"}


def inquiry_cdb(page: int | None = None) -> bytes:
    return struct.pack(">BBBHB", INQUIRY, page is not None, page or 0, VPD_BYTES_MAX, 0)


def capacity_cdb() -> bytes:
    return struct.pack(">BBQIBB", SERVICE_ACTION_IN_16, READ_CAPACITY_16, 0, 32, 0, 0)


def text_of(data: bytes) -> str:
    """Text as a unit tells it; what a terminal would take for a command becomes "?"."""
    text = data.decode("ascii", "replace").strip(" \0")
    return "".join(one if one.isprintable() else "?" for one in text)


def standard_inquiry(data: bytes) -> dict[str, Any]:
    data = data.ljust(36, b"\0")
    return {"device_type": data[0] & 0x1F, "removable": bool(data[1] & 0x80), "version": data[2],
            "tpgs": data[5] >> 4 & 3, "vendor": text_of(data[8:16]), "product": text_of(data[16:32]),
            "revision": text_of(data[32:36])}


def designators(data: bytes) -> list[dict[str, Any]]:
    """Designation descriptors of VPD page 83h (SPC-4 7.8.6); what is cut short is left out."""
    found, place = [], 4
    while place + 4 <= len(data) and place + 4 + data[place + 3] <= len(data):
        code_set, kind = data[place] & 0x0F, data[place + 1] & 0x0F
        value = data[place + 4 : place + 4 + data[place + 3]]
        found.append({"type": DESIGNATORS.get(kind, str(kind)), "association": data[place + 1] >> 4 & 3,
                      "value": text_of(value) if code_set in (2, 3) else value.hex()})
        place += 4 + data[place + 3]
    return found


def block_limits(data: bytes) -> dict[str, int]:
    """VPD page B0h (SBC-3 6.6.4)."""
    data = data.ljust(64, b"\0")
    words = struct.unpack_from(">6I", data, 8)
    return {"compare_and_write_blocks_max": data[5], "transfer_blocks_max": words[0],
            "transfer_blocks_optimal": words[1],
            "unmap_blocks_max": words[3], "unmap_descriptors_max": words[4], "unmap_granularity_blocks": words[5],
            "write_same_blocks_max": struct.unpack_from(">Q", data, 36)[0]}


async def inquire(url: str | StoreUrl) -> dict[str, Any]:
    from detour.errors import ScsiError, UnsupportedError
    from detour.runtime import Runtime
    from detour.stores import open_store

    async with Runtime() as runtime:
        store = await open_store(runtime, url, read_only=True)
        try:
            async def page(number: int) -> bytes:
                try:
                    return (await store.command(inquiry_cdb(number), data_in_bytes=VPD_BYTES_MAX)).data
                except ScsiError:
                    return b""          # a page that the unit does not have

            try:
                standard = (await store.command(inquiry_cdb(), data_in_bytes=VPD_BYTES_MAX)).data
            except UnsupportedError:
                return {"url": store.url, "bytes": store.size_bytes, "block_bytes": store.block_bytes}
            capacity = (await store.command(capacity_cdb(), data_in_bytes=32)).data.ljust(32, b"\0")
            last_lba, block_bytes = struct.unpack_from(">QI", capacity)
            return {"url": store.url, **standard_inquiry(standard), "serial": text_of((await page(0x80))[4:]),
                    "designators": designators(await page(0x83)), "blocks": last_lba + 1, "block_bytes": block_bytes,
                    "bytes": (last_lba + 1) * block_bytes, "thin": bool(capacity[14] & 0x80),
                    "vpd_pages": [f"{number:02x}" for number in (await page(0))[4:]],
                    "block_limits": block_limits(await page(0xB0))}
        finally:
            await store.close()


@click.command()
@click.argument("url")
@login_options()
@json_option
def command(url: StoreUrl, as_json: bool) -> int:
    """Show what the logical unit URL says of itself."""
    document = run_async(inquire(url))
    if as_json:
        print_json(document)
        return 0
    for name, value in document.items():
        if name == "designators":
            for row in value:
                click.echo(f"{'designator':<14}{row['type']}: {row['value']}")
        elif name == "block_limits":
            for limit, number in value.items():
                click.echo(f"{limit:<30}{number}")
        else:
            shown = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"{name:<14}{shown}" + (f" ({human_bytes(value)})" if name == "bytes" else ""))
    return 0
