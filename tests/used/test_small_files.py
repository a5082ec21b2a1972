"""Damaged small files of a store cost what they held, never the mount or the status."""

from __future__ import annotations

from mounted import snapfs
from used_rig import MIB, UsedGround, await_map


def test_a_damaged_note_costs_only_what_it_held(ground: UsedGround) -> None:
    image = ground.filled("ext4", 16 * MIB)
    instance = ground.mounted(image, "--store", ground.path / "store")
    assert snapfs("snapshot", instance.live).returncode == 0
    before = await_map(instance)
    regions = instance.store / "cut-00000002" / "regions.json"
    regions.write_bytes(b"")
    assert instance.status()["snapshot"]["regions"] == []
    instance.umount()
    instance.mount()
    # What was frozen is known, so the map is computed again.
    after = await_map(instance)
    assert after["regions"] == before["regions"]
    assert after["used_blocks"] == before["used_blocks"]
    instance.umount()
    regions.write_bytes(b"[{")
    regions.with_name("facts.json").write_bytes(b"{}")
    instance.mount()
    last = instance.status()["snapshot"]
    assert (last["state"], last["map"], last["regions"]) == ("active", "none", [])
    instance.umount()
