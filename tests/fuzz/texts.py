"""Configurations, URLs, sizes and catalogue records that somebody or something has spoiled: refused with a sentence."""
from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from detour import urls
from detour.backups.catalog import BackupRecord, Catalog, Status
from detour.config import parse_config
from detour.errors import DetourError
from detour.iscsi.keys import parse_target_address
from tests.fuzz.figures import Figures
from tests.fuzz.mutate import bytes_of

CONFIG = """
[gateway]
listen = ["127.0.0.1:3260"]
advertise = "192.0.2.10:3260"
state = "/tmp/state"
api = "unix:/run/detour/api.sock"
[volume.db01]
main = "iscsi://192.0.2.20:3260/iqn.2026-01.example:db01/1"
journal = { path = "/tmp/db01.journal", size = "64GiB" }
redirect = { driver = "tgt" }
max-pause = "1s"
[store.nightly]
url = "file:///backup/nightly.img"
"""
URLS = ["iscsi://user%secret@192.0.2.20:3260/iqn.2026-01.example:db01/1", "iscsi://[2001:db8::1]/iqn.2026-01.a:b/255",
        "iscsi://h/iqn.2026-01.a:b/0?header-digest=crc32c&target-user=u", "file:///path/to/image", "mem:1GiB",
        "repo:///backup", "repo+s3://bucket/prefix", "nbd://host/export", "/dev/sdx", "relative/path"]
SMALL = ["64GiB", "1.5 MiB", "0x10", "10s", "250ms", "100MiB/s", "[::1]:3260", "host:1", "127.0.0.1,1"]
PARSERS = [urls.parse_url, urls.parse_backup_url, urls.parse_iscsi_url]
SMALL_PARSERS = [urls.parse_size, urls.parse_duration, urls.parse_rate, urls.parse_endpoint, parse_target_address]


@dataclass
class Case:
    """A text for each ten of `pdus`."""

    seed: int
    pdus: int
    figures: Figures

    def run(self) -> None:
        self.chance = random.Random(self.seed)
        with tempfile.TemporaryDirectory() as folder:
            self.catalog = Catalog(Path(folder))
            self.record = self.put()
            for _ in range(max(1, self.pdus // 10)):
                self.figures.texts += 1
                self.one()

    def put(self) -> BackupRecord:
        record = BackupRecord(id="db01-20260101T000000Z-0001", volume="db01", url="file:///backup/x", tag="",
                              size_bytes=1 << 20, block_bytes=512, chunk_bytes=262144, started_ns=1, pit_ns=2,
                              ended_ns=3, status=Status.COMPLETE, store="nightly")
        record = self.catalog.put(record, bytes(range(16)))
        self.files = {path: path.read_bytes() for path in self.catalog.folder.iterdir()}
        return record

    def one(self) -> None:
        what = self.chance.randrange(8)
        if what == 0:
            self.allow(parse_config, self.text(CONFIG, "replace"))
        elif what == 1:
            self.spoil_catalog()
        elif what < 5:
            self.url()
        else:
            self.allow(self.chance.choice(SMALL_PARSERS), self.text(self.chance.choice(SMALL)))

    def text(self, right: str, errors: str = "surrogateescape") -> str:
        """Spoiled, and decoded as the command line is."""
        return bytes_of(right.encode(), self.chance).decode(errors=errors)

    @staticmethod
    def allow(parse, text: str):
        """What `parse` makes of it; None when it refuses with one of the project's own errors."""
        try:
            return parse(text)
        except DetourError as error:
            assert error.message
            return None

    def url(self) -> None:
        text = self.text(self.chance.choice(URLS))
        parse = self.chance.choice(PARSERS)
        url = self.allow(parse, text)
        if url is not None:
            shown, secret = str(url), getattr(url, "secret", None)
            assert shown and "\0" not in getattr(url, "path", "")
            assert secret is None or len(secret.reveal()) < 6 or secret.reveal() not in shown, "a secret is shown"

    def spoil_catalog(self) -> None:
        path = self.chance.choice(list(self.files))
        spoiled = bytes_of(self.files[path], self.chance)
        path.write_bytes(spoiled)
        try:
            record = self.catalog.get(self.record.id)
            assert record == self.record, "a damaged record is taken for sound"
            sums = self.catalog.checksums(record)
            assert sums == bytes(range(16))
        except DetourError as error:
            assert error.message
        self.catalog.list()
        self.catalog.damaged()
        path.write_bytes(self.files[path])
