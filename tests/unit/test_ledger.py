"""The ledger of writes: an image that is right passes, and each way of being wrong is told."""
from tests.support.ledger import BLOCK_BYTES, Ledger

FIRST = 2


def ledger_of(*writes):
    """A ledger of (place, issued, acked) and the blocks of its writes."""
    ledger, blocks = Ledger(FIRST, 4), []
    for place, issued_ns, acked_ns in writes:
        number, _ = ledger.issue(place)
        ledger.writes[number].issued_ns = issued_ns
        ledger.writes[number].acked_ns = acked_ns
        blocks.append(ledger.block(number))
    return ledger, blocks


def image_of(**places):
    image = bytearray((FIRST + 4) * BLOCK_BYTES)
    for name, block in places.items():
        at = (FIRST + int(name[1:])) * BLOCK_BYTES
        image[at:at + BLOCK_BYTES] = block
    return bytes(image)


def test_what_is_right():
    ledger, blocks = ledger_of((0, 10, 20), (0, 30, 0), (1, 10, 60), (2, 70, 80))
    for block in blocks[:2]:                    # the second was under way at the moment: it may be there, or not
        verdict = ledger.check(image_of(p0=block, p1=blocks[2]), 50)
        assert verdict.wrong == [] and verdict.blocks == 2
    assert verdict.under_way == 2 and ledger.check(image_of(p0=blocks[0]), 50).wrong == []


def test_a_write_from_behind_the_moment():
    ledger, blocks = ledger_of((0, 10, 20), (0, 51, 60))
    assert "after the moment" in ledger.check(image_of(p0=blocks[1]), 50).wrong[0]


def test_a_write_that_was_lost_or_went_back():
    ledger, blocks = ledger_of((0, 10, 20), (0, 30, 40))
    for image in (image_of(p0=blocks[0]), image_of()):
        assert "was acknowledged before" in ledger.check(image, 50).wrong[0]


def test_blocks_that_are_torn_foreign_or_elsewhere():
    ledger, blocks = ledger_of((0, 10, 0), (1, 10, 0))
    torn = blocks[0][:512] + bytes(BLOCK_BYTES - 512)
    for image, said in ((image_of(p0=torn), "torn"), (image_of(p0=blocks[1]), "elsewhere"),
                        (image_of(p0=b"x" * BLOCK_BYTES), "no write")):
        assert said in ledger.check(image, 50).wrong[0]
