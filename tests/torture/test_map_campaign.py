"""A little of the map campaign; `scripts/torture maps` is the whole of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from map_damage import Patient
from maps_campaign import DISKS, run_campaign

SEED = 20260131


@pytest.mark.parametrize("name", ["ext3", "ext4-gdt-csum", "btrfs", "ntfs", "fat16", "fat32", "exfat", DISKS])
def test_no_used_block_is_called_free(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    totals = run_campaign(SEED, range(1), 40, [name], tmp_path, said.append)
    assert totals[name].not_run == 0, said
    assert totals[name].damages == 40
    assert totals[name].faults == [], said


def test_the_same_seed_does_the_same_damage(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(random.Random(1).randbytes(1 << 16))
    places = [range(1 << 12), range(1 << 14, 1 << 15)]
    first, second = ([Patient(image).damage(places, random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == second


def test_damage_is_undone(tmp_path: Path) -> None:
    image = tmp_path / "image"
    content = random.Random(1).randbytes(1 << 16)
    image.write_bytes(content)
    patient = Patient(image)
    for seed in range(50):
        with patient.damaged(patient.damage([range(1 << 16)], random.Random(seed))):
            pass
        assert patient.content[:] == content
