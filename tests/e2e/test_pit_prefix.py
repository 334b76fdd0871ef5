"""Point-in-time proof: a writer stamps increasing numbers into several regions, each number only after the one before
was acknowledged. Whatever the moment of the freeze, the backup must hold a prefix of what it wrote."""
from __future__ import annotations

import asyncio

import pytest

from detour.core.stamps import ordered_prefix
from tests.support.site import Site, same_files

SIZE = 16 << 20
SEED = 42
DETOURS = 4


@pytest.mark.slow
def test_every_backup_is_a_prefix_of_what_was_written(tmp_path):
    asyncio.run(backups_of_an_ordered_writer(tmp_path))


async def backups_of_an_ordered_writer(tmp_path):
    async with Site(tmp_path, SIZE) as site:
        await site.start_gateway()
        host = await site.open_host()
        load = await site.load(host, mode="ordered", depth=4, read_share=0.3, seed=SEED)
        newest_before = 0
        for _ in range(DETOURS):
            document = await site.backup()
            assert document["result"] == "done", document
            image = site.backup_image.read_bytes()
            newest, wrong = ordered_prefix(image, seed=SEED)
            assert wrong == -1, f"unit {wrong} is not of the prefix up to {newest}"
            assert newest > newest_before, "the writer went on between two backups"
            assert same_files(site.backup_image, site.pit_image) is None
            newest_before = newest
        await site.check_home()
        await load.stop()
        await host.flush()
        assert load.total("errors") == 0 and load.total("mismatches") == 0, load.faults()
        newest, wrong = ordered_prefix(site.main_image.read_bytes(), seed=SEED)
        assert wrong == -1 and newest > newest_before, "main, at home, holds the whole sequence"
