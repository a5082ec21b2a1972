"""Commands that read a snapshot, of one that is named: which is meant, and what is told of an older one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ground import Ground
from mounted import Mounted, snapfs, wait_until

BLOCK_BYTES = 4096
MIB = 1 << 20


@dataclass(frozen=True)
class Chain:
    """An instance with the snapshots mon, tue and the newest, without a name; before and after each of them a block
    was written to."""

    instance: Mounted
    contents: dict[str, bytes]

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = listed(self.instance)
        return found


def listed(instance: Mounted) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = printed("list", instance.live)["snapshots"]
    return found


def printed(*words: str | Path) -> dict[str, Any]:
    """What a command, which must succeed, prints with --json."""
    done = snapfs(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write(instance: Mounted, block_no: int) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(BLOCK_BYTES), block_no * BLOCK_BYTES)
        os.fsync(file.fileno())


def cut(instance: Mounted, *options: str) -> bytes:
    """Take one; what it has to hold."""
    assert snapfs("snapshot", instance.live, *options).returncode == 0
    return instance.live_file.read_bytes()


@pytest.fixture(scope="module")
def chain(module_ground: Ground) -> Chain:
    instance = module_ground.mounted(module_ground.image(os.urandom(2 * MIB)), "--protect", "all")
    contents = {"mon": cut(instance, "--name", "mon")}
    write(instance, 1)
    # One that is hidden, or merged into the one before, from the next on.
    cut(instance)
    write(instance, 10)
    contents["tue"] = cut(instance, "--name", "tue")
    write(instance, 20)
    contents[""] = cut(instance)
    write(instance, 30)
    return Chain(instance, contents)


@pytest.mark.parametrize(
    ("names", "blocks"),
    [((), [30]), (("tue",), [20, 30]), (("mon",), [1, 10, 20, 30]), (("mon", "tue"), [1, 10]), (("mon", "mon"), [])],
)
def test_what_was_written_since_one_and_until_another(chain: Chain, names: Sequence[str], blocks: list[int]) -> None:
    found = printed("diff", chain.instance.live, *names)
    assert [one["start"] // BLOCK_BYTES for one in found["extents"]] == blocks
    ids = {one["name"]: one["id"] for one in chain.snapshots}
    assert found["id"] == ids[names[0] if names else ""]
    assert (found["until"] or {}).get("id") == (ids[names[1]] if len(names) > 1 else None)


def test_between_two_for_people(chain: Chain) -> None:
    lines = snapfs("diff", chain.instance.live, "mon", "tue").stdout.splitlines()
    mon, tue, _ = (one["taken_at"] for one in chain.snapshots)
    assert lines[0] == f"8 KiB of 2 MiB written between {mon} and {tue}"


def test_the_older_one_is_named_first(chain: Chain) -> None:
    done = snapfs("diff", chain.instance.live, "tue", "mon")
    assert (done.returncode, done.stdout) == (2, "")
    assert "mon is older than tue; name the older one first." in done.stderr


def test_a_status_is_of_the_one_that_is_named(chain: Chain) -> None:
    status = printed("status", chain.instance.live, "--snapshot", "mon")
    mon = {key: value for key, value in chain.snapshots[0].items() if key not in ("group", "alone_bytes")}
    assert status["snapshot"].items() >= mon.items()
    # The two blocks before tue are in its own part of the side buffer, or were merged into it.
    assert status["snapshot"]["preserved_blocks"] in (1, 2)
    assert [one["id"] for one in status["snapshots"]] == [one["id"] for one in chain.snapshots]


def test_a_status_without_a_name_is_of_the_newest(chain: Chain) -> None:
    assert printed("status", chain.instance.live)["snapshot"]["id"] == chain.snapshots[-1]["id"]


def test_a_status_for_people_says_where_it_is(chain: Chain) -> None:
    lines = snapfs("status", chain.instance.live, "--snapshot", "mon").stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("snapshot "))
    assert line.split()[1] == str(chain.instance.snap / ".snapshots" / "mon")


@pytest.mark.parametrize("name", ["mon", "tue", ""])
def test_a_backup_has_what_the_snapshot_shows(chain: Chain, tmp_path: Path, name: str) -> None:
    (snapshot_id,) = (one["id"] for one in chain.snapshots if one["name"] == name)
    made = printed("backup", chain.instance.live, tmp_path / "copy", "--snapshot", name or snapshot_id)
    assert (tmp_path / "copy").read_bytes() == chain.contents[name]
    assert made["cut"]["id"] == snapshot_id


def test_the_id_of_another_is_no_name(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    cut(instance, "--name", "mon")
    (mon,) = listed(instance)
    done = snapfs("snapshot", instance.live, "--name", mon["id"])
    assert (done.returncode, "which is how ids are written" in done.stderr) == (2, True)


def test_a_map_is_of_the_one_that_is_named(chain: Chain, tmp_path: Path) -> None:
    found = printed("map", chain.instance.live, "--snapshot", "mon")
    assert found["extents"] == [{"start": 0, "length": 2 * MIB, "data": True}]
    (region,) = found["regions"]
    assert region["reason"] == "every block is protected"


@pytest.fixture
def pair(ground: Ground) -> Chain:
    """An instance with the snapshots mon and tue; before tue half of the image was overwritten."""
    instance = ground.mounted(ground.image(os.urandom(2 * MIB)), "--protect", "all")
    contents = {"mon": cut(instance, "--name", "mon")}
    with instance.live_file.open("r+b", buffering=0) as file:
        file.write(os.urandom(MIB))
    contents["tue"] = cut(instance, "--name", "tue")
    return Chain(instance, contents)


def shown_file(chain: Chain, name: str) -> Path:
    instance = chain.instance
    return instance.snap / ".snapshots" / name / instance.live_file.name


def test_an_older_one_alone_loses_what_is_released_of_it(pair: Chain) -> None:
    mon = shown_file(pair, "mon")
    assert mon.read_bytes() == pair.contents["mon"]
    assert printed("release", pair.instance.live, "--all", "--snapshot", "mon")["released_bytes"] == 2 * MIB
    wait_until(lambda: is_released(mon))
    assert shown_file(pair, "tue").read_bytes() == pair.contents["tue"]
    assert printed("status", pair.instance.live)["snapshot"]["released_blocks"] == 0


def is_released(file: Path) -> bool:
    """Whether reads of it fail, also where the kernel had its pages."""
    try:
        file.read_bytes()
    except OSError as error:
        return error.errno == errno.ENODATA
    return False


def test_what_is_released_of_an_older_one_goes_back_to_the_disk(pair: Chain) -> None:
    wait_until(lambda: stored_bytes(pair.instance) >= MIB and not staged_bytes(pair.instance))
    printed("release", pair.instance.live, "--all", "--snapshot", "mon")
    wait_until(lambda: stored_bytes(pair.instance) == 0)


def stored_bytes(instance: Mounted) -> int:
    found: int = printed("status", instance.live)["buffer"]["stored_bytes"]
    return found


def staged_bytes(instance: Mounted) -> int:
    found: int = printed("status", instance.live)["buffer"]["staged_bytes"]
    return found


def test_a_backup_of_an_older_one_releases_what_it_has(pair: Chain, tmp_path: Path) -> None:
    printed("backup", pair.instance.live, tmp_path / "copy", "--snapshot", "mon", "--release")
    assert (tmp_path / "copy").read_bytes() == pair.contents["mon"]
    assert printed("status", pair.instance.live, "--snapshot", "mon")["snapshot"]["released_blocks"] == 512
    wait_until(lambda: stored_bytes(pair.instance) == 0)
    assert shown_file(pair, "tue").read_bytes() == pair.contents["tue"]


def test_the_newest_is_released_by_its_name(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    cut(instance, "--name", "mon")
    assert printed("release", instance.live, "--all", "--snapshot", "mon")["released_bytes"] == MIB


@pytest.mark.parametrize(
    "words",
    [
        ("status", "LIVE", "--snapshot", "NAME"),
        ("backup", "LIVE", "DEST", "--snapshot", "NAME"),
        ("map", "LIVE", "--snapshot", "NAME"),
        ("release", "LIVE", "--all", "--snapshot", "NAME"),
        ("browse", "LIVE", "NAME", "DEST"),
        ("diff", "LIVE", "NAME"),
        ("diff", "LIVE", "mon", "NAME"),
    ],
)
@pytest.mark.parametrize(("name", "shown"), [("none", "none"), ("", "''")])
def test_one_that_is_not_there(chain: Chain, tmp_path: Path, words: Sequence[str], name: str, shown: str) -> None:
    given = {"LIVE": chain.instance.live, "DEST": tmp_path / "dest", "NAME": name}
    done = snapfs(*(given.get(word, word) for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"has no snapshot {shown}; snapfs list says which there are." in done.stderr
    assert not (tmp_path / "dest").exists()


def test_a_backup_is_of_a_new_snapshot_or_of_one_that_is_named(chain: Chain, tmp_path: Path) -> None:
    done = snapfs("backup", chain.instance.live, tmp_path / "copy", "--snapshot", "mon", "--cut")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--cut makes a new snapshot, and --snapshot names one; leave out one of them." in done.stderr


@pytest.mark.parametrize("command", ["backup", "map"])
def test_an_image_that_is_not_mounted_has_none(ground: Ground, tmp_path: Path, command: str) -> None:
    more = (tmp_path / "copy",) if command == "backup" else ()
    done = snapfs(command, ground.image(MIB), *more, "--snapshot", "mon")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not mounted with snapfs; " in done.stderr


def test_a_status_of_all_is_of_no_snapshot() -> None:
    done = snapfs("status", "--snapshot", "mon")
    assert (done.returncode, done.stdout) == (2, "")
    assert "name LIVE, SNAP or IMAGE beside --snapshot" in done.stderr
