"""`detour ls iscsi://HOST[:PORT]`: targets of a portal and their LUNs."""
from __future__ import annotations

import struct
from typing import Any

import click

from detour.cli.inq import capacity_cdb, inquiry_cdb, standard_inquiry
from detour.cli.support import human_bytes, json_option, login_options, print_json, run_async
from detour.urls import IscsiUrl

REPORT_LUNS = struct.pack(">BBBBBBIBB", 0xA0, 0, 0, 0, 0, 0, 4096, 0, 0)
LUNS_SHOWN_MAX = 256
DISK_TYPES = (0x00, 0x0E)       # direct access, simplified direct access


def luns_of(data: bytes) -> list[bytes]:
    """Eight-byte LUNs of a REPORT LUNS answer (SPC-4 6.33); what is cut short is left out."""
    length = struct.unpack_from(">I", data)[0] if len(data) >= 8 else 0
    end = min(len(data), 8 + length)
    return [data[place : place + 8] for place in range(8, end - 7, 8)][:LUNS_SHOWN_MAX]


def lun_number(lun: bytes) -> int:
    """The number of a peripheral or flat LUN (SAM-5 4.7)."""
    return struct.unpack_from(">H", lun)[0] & 0x3FFF


async def list_luns(url: IscsiUrl) -> list[dict[str, Any]]:
    """The LUNs of one target, each asked by itself: LUN 0 need not be a disk."""
    from detour.errors import DetourError
    from detour.iscsi import initiator
    from detour.iscsi.probe import RawUnit
    from detour.iscsi.session import login

    session = await login(url.host, url.port, url.target, initiator.login_options(url))
    try:
        rows = []
        report = await RawUnit(session, 0).command(REPORT_LUNS, data_in_bytes=4096)
        for number in map(lun_number, luns_of(report.data)):
            row: dict[str, Any] = {"lun": number}
            unit = RawUnit(session, number)
            try:
                row |= standard_inquiry((await unit.command(inquiry_cdb(), data_in_bytes=1024)).data)
                if row["device_type"] in DISK_TYPES:
                    capacity = (await unit.command(capacity_cdb(), data_in_bytes=32)).data
                    last_lba, block_bytes = struct.unpack_from(">QI", capacity.ljust(32, b"\0"))
                    row |= {"block_bytes": block_bytes, "bytes": (last_lba + 1) * block_bytes}
            except DetourError as error:
                row["error"] = str(error)
            rows.append(row)
        return rows
    finally:
        session.sock.close()


async def list_targets(url: IscsiUrl, with_luns: bool, plain_discovery: bool = False) -> list[dict[str, Any]]:
    from dataclasses import replace

    from detour.errors import DetourError
    from detour.iscsi.initiator import discover
    from detour.urls import format_endpoint

    targets: list[dict[str, Any]] = []
    bare = replace(url, user="", secret=None, secret_source="", mutual_user="", mutual_secret=None, mutual_source="")
    for found in await discover(bare if plain_discovery else url):
        if url.target and found.name != url.target:
            continue
        portals = [format_endpoint(host, port) + (f",{group}" if group is not None else "")
                   for host, port, group in found.addresses]
        row: dict[str, Any] = {"target": found.name, "portals": portals}
        try:
            row["luns"] = await list_luns(replace(url, target=found.name, lun=0)) if with_luns else []
        except DetourError as error:
            row["error"] = str(error)
        targets.append(row)
    return targets


@click.command()
@click.argument("url")
@login_options(portal_only=True)
@click.option("--luns/--no-luns", "with_luns", default=True, help="Log in to each target and list its LUNs.")
@click.option("--plain-discovery", is_flag=True,
              help="Discover without the credentials; they are for the targets alone.")
@json_option
def command(url: IscsiUrl, with_luns: bool, plain_discovery: bool, as_json: bool) -> int:
    """List the targets of the portal URL, iscsi://[user[%secret]@]host[:port], and their LUNs."""
    targets = run_async(list_targets(url, with_luns, plain_discovery))
    if as_json:
        print_json(targets)
        return 0
    for row in targets:
        click.echo(f"{row['target']}  {' '.join(row['portals'])}")
        for lun in row.get("luns", []):
            size = human_bytes(lun["bytes"]) if "bytes" in lun else f"device type {lun.get('device_type', '?')}"
            told = lun.get("error") or f"{lun['vendor']} {lun['product']}  {size}"
            click.echo(f"  LUN {lun['lun']}: {told}")
        if "error" in row:
            click.echo(f"  {row['error']}")
    return 0
