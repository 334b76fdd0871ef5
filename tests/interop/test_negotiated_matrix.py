"""Negotiated values: any values of any three keys meet, with data compared byte for byte. The full product is run by
`python -m tests.interop.negotiated_matrix`."""
from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.interop import negotiated_matrix as matrix

STRENGTH = 3


@pytest.mark.parametrize("driver", ["initiator", "raw"])
def test_data_survives_every_three_values(driver):
    wanted = matrix.covering(STRENGTH)
    report = asyncio.run(matrix.drive(driver, wanted))
    assert report.combinations == len(wanted) and report.bytes_moved > 100 << 20


def test_the_subset_holds_every_three_values():
    chosen = matrix.covering(STRENGTH)
    assert len(chosen) < 300
    for names in itertools.combinations(matrix.VALUES, STRENGTH):
        met = {tuple(getattr(each, name) for name in names) for each in chosen}
        assert met == set(itertools.product(*(matrix.VALUES[name] for name in names)))


def test_a_byte_that_differs_is_seen():
    """The comparison itself: a disk that spoils what it took."""
    async def work():
        async with matrix.InitiatorDriver() as driver:
            one = matrix.covering(1)[0]
            driver.image[3] ^= 1
            with pytest.raises(AssertionError):
                await driver.run(one)

    asyncio.run(work())
    raw = matrix.RawDriver()
    raw.world.image[3] ^= 1
    with pytest.raises(AssertionError):
        raw.run(matrix.covering(1)[0])


def test_the_full_product_is_what_the_documentation_says():
    assert sum(1 for _ in matrix.all_of_them()) == 6144
