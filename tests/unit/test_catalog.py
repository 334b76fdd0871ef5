"""The catalog: records are whole or absent, and damage is found."""
import json
import os
import struct

import pytest

import detour.core
from detour.backups.catalog import CHUNK_BYTES, BackupRecord, Catalog, Status, new_backup_id
from detour.core.crc32c import crc32c
from detour.errors import CorruptError, StorageError, UsageError


def record(backup_id="db01-1", **values):
    return BackupRecord(**{"id": backup_id, "volume": "db01", "store": "nightly", "url": "file:///backup/db01-1.img",
                           "size_bytes": 2 * CHUNK_BYTES + 512, "block_bytes": 512, "pit_ns": 5, **values})


@pytest.fixture
def catalog(tmp_path):
    return Catalog(tmp_path / "backups")


def test_what_is_put_is_got(catalog):
    sums = struct.pack("<3I", 1, 2, 3)
    stored = catalog.put(record(tag="weekly", identity={"serial": "beaf11"}), sums)
    assert stored.checksums_crc == crc32c(sums)
    assert catalog.get("db01-1") == stored
    assert catalog.checksums(stored) == sums
    assert stored.status is Status.PARTIAL
    catalog.put(stored.model_copy(update={"status": Status.COMPLETE}))
    assert catalog.get("db01-1").status is Status.COMPLETE


def test_list_is_newest_first_and_by_volume(catalog):
    catalog.put(record("a", pit_ns=10))
    catalog.put(record("b", pit_ns=30, volume="other"))
    catalog.put(record("c", pit_ns=0, started_ns=20))
    assert [one.id for one in catalog.list()] == ["b", "c", "a"]
    assert [one.id for one in catalog.list("db01")] == ["c", "a"]
    assert Catalog(catalog.folder / "absent").list() == []


def test_remove(catalog):
    catalog.put(record(), b"\0" * 12)
    catalog.remove("db01-1")
    catalog.remove("db01-1")
    assert os.listdir(catalog.folder) == []
    with pytest.raises(UsageError, match="no backup db01-1"):
        catalog.get("db01-1")


@pytest.mark.parametrize("wrong", ["../x", "", ".hidden", "a/b"])
def test_ids_stay_inside_the_folder(catalog, wrong):
    with pytest.raises(UsageError, match="no backup id"):
        catalog.get(wrong)


def test_the_number_of_checksums_is_checked(catalog):
    with pytest.raises(UsageError, match="3 chunks"):
        catalog.put(record(), b"\0" * 8)


def test_every_flipped_byte_of_a_record_is_found(catalog):
    catalog.put(record(), b"\0" * 12)
    path = catalog.folder / "db01-1.json"
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bytes(bad))
        try:
            same = catalog.get("db01-1") == record(checksums_crc=crc32c(b"\0" * 12))
        except CorruptError:
            continue
        assert same, place              # only white space between the fields may change unseen
    path.write_bytes(good[:40])
    assert catalog.list() == []
    assert list(catalog.damaged()) == ["db01-1"]


def test_damaged_checksums_are_found(catalog):
    stored = catalog.put(record(status=Status.COMPLETE), b"\1" * 12)
    path = catalog.folder / "db01-1.crc"
    path.write_bytes(b"\1" * 11 + b"\2")
    with pytest.raises(CorruptError, match="do not match"):
        catalog.checksums(stored)
    assert "do not match" in catalog.damaged()["db01-1"]
    path.unlink()
    with pytest.raises(CorruptError, match="cannot be read"):
        catalog.checksums(stored)


def test_a_write_that_breaks_off_leaves_the_old_record(catalog, monkeypatch):
    catalog.put(record(tag="old"))

    def no_rename(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("detour.durable.os.replace", no_rename)
    with pytest.raises(StorageError, match="No space left"):
        catalog.put(record(tag="new"))
    monkeypatch.undo()
    assert catalog.get("db01-1").tag == "old"
    assert [one.id for one in catalog.list()] == ["db01-1"]


def test_everything_is_flushed_before_it_gets_its_name(catalog, monkeypatch):
    steps = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr("detour.durable.os.fsync", lambda fd: (steps.append("flush"), real_fsync(fd)))
    monkeypatch.setattr("detour.durable.os.replace", lambda a, b: (steps.append("rename"), real_replace(a, b)))
    catalog.put(record(), b"\0" * 12)
    assert steps == ["flush", "rename", "flush"] * 2


def test_ids_are_file_names(monkeypatch):
    made = new_backup_id("größe/a b")
    assert record(made).id == made
    assert new_backup_id("db01").startswith("db01-2")
    assert record(new_backup_id("../..")).id


def test_chunk_size_is_that_of_the_core():
    with open(os.path.join(os.path.dirname(detour.core.__file__), "format.pxd")) as file:
        assert f"CHUNK_BYTES = {CHUNK_BYTES} " in file.read()


def test_pit_at():
    assert record(pit_ns=0).pit_at == ""
    assert record(pit_ns=1_700_000_000_123_000_000).pit_at == "2023-11-14T22:13:20.123+00:00"


def test_a_record_has_no_room_for_what_it_does_not_know(catalog):
    catalog.put(record())
    path = catalog.folder / "db01-1.json"
    content = json.loads(path.read_text())
    content["extra"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptError):
        catalog.get("db01-1")
