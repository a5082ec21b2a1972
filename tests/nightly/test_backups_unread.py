"""What cannot be read is zeros in a backup, is listed there, and is read again for the next one."""

from __future__ import annotations

import os

from bad_sectors import bad_device, with_zeros
from nightly_rig import CELL, MIB, Nights, snapfs

BAD = (40, 41, 5000)
SKIP = ("--on-read-error", "skip")


def test_bad_sectors_are_zeros_and_listed_and_the_backups_are_whole(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(4 * MIB))
    with bad_device(nights.image, nights.path / "bad", BAD) as device:
        snapfs("backup", device, nights.backups).refuses(1, "--on-read-error skip")
        assert list(nights.backups.iterdir()) == []
        done = snapfs("backup", device, nights.backups, *SKIP)
        assert done.code == 4
        assert "1536 bytes in 2 ranges" in done.err
    assert nights.restored_with(4) == with_zeros(nights.image, BAD)
    assert [one["length"] for one in nights.facts(0)["unread"]] == [1024, 512]
    assert nights.listed()[0]["unread_bytes"] == 1536
    snapfs("verify", nights.backups).ok()


def test_what_can_be_read_again_is_in_the_next_one(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(4 * MIB))
    with bad_device(nights.image, nights.path / "bad", BAD) as device:
        assert snapfs("backup", device, nights.backups, *SKIP).code == 4
    made = nights.back_up("--force")
    assert (made["kind"], made["data_bytes"]) in {("increment", 2 * CELL), ("full", 4 * MIB)}
    assert nights.restored() == nights.image.read_bytes()
    assert nights.facts(1)["unread"] == []


def test_what_went_bad_since_is_zeros_in_the_increment_alone(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(4 * MIB))
    with bad_device(nights.image, nights.path / "bad", ()) as device:
        snapfs("backup", device, nights.backups).ok()
        name = device.name
    with bad_device(nights.image, nights.path / "bad", BAD) as device:
        force = () if device.name == name else ("--force",)
        assert snapfs("backup", device, nights.backups, *SKIP, *force).code == 4
    first, second = (one["name"] for one in nights.listed())
    assert nights.restored("--at", first) == nights.image.read_bytes()
    assert nights.restored_with(4, "--at", second) == with_zeros(nights.image, BAD)
    assert nights.facts(1)["data_cells"] == 2
