"""A little of the campaign of groups; `scripts/torture together` is the whole of it."""

from __future__ import annotations

import pytest
from stripe_content import BLOCK, STRIPE_BYTES, block, last_write, place
from together_campaign import Campaign, Plan


def test_two_images_cut_together_are_of_one_instant() -> None:
    with Campaign(Plan(seed=1, cuts=4, kept=2, load_s=0.1)) as one:
        one.run()
    assert (one.counts["cuts"], one.counts["frozen"], one.counts["mounted"]) == (4, 2, 4)


def stripe(numbers: range, images: int = 2) -> list[bytearray]:
    """After these writes."""
    parts = [bytearray(STRIPE_BYTES) for _ in range(images)]
    for number in numbers:
        image, offset = place(number, images)
        parts[image][offset : offset + BLOCK] = block(number)
    return parts


def last(parts: list[bytearray]) -> int:
    return last_write([bytes(part) for part in parts])


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 1200])
@pytest.mark.parametrize("images", [2, 3])
def test_the_last_write_of_an_instant(count: int, images: int) -> None:
    assert last(stripe(range(1, count + 1), images)) == count


@pytest.mark.parametrize("count", [2, 5, 600])
def test_the_second_half_without_the_first_is_found(count: int) -> None:
    parts, before = stripe(range(1, count + 1)), stripe(range(1, count - 1))
    image, _ = place(count - 1, 2)
    parts[image] = before[image]
    with pytest.raises(AssertionError, match=f"with write {count} of the stripe, block"):
        last(parts)


def test_a_torn_block_is_found() -> None:
    parts = stripe(range(1, 600))
    parts[0][BLOCK - 8 : BLOCK] = bytes(8)
    with pytest.raises(AssertionError, match="block 0 of the stripe is torn"):
        last(parts)
