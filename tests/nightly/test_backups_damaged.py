"""What is damaged in a directory of backups, which times are lost with it, and what is somebody else's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nightly_rig import CELL, Nights, new_nights, run, snapfs, with_other_bytes


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Nights, list[bytes]]]:
    """Four nights; cell 3 is written in the second and in the fourth one, 9 in the third."""
    with new_nights() as nights:
        images = [nights.image.read_bytes()]
        nights.back_up()
        for cells in ((3, 5), (9,), (3, 12)):
            images.append(nights.change(*cells))
            nights.back_up()
        yield nights, images


@pytest.fixture
def four(nights: Nights, made: tuple[Nights, list[bytes]]) -> list[bytes]:
    """A copy of them, to be damaged."""
    original, images = made
    shutil.copytree(original.backups, nights.backups, dirs_exist_ok=True)
    shutil.copy(original.image, nights.image)
    return images


def times(nights: Nights, *numbers: int) -> str:
    listed = nights.listed()
    return ", ".join(listed[number]["taken_at"] for number in numbers)


def data_at(path: Path, cell: int) -> int:
    """Where the file has the bytes of a cell."""
    found = json.loads(run("qemu-img", "map", "--output=json", path))
    one = next(one for one in found if one["start"] <= cell * CELL < one["start"] + one["length"])
    assert one["depth"] == 0
    return int(one["offset"]) + cell * CELL - int(one["start"])


def test_whole_ones_are_noted_as_verified(nights: Nights, four: list[bytes]) -> None:
    snapfs("verify", nights.backups).ok()
    assert [bool(one["verified_at"]) for one in nights.listed()] == [False, False, False, True]
    done = snapfs("verify", nights.backups, "--all", "--json").ok()
    assert len(json.loads(done.out)["good"]) == 4
    assert all(one["verified_at"] for one in nights.listed())


def test_damaged_data_lose_the_times_that_need_them_and_no_other(nights: Nights, four: list[bytes]) -> None:
    path = nights.file(1, ".qcow2")
    with_other_bytes(path, data_at(path, 3) + 50)
    done = snapfs("verify", nights.backups, "--all")
    done.refuses(3, f"{path.name} is damaged", f"at {3 * CELL}", f"lost: {times(nights, 1, 2)}")
    assert f"good: {times(nights, 0, 3)}" in done.err
    assert nights.restored() == four[3]
    assert nights.restored("--at", nights.listed()[0]["name"]) == four[0]
    image = nights.path / "lost.img"
    snapfs("restore", nights.backups, image, "--at", nights.listed()[2]["name"]).refuses(3, "--all says which")
    assert not image.exists()


def test_a_cell_more_or_less_than_the_table_says_is_damage(nights: Nights, four: list[bytes]) -> None:
    run("qemu-io", "-f", "qcow2", "-c", f"write -q {30 * CELL} {CELL}", nights.file(2, ".qcow2"))
    done = snapfs("verify", nights.backups)
    done.refuses(3, f"at {30 * CELL}", "is not what was written", f"lost: {times(nights, 3)}")


@pytest.mark.parametrize("end", [".cells", ".json"])
def test_a_damaged_table_or_facts_lose_all_that_stand_on_them(nights: Nights, four: list[bytes], end: str) -> None:
    with_other_bytes(nights.file(2, end), 40)
    done = snapfs("verify", nights.backups, "--all")
    done.refuses(3, nights.file(2, end).name, f"lost: {times(nights, 2, 3)}", f"good: {times(nights, 0, 1)}")
    made = nights.back_up()
    assert made["kind"] == "full"
    assert nights.file(2, end).name in made["why"]
    assert nights.restored() == four[3]


@pytest.mark.parametrize("end", [".qcow2", ".cells", ".json"])
def test_a_missing_file_is_named_and_the_next_backup_is_a_full_one(
    nights: Nights, four: list[bytes], end: str
) -> None:
    path = nights.file(1, end)
    path.unlink()
    snapfs("verify", nights.backups).refuses(3, f"{path} is missing", f"lost: {times(nights, 3)}")
    snapfs("restore", nights.backups, nights.path / "r.img").refuses(3, f"{path} is missing")
    assert nights.back_up()["kind"] == "full"
    assert nights.restored() == four[3]


def test_a_file_in_the_place_of_another_is_found_out(nights: Nights, four: list[bytes]) -> None:
    """An older state of a link, put back by a restore of the directory itself."""
    for end in (".qcow2", ".cells", ".json"):
        path = nights.file(1, end)
        path.with_name("aside").write_bytes(path.read_bytes())
        path.write_bytes(nights.file(2, end).read_bytes())
        path.with_name("aside").rename(nights.file(2, end))
    snapfs("verify", nights.backups).refuses(3, "under another name")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[" * 100_000, b'{"version": 1, "chain": "x"}'])
def test_a_list_that_is_missing_or_damaged_is_made_again(
    nights: Nights, four: list[bytes], content: bytes | None
) -> None:
    before = nights.listed()
    path = nights.backups / "chain.json"
    chain = json.loads(path.read_text())["chain"]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    done = snapfs("backups", nights.backups, "--json").ok()
    assert "made again from the backups" in done.err
    assert [one["name"] for one in json.loads(done.out)["backups"]] == [one["name"] for one in before]
    assert nights.back_up()["kind"] == "increment"
    assert json.loads(path.read_text())["chain"] == chain
    assert snapfs("backups", nights.backups).ok().err == ""


def test_a_backup_that_is_not_listed_is_found(nights: Nights, four: list[bytes]) -> None:
    """Its maker was killed just before."""
    path = nights.backups / "chain.json"
    data = json.loads(path.read_text())
    del data["backups"][2:]
    path.write_text(json.dumps(data))
    assert len(nights.listed()) == 4
    assert nights.restored() == four[3]


def test_files_of_others_stay_and_are_not_taken_for_backups(nights: Nights) -> None:
    others = {"notes.json": "{}", "x.qcow2": "", "x.json": "[1]", "old.qcow2.partial": "x", "chain": "x"}
    for name, content in others.items():
        (nights.backups / name).write_text(content)
    nights.back_up()
    nights.back_up()
    assert nights.debris() == set(others)
    assert {name: (nights.backups / name).read_text() for name in others} == others
    snapfs("verify", nights.backups, "--all").ok()


def test_another_backing_file_is_not_followed(nights: Nights, four: list[bytes]) -> None:
    secret = nights.path / "secret"
    secret.write_bytes(b"secret" * CELL)
    path = nights.file(1, ".qcow2")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, path)
    snapfs("restore", nights.backups, nights.path / "r.img").refuses(3, "has not the backing file that it should")
    snapfs("verify", nights.backups).refuses(3, "has not the backing file that it should")
    full = nights.file(0, ".qcow2")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, full)
    snapfs("verify", nights.backups).refuses(3, f"{full} has a backing file")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", "a\0b"])
def test_a_name_that_leads_elsewhere_is_none(nights: Nights, four: list[bytes], name: str) -> None:
    path = nights.backups / "chain.json"
    data = json.loads(path.read_text())
    data["backups"][1]["name"] = name
    path.write_text(json.dumps(data))
    assert "made again" in snapfs("backups", nights.backups).ok().err
    assert nights.restored() == four[3]


def test_a_link_in_the_place_of_a_file_is_not_followed(nights: Nights, four: list[bytes]) -> None:
    path = nights.file(1, ".qcow2")
    path.rename(nights.path / "elsewhere")
    path.symlink_to(nights.path / "elsewhere")
    snapfs("restore", nights.backups, nights.path / "r.img").refuses(3, "is a symbolic link")


def test_a_directory_without_backups_is_said_to_be_one(nights: Nights) -> None:
    for words in (("backups", nights.backups), ("verify", nights.backups)):
        snapfs(*words).refuses(2, "There is no backup in")
    snapfs("restore", nights.backups, nights.path / "r.img").refuses(2, "There is no backup in")
    snapfs("backups", nights.image).refuses(2, "is no directory")
