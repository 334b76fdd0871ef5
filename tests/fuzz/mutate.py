"""What is done to text and bytes that were right before."""
from __future__ import annotations

import random

NUMBERS = ["0", "1", "-1", "511", "512", "513", "8191", "65535", "65536", "16777215", "16777216", "4294967295",
           "4294967296", "99999999999", "0x200", "0X1g", "0x", "1e3", " 1", "1 ", "", "Yes", "No", "yes", "None",
           "CRC32C,None", "None,CRC32C", "CRC32C", ",", ",,", "Reject", "NotUnderstood", "Irrelevant", "0b", "0bAA==",
           "0b*", "0x0", "0xAB" * 40, "CHAP", "CHAP,None", "5", "7", "8,7,6,5", "9", "\u00e9", "\u0661", "a" * 300,
           "a" * 9000, "=", "a=b", "All", "Normal", "Discovery", "127.0.0.1:3260,1", "[::1]:99999", "[", "%", "\n"]


def bytes_of(data: bytes, chance: random.Random) -> bytes:
    """The data with a few bytes other, gone, twice or new."""
    out = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        what, at = chance.randrange(7), chance.randrange(len(out) + 1)
        if what == 0 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif what == 1 and out:
            out[at % len(out)] = chance.choice([0, 0xFF, 0x7F, 0x80, chance.randrange(256)])
        elif what == 2:
            del out[at:at + chance.choice([1, 4, 100])]
        elif what == 3:
            out[at:at] = out[at:at + chance.choice([1, 4, 64])]
        elif what == 4:
            out[at:at] = chance.randbytes(chance.choice([1, 4, 64]))
        elif what == 5:
            length = chance.choice([2, 4, 8])
            out[at:at + length] = chance.choice([0, 1, (1 << 8 * length) - 1, 1 << 8 * length - 1, 1 << 4 * length]
                                                ).to_bytes(length, chance.choice(["little", "big"]))
        else:
            out[at:at] = chance.choice(NUMBERS).encode()
    return bytes(out)


def pairs_of(pairs: list[tuple[str, str]], chance: random.Random, names: list[str]) -> list[tuple[str, str]]:
    """Keys and values with one or a few of them odd."""
    out = list(pairs)
    for _ in range(chance.choice([1, 1, 1, 3])):
        what = chance.randrange(8)
        at = chance.randrange(len(out)) if out else 0
        if what <= 2 and out:
            out[at] = (out[at][0], chance.choice(NUMBERS))
        elif what == 3 and out:
            del out[at]
        elif what == 4 and out:
            out.insert(chance.randrange(len(out) + 1), out[at])
        elif what == 5:
            out.append((chance.choice(names), chance.choice(NUMBERS)))
        elif what == 6:
            chance.shuffle(out)
        elif out:
            out[at] = (chance.choice([*names, "X-com.example", "x" * 64, "\u00e9"]), out[at][1])
    return out
