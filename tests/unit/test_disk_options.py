"""How `detour target` reads its disks: URLs with options, LUNs, several targets, and one sentence for each mistake."""
from __future__ import annotations

import pytest

from detour.disk_options import LUNS_MAX, DiskOptions, parse_disk, plan_targets
from detour.errors import UsageError

IQN = "iqn.2026-01.example:disks"
OTHER = "iqn.2026-01.example:others"
PLAIN = DiskOptions()


@pytest.mark.parametrize(
    ("text", "url", "lun", "options"),
    [
        ("disk.img", "disk.img", 3, PLAIN),
        ("mem:1GiB?removable", "mem:1GiB", 3, DiskOptions(removable=True)),
        ("disk.img?read-only&lun=7", "disk.img", 7, DiskOptions(read_only=True)),
        ("disk.img?lun=0&serial=A%261", "disk.img", 0, DiskOptions(serial="A&1")),
        ("disk.img?no-thin&no-write-cache=yes", "disk.img", 3, DiskOptions(thin=False, write_cache=False)),
        ("disk.img?size=64MiB&delay-ms=1.5", "disk.img", 3, DiskOptions(create_bytes=2**26, delay_us=1500)),
        ("disk.img?write-rate=24MiB", "disk.img", 3, DiskOptions(write_bytes_s=24 * 2**20)),
        ("disk.img?reservations=/var/lib/r.json", "disk.img", 3, DiskOptions(reservations_path="/var/lib/r.json")),
        ("file:///srv/a%3Fb.img?read-only", "file:///srv/a%3Fb.img", 3, DiskOptions(read_only=True)),
        ("iscsi://h/iqn.x:y/0?secret-file=/k&read-only&data-digest=crc32c",
         "iscsi://h/iqn.x:y/0?secret-file=/k&data-digest=crc32c", 3, DiskOptions(read_only=True)),
    ],
)
def test_a_disk_with_options(text, url, lun, options):
    spec = parse_disk(text, PLAIN, 3)
    assert (spec.url, spec.lun, spec.options) == (url, lun, options)


def test_a_disk_takes_common_options_back():
    common = DiskOptions(read_only=True, thin=False, removable=True)
    assert parse_disk("a?read-only=no&no-thin=no", common, 0).options == DiskOptions(removable=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("disk.img?readonly", "unknown option 'readonly'"),
        ("disk.img?", "unknown option ''"),
        ("disk.img?read-only=maybe", "read-only is a flag"),
        ("disk.img?lun=256", "lun is a number from 0 to 255"),
        ("disk.img?lun=-1", "lun is a number"),
        ("disk.img?lun=1&lun=2", "lun is given twice"),
        ("disk.img?serial=", "serial has 1 to 32"),
        ("disk.img?serial=" + "x" * 33, "serial has 1 to 32"),
        ("disk.img?serial=two%20words", "serial has 1 to 32"),
        ("disk.img?size=big", "is not a size"),
        ("disk.img?delay-ms=long", "delay-ms is a number"),
        ("disk.img?delay-ms=nan", "delay-ms is between"),
        ("disk.img?reservations", "reservations is the path"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_text(text, sentence):
    with pytest.raises(UsageError) as refused:
        parse_disk(text, PLAIN, 0)
    assert sentence in refused.value.message and text in refused.value.message


def test_targets_and_their_luns():
    extra = [f"{OTHER}=c", f"{IQN.upper()}=mem:1MiB?lun=9", f"{OTHER}=d?lun=4&read-only", f"{OTHER}=e"]
    plan = plan_targets(["a", "b?serial=own"], extra, IQN, DiskOptions(serial="S", removable=True))
    assert list(plan) == [IQN, OTHER]
    assert [(disk.url, disk.lun, disk.options.serial) for disk in plan[IQN]] == [
        ("a", 0, "S"), ("b", 1, "own"), ("mem:1MiB", 9, "S-9")]
    assert [(disk.url, disk.lun, disk.options.serial, disk.options.read_only) for disk in plan[OTHER]] == [
        ("c", 0, "", False), ("d", 4, "", True), ("e", 5, "", False)]
    assert all(disk.options.removable for disks in plan.values() for disk in disks)


@pytest.mark.parametrize(
    ("urls", "extra", "iqn", "sentence"),
    [
        ([], [], IQN, "nothing to serve"),
        (["a", "b?lun=0"], [], IQN, "has a LUN 0 already"),
        (["a?lun=255", "b"], [], IQN, f"{LUNS_MAX} LUNs at most"),
        (["a"], [], "disk1", "'disk1' is no target name"),
        ([], [f"{OTHER}"], IQN, "is not IQN=URL"),
        ([], [f"{OTHER}="], IQN, "is not IQN=URL"),
        ([], ["nonsense=a"], IQN, "'nonsense' is no target name"),
        (["a"], [f"{IQN}=b?lun=0"], IQN, "has a LUN 0 already"),
    ],
)
def test_a_plan_that_cannot_be(urls, extra, iqn, sentence):
    with pytest.raises(UsageError) as refused:
        plan_targets(urls, extra, iqn, PLAIN)
    assert sentence in refused.value.message
