"""`detour ls iscsi://HOST[:PORT]`: targets of a portal and their LUNs."""
from __future__ import annotations

import struct
from typing import Any

import click

from detour.cli.inq import capacity_cdb, inquiry_cdb, standard_inquiry
from detour.cli.support import human_bytes, json_option, print_json, run_async

REPORT_LUNS = struct.pack(">BBBBBBIBB", 0xA0, 0, 0, 0, 0, 0, 4096, 0, 0)
LUNS_SHOWN_MAX = 256
INITIATOR_NAME = "iqn.2026-01.org.detour:tools"


def luns_of(data: bytes) -> list[bytes]:
    """Eight-byte LUNs of a REPORT LUNS answer (SPC-4 6.33); what is cut short is left out."""
    length = struct.unpack_from(">I", data)[0] if len(data) >= 8 else 0
    end = min(len(data), 8 + length)
    return [data[place : place + 8] for place in range(8, end - 7, 8)][:LUNS_SHOWN_MAX]


def lun_number(lun: bytes) -> int:
    """The number of a peripheral or flat LUN (SAM-5 4.7)."""
    return struct.unpack_from(">H", lun)[0] & 0x3FFF


async def list_luns(runtime: Any, url: Any) -> list[dict[str, Any]]:
    from detour.errors import DetourError
    from detour.iscsi.initiator import connect

    store = await connect(runtime, url, initiator_name=INITIATOR_NAME, read_only=True)
    try:
        rows = []
        for lun in luns_of((await store.command(REPORT_LUNS, data_in_bytes=4096)).data):
            row: dict[str, Any] = {"lun": lun_number(lun)}
            try:
                row |= standard_inquiry((await store.command(inquiry_cdb(), data_in_bytes=1024, lun=lun)).data)
                capacity = (await store.command(capacity_cdb(), data_in_bytes=32, lun=lun)).data
                last_lba, block_bytes = struct.unpack_from(">QI", capacity.ljust(32, b"\0"))
                row |= {"block_bytes": block_bytes, "bytes": (last_lba + 1) * block_bytes}
            except DetourError as error:
                row["error"] = str(error)
            rows.append(row)
        return rows
    finally:
        await store.close()


async def list_targets(text: str, with_luns: bool) -> list[dict[str, Any]]:
    from dataclasses import replace

    from detour.errors import DetourError
    from detour.iscsi.chap import Credentials
    from detour.iscsi.session import LoginOptions, discover
    from detour.runtime import Runtime
    from detour.urls import format_endpoint, parse_iscsi_url

    url = parse_iscsi_url(text, portal_only=True)
    credentials = Credentials(url.user, url.secret) if url.secret else None
    targets = []
    for found in await discover(url.host, url.port, LoginOptions(INITIATOR_NAME, credentials=credentials)):
        if url.target and found.name != url.target:
            continue
        portals = [format_endpoint(host, port) + (f",{group}" if group is not None else "")
                   for host, port, group in found.addresses]
        targets.append({"target": found.name, "portals": portals})
    if with_luns:
        async with Runtime() as runtime:
            for row in targets:
                try:
                    row["luns"] = await list_luns(runtime, replace(url, target=row["target"], lun=0))
                except DetourError as error:
                    row["error"] = str(error)
    return targets


@click.command()
@click.argument("url")
@click.option("--luns/--no-luns", "with_luns", default=True, help="Log in to each target and list its LUNs.")
@json_option
def command(url: str, with_luns: bool, as_json: bool) -> int:
    """List the targets of the portal URL, iscsi://[user[%secret]@]host[:port], and their LUNs."""
    targets = run_async(list_targets(url, with_luns))
    if as_json:
        print_json(targets)
        return 0
    for row in targets:
        click.echo(f"{row['target']}  {' '.join(row['portals'])}")
        for lun in row.get("luns", []):
            told = lun.get("error") or f"{lun['vendor']} {lun['product']}  {human_bytes(lun['bytes'])}"
            click.echo(f"  LUN {lun['lun']}: {told}")
        if "error" in row:
            click.echo(f"  {row['error']}")
    return 0
