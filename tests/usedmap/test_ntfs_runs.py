"""Run lists of NTFS: many decoded at once say what each says alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from snapfs.usedmap.ntfs_runs import PADDING_BYTES, runs_at_once, runs_one_by_one
from snapfs.usedmap.result import MapError


def random_list(dice: random.Random) -> bytes:
    """A run list, mostly a true one of a volume of a million clusters."""
    content, at = b"", 0
    for _ in range(dice.choice((0, 1, 1, 2, 3, 40))):
        length, start = dice.randint(1, 300), dice.randint(0, 1 << 20)
        length_bytes = dice.randint(2, 8)
        if dice.random() < 0.2:
            content += bytes([length_bytes]) + length.to_bytes(length_bytes, "little")
            continue
        step_bytes = dice.randint(3, 8)
        content += bytes([length_bytes | step_bytes << 4]) + length.to_bytes(length_bytes, "little")
        content += (start - at).to_bytes(step_bytes, "little", signed=True)
        at = start
    return content + b"\0" * dice.randint(0, 1)


def test_many_lists_at_once_say_what_they_say_one_by_one() -> None:
    dice = random.Random(5)
    clusters = (1 << 20) + 300
    lists = [random_list(dice) for _ in range(400)]
    content = b"".join(lists)
    padded = np.frombuffer(content + bytes(-len(content) % 8 + PADDING_BYTES), np.uint8)
    lengths = np.array([len(item) for item in lists])
    ends = np.cumsum(lengths)
    found = runs_at_once(padded, ends - lengths, ends, clusters)
    one_by_one = [list(runs_one_by_one(item, clusters)) for item in lists]
    assert found.spans.tolist() == [sum(length for _, length in runs) for runs in one_by_one]
    expected = sorted((start, start + length) for runs in one_by_one for start, length in runs if start is not None)
    assert sorted(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    "broken", [b"\x10\5", b"\x19" + bytes(9), b"\x91" + bytes(12), b"\x11\5", b"\x11\0\5", b"\x11\5\x81"]
)
def test_broken_lists_are_refused_at_once_as_one_by_one(broken: bytes) -> None:
    with pytest.raises(MapError):
        list(runs_one_by_one(broken, 100))
    content = broken * 50
    padded = np.frombuffer(content + bytes(-len(content) % 8 + PADDING_BYTES), np.uint8)
    firsts = np.arange(50) * len(broken)
    with pytest.raises(MapError):
        runs_at_once(padded, firsts, firsts + len(broken), 100)
