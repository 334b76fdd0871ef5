"""How the disks of `detour target` are named and behave: a storage URL, and options behind a "?".

    disk.img?read-only&serial=A1      mem:1GiB?removable&lun=7      iscsi://host/iqn.x:y/0?secret-file=F&no-thin

A flag stands alone or as flag=yes, flag=no. Options of an iscsi: URL itself may stand among them. A "?" that belongs to
a file's name is written %3F in the form file:///path.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from detour.errors import UsageError
from detour.iscsi.keys import valid_name
from detour.urls import format_size, parse_size

LUNS_MAX = 256
SERIAL_CHARS_MAX = 32
DELAY_MS_MAX = 60_000
PHYSICAL_BYTES_MIN, PHYSICAL_BYTES_MAX = 512, 2**20


@dataclass(frozen=True)
class DiskOptions:
    """How a disk behaves.

    delay_us: each write is held for so long before it reaches the storage. write_bytes_s: what the disk takes a second;
    0: without bound. serial: empty: derived from target name and LUN. create_bytes: a file that is not there is made
    with this size. reservations_path: the file that keeps persistent reservations over a restart (APTPL).
    physical_bytes: what hosts are told to align to; 0: a block.
    """

    read_only: bool = False
    write_cache: bool = True
    thin: bool = True
    removable: bool = False
    delay_us: int = 0
    write_bytes_s: int = 0
    serial: str = ""
    create_bytes: int | None = None
    reservations_path: str | None = None
    physical_bytes: int = 0


@dataclass(frozen=True)
class DiskSpec:
    """One disk of a target: where its data is, its LUN, and how it behaves."""

    url: str
    lun: int
    options: DiskOptions


def _flag(text: str) -> bool:
    known = {"": True, "yes": True, "no": False}
    if text not in known:
        raise UsageError("is a flag: it stands alone, or with yes or no")
    return known[text]


def _opposite(text: str) -> bool:
    return not _flag(text)


def _serial(text: str) -> str:
    if not text or len(text) > SERIAL_CHARS_MAX or not all("!" <= char <= "~" for char in text):
        raise UsageError(f"has 1 to {SERIAL_CHARS_MAX} printable characters")
    return text


def _delay_us(text: str) -> int:
    try:
        delay_ms = float(text)
    except ValueError:
        raise UsageError("is a number of milliseconds") from None
    if not 0 <= delay_ms <= DELAY_MS_MAX:
        raise UsageError(f"is between 0 and {DELAY_MS_MAX} milliseconds")
    return round(delay_ms * 1000)


def _physical(text: str) -> int:
    physical_bytes = parse_size(text)
    if physical_bytes & (physical_bytes - 1) or not PHYSICAL_BYTES_MIN <= physical_bytes <= PHYSICAL_BYTES_MAX:
        raise UsageError(f"is a power of two from {PHYSICAL_BYTES_MIN} bytes to {format_size(PHYSICAL_BYTES_MAX)}")
    return physical_bytes


def _path(text: str) -> str:
    if not text:
        raise UsageError("is the path of a file")
    return text


def _lun(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < LUNS_MAX):
        raise UsageError(f"is a number from 0 to {LUNS_MAX - 1}")
    return int(text)


# Option -> (field of DiskOptions, or "lun"; how its text is read).
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "lun": ("lun", _lun),
    "read-only": ("read_only", _flag),
    "removable": ("removable", _flag),
    "no-write-cache": ("write_cache", _opposite),
    "no-thin": ("thin", _opposite),
    "serial": ("serial", _serial),
    "size": ("create_bytes", parse_size),
    "reservations": ("reservations_path", _path),
    "physical-block": ("physical_bytes", _physical),
    "delay-ms": ("delay_us", _delay_us),
    "write-rate": ("write_bytes_s", parse_size),
}


def parse_disk(text: str, defaults: DiskOptions, next_lun: int) -> DiskSpec:
    """One disk of the command line. `next_lun`: its LUN when it names none. UsageError with one sentence otherwise."""
    url, question, query = text.partition("?")
    given: dict[str, Any] = {}
    rest: list[str] = []
    for word in query.split("&") if question else []:
        key, _, value = word.partition("=")
        if key not in _READERS and url.startswith("iscsi:"):
            rest.append(word)
            continue
        if key not in _READERS:
            raise UsageError(f"{text}: unknown option {key!r}; known are {', '.join(_READERS)}",
                             hint='A "?" in a file\'s name is written %3F: file:///path/with%3F')
        field, read = _READERS[key]
        if field in given:
            raise UsageError(f"{text}: {key} is given twice")
        try:
            given[field] = read(unquote(value))
        except UsageError as error:
            raise UsageError(f"{text}: {key} {error.message}", hint=error.hint) from None
    lun = given.pop("lun", next_lun)
    if lun >= LUNS_MAX:
        raise UsageError(f"a target has {LUNS_MAX} LUNs at most")
    return DiskSpec(url + ("?" + "&".join(rest) if rest else ""), lun, replace(defaults, **given))


def _add_disk(disks: list[DiskSpec], iqn: str, text: str, defaults: DiskOptions) -> None:
    """A disk without a number gets the one behind the disk before it."""
    spec = parse_disk(text, defaults, disks[-1].lun + 1 if disks else 0)
    if any(other.lun == spec.lun for other in disks):
        raise UsageError(f"{text}: {iqn} has a LUN {spec.lun} already")
    disks.append(spec)


def plan_targets(urls: Iterable[str], extra: Iterable[str], iqn: str, defaults: DiskOptions,
                 ) -> dict[str, list[DiskSpec]]:
    """Target name -> its disks. `urls` belong to `iqn`; each of `extra` is "IQN=URL", the next disk of that target. A
    serial number among the defaults is that of LUN 0 of `iqn`; its other LUNs get -1, -2 ... UsageError otherwise."""
    plan: dict[str, list[DiskSpec]] = {}
    iqn = iqn.lower()
    for name, url in [(iqn, url) for url in urls] + [_named(text) for text in extra]:
        if not valid_name(name):
            raise UsageError(f"{name!r} is no target name", hint='Names look like "iqn.2026-01.example:disk1".')
        _add_disk(plan.setdefault(name, []), name, url, replace(defaults, serial=""))
    if not plan:
        raise UsageError("nothing to serve: name a file, a block device or mem:SIZE")
    if defaults.serial:
        own = plan.get(iqn, [])
        own[:] = [replace(spec, options=replace(spec.options, serial=_numbered(defaults.serial, spec.lun)))
                  if not spec.options.serial else spec for spec in own]
    return plan


def _named(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals or not url:
        raise UsageError(f"{text!r} is not IQN=URL", hint="For example iqn.2026-01.example:disk2=/srv/disk2.img")
    return name.lower(), url


def _numbered(serial: str, lun: int) -> str:
    return serial if lun == 0 else f"{serial}-{lun}"
