"""What is released while the compactor has it in its hands is given back once the compactor is idle."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from engine_rig import Rig, pattern

from cow.disk.layout import Counter, CutCounter
from cow.errors import BlockReleased

BLOCK_BYTES, BLOCKS = 4096, 64
OLD, NEW = pattern(BLOCKS * BLOCK_BYTES, seed=1), pattern(BLOCKS * BLOCK_BYTES, seed=2)
MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """All blocks preserved, their content in the ring."""
    rig = make_rig(OLD, staging_slots=4 * BLOCKS)
    rig.open()
    rig.write(0, NEW)
    return rig


def release_within_store(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks are released in the compactor's next step, after it has looked which are."""
    real = rig.compactor._records._writer.append

    def append(records: Iterable[bytes]) -> object:
        monkeypatch.undo()
        rig.engine.release(0, BLOCKS)
        return real(records)

    monkeypatch.setattr(rig.compactor._records._writer, "append", append)


def kept_bytes(rig: Rig) -> int:
    return rig.numbers[CutCounter.STORED_BYTES] - rig.numbers[CutCounter.RETURNED_BYTES]


def assert_all_given_back(rig: Rig) -> None:
    assert rig.engine.rest()
    assert kept_bytes(rig) == 0
    with pytest.raises(BlockReleased):
        rig.reader.read(0, BLOCK_BYTES)


def test_a_record_made_meanwhile_is_given_back_at_rest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    release_within_store(rig, monkeypatch)
    rig.compactor.drain()
    assert kept_bytes(rig) > 0
    rig.control[Counter.COMPACTOR_IDLE] = 1
    assert_all_given_back(rig)


def test_nothing_is_looked_at_while_the_compactor_works(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    release_within_store(rig, monkeypatch)
    rig.compactor.drain()
    assert not rig.engine.rest()
    assert kept_bytes(rig) > 0


def test_a_record_squeezed_meanwhile_is_counted_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cow.compact.compactor.acceleration_for", lambda share: 0)
        rig.compactor.drain()
    release_within_store(rig, monkeypatch)
    while rig.compactor.squeeze():
        pass
    rig.control[Counter.COMPACTOR_IDLE] = 1
    assert_all_given_back(rig)


def test_what_an_idle_compactor_has_stored_is_given_back_at_once(rig: Rig) -> None:
    rig.compactor.drain()
    rig.control[Counter.COMPACTOR_IDLE] = 1
    rig.engine.release(0, BLOCKS)
    assert kept_bytes(rig) == 0
