"""What a single pass over the snapshot releases, and when."""

from __future__ import annotations

from snapfs.servers.single_pass import LAG_BYTES, STEP_BYTES, SinglePass

MIB = 1 << 20
IMAGE_BYTES = 1 << 30


def new_pass() -> tuple[SinglePass, list[tuple[int, int]]]:
    released: list[tuple[int, int]] = []
    return SinglePass(IMAGE_BYTES, lambda offset, length: released.append((offset, length))), released


def test_nothing_is_released_within_the_lag() -> None:
    single_pass, released = new_pass()
    single_pass.note_read(0, LAG_BYTES)
    assert released == []


def test_what_lies_a_lag_behind_is_released_step_by_step() -> None:
    single_pass, released = new_pass()
    for offset in range(0, 4 * STEP_BYTES, MIB):
        single_pass.note_read(offset, MIB)
    assert released == [(step * STEP_BYTES, STEP_BYTES) for step in range(3)]


def test_reads_in_any_order_count_when_the_gap_is_closed() -> None:
    single_pass, released = new_pass()
    single_pass.note_read(LAG_BYTES, STEP_BYTES)
    assert released == []
    single_pass.note_read(0, LAG_BYTES)
    assert released == [(0, STEP_BYTES)]


def test_a_read_elsewhere_releases_nothing() -> None:
    single_pass, released = new_pass()
    single_pass.note_read(512 * MIB, 256 * MIB)
    single_pass.note_close()
    assert released == []


def test_closing_after_the_end_releases_the_rest() -> None:
    single_pass, released = new_pass()
    for offset in range(0, IMAGE_BYTES, MIB):
        single_pass.note_read(offset, MIB)
    single_pass.note_close()
    assert sum(length for _, length in released) == IMAGE_BYTES


def test_closing_before_the_end_releases_no_more() -> None:
    single_pass, released = new_pass()
    single_pass.note_read(0, LAG_BYTES)
    single_pass.note_close()
    assert released == []


def test_holes_count_when_what_comes_behind_them_is_read() -> None:
    single_pass, released = new_pass()
    # Whoever looks for all of them first, as qemu-img does, asks for each once more.
    for _ in range(2):
        single_pass.note_hole(0, LAG_BYTES + STEP_BYTES)
        single_pass.note_hole(LAG_BYTES + STEP_BYTES + MIB, IMAGE_BYTES)
    assert released == []
    single_pass.note_read(LAG_BYTES + STEP_BYTES, MIB)
    assert released == [(0, STEP_BYTES + MIB)]


def test_the_hole_at_the_end_counts_when_the_file_is_closed() -> None:
    single_pass, released = new_pass()
    single_pass.note_hole(MIB, IMAGE_BYTES - MIB)
    single_pass.note_close()
    assert released == []
    single_pass.note_read(0, MIB)
    single_pass.note_hole(MIB, IMAGE_BYTES - MIB)
    single_pass.note_close()
    assert released == [(0, IMAGE_BYTES)]


def test_much_that_lies_ahead_is_noted_in_no_time() -> None:
    single_pass, released = new_pass()
    for offset in range(MIB, IMAGE_BYTES, 8192):
        single_pass.note_read(offset, 4096)
    single_pass.note_read(0, IMAGE_BYTES)
    assert released == [(0, IMAGE_BYTES - LAG_BYTES)]
