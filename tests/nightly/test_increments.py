"""What each backup of a chain holds, and why it is a full one."""

from __future__ import annotations

import os

import pytest
from imager_rig import overwrite
from nightly_rig import CELL, MIB, Nights, run, snapfs


def test_a_full_one_then_only_what_differs(nights: Nights) -> None:
    first = nights.image.read_bytes()
    made = nights.back_up()
    assert (made["kind"], made["why"], made["base"]) == ("full", "it is the first", None)
    second = nights.change(3, 4, 40, 64)
    made = nights.back_up()
    assert (made["kind"], made["data_bytes"]) == ("increment", 4 * CELL)
    assert "is not mounted" in made["why"]
    names = [one["name"] for one in nights.listed()]
    assert nights.restored("--at", names[0]) == first
    assert nights.restored() == second
    assert nights.restored("--at", f"{names[1]}.qcow2") == second
    assert nights.debris() == set()


def test_every_link_is_whole_for_qemu(nights: Nights) -> None:
    images = [nights.image.read_bytes()]
    nights.back_up()
    for cells in ((1,), (2, 64), ()):
        images.append(nights.change(*cells))
        nights.back_up()
    for number, image in enumerate(images):
        (nights.path / "then.img").write_bytes(image)
        run("qemu-img", "check", "-q", nights.file(number, ".qcow2"))
        words = ("-f", "qcow2", "-F", "raw", nights.file(number, ".qcow2"), nights.path / "then.img")
        run("qemu-img", "compare", "-q", *words)


@pytest.mark.parametrize("hole", [True, False], ids=["hole", "zeros"])
def test_what_became_zeros_is_hidden(nights: Nights, hole: bool) -> None:
    nights.back_up()
    length = 3 * CELL
    if hole:
        run("fallocate", "--punch-hole", "--offset", str(2 * CELL), "--length", str(length), nights.image)
    else:
        with nights.image.open("r+b") as file:
            file.seek(2 * CELL)
            file.write(bytes(length))
    assert nights.back_up()["data_bytes"] == 0
    assert nights.facts(1)["zero_cells"] == 3
    assert nights.restored() == nights.image.read_bytes()
    (nights.path / "then.img").write_bytes(nights.image.read_bytes())
    run("qemu-img", "compare", "-q", nights.file(1, ".qcow2"), nights.path / "then.img")
    nights.change(2, 3, 4)
    nights.back_up()
    assert nights.restored() == nights.image.read_bytes()


def test_zeros_in_the_last_cell_are_hidden_in_a_compressed_one(nights: Nights) -> None:
    nights.back_up()
    with nights.image.open("r+b") as file:
        file.seek(64 * CELL)
        file.write(bytes(700))
    nights.back_up("--compress")
    assert (nights.facts(1)["data_cells"], nights.facts(1)["zero_cells"]) == (0, 1)
    assert nights.restored() == nights.image.read_bytes()


def test_compressed_ones_are_as_good(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(1000) * 5000)
    nights.back_up("--compress", "--verify")
    assert nights.file(0, ".qcow2").stat().st_size < MIB
    image = nights.change(1, 20)
    nights.back_up("--compress", "--verify")
    snapfs("verify", nights.backups, "--all").ok()
    assert nights.restored() == image


def test_a_full_one_when_asked(nights: Nights) -> None:
    nights.back_up()
    made = nights.back_up("--full")
    assert (made["kind"], made["base"]) == ("full", None)
    assert nights.back_up()["base"] == nights.listed()[1]["name"]


def test_a_full_one_after_so_many_increments(nights: Nights) -> None:
    for _ in range(4):
        made = nights.back_up("--max-increments", "2")
    assert (made["kind"], made["why"]) == ("full", "there are 2 increments since the last one")


def test_a_full_one_when_increments_are_larger_than_it(nights: Nights) -> None:
    nights.back_up()
    for _ in range(2):
        overwrite(nights.image, 0, 3 * MIB)
        assert nights.back_up()["kind"] == "increment"
    made = nights.back_up()
    assert (made["kind"], made["why"]) == ("full", "the increments since the last one are larger than it is")


def test_a_full_one_when_the_size_has_changed(nights: Nights) -> None:
    nights.back_up()
    os.truncate(nights.image, 6 * MIB)
    made = nights.back_up()
    assert made["kind"] == "full"
    assert "the size of the image went from" in made["why"]
    assert nights.restored() == nights.image.read_bytes()


def test_the_directory_of_another_image_is_refused(nights: Nights) -> None:
    nights.back_up()
    other = nights.path / "other.img"
    nights.image.rename(other)
    snapfs("backup", other, nights.backups).refuses(2, "has the backups of", "--force")
    nights.back_up_of(other, "--force")
    assert len(nights.listed()) == 2


def test_with_a_format_a_directory_is_one_of_backups_that_stand_alone(nights: Nights) -> None:
    snapfs("backup", nights.image, nights.backups, "--format", "qcow2").ok()
    nights.back_up()
    assert len(nights.listed()) == 1
    assert len([name for name in nights.debris() if name.endswith((".qcow2", ".qcow2.json"))]) == 2


def test_restore_over_a_smaller_image_is_refused(nights: Nights) -> None:
    nights.back_up()
    target = nights.path / "target.img"
    target.write_bytes(bytes(MIB))
    snapfs("restore", nights.backups, target, "--force").refuses(1, "name an image of that size")


def test_a_single_file_is_restored_and_verified_through_its_chain(nights: Nights) -> None:
    first = nights.image.read_bytes()
    nights.back_up()
    nights.change(5)
    nights.back_up()
    snapfs("verify", nights.file(1, ".qcow2")).ok()
    snapfs("restore", nights.file(0, ".qcow2"), nights.path / "restored.img").ok()
    assert (nights.path / "restored.img").read_bytes() == first


def test_options_of_a_single_backup_are_refused(nights: Nights) -> None:
    nights.back_up()
    snapfs("backup", nights.image, nights.backups, "--manifest", nights.path / "m").refuses(2, "--manifest")
    snapfs("restore", nights.backups, nights.path / "r", "--keep-free").refuses(2, "--keep-free")
    snapfs("backup", nights.image, nights.path / "one", "--full").refuses(2, "--full")
    snapfs("backup", nights.image, nights.path / "one").ok()
    snapfs("verify", nights.path / "one", "--all").refuses(2, "--all")
    snapfs("restore", nights.path / "one", nights.path / "r", "--at", "2026-01-01").refuses(2, "--at")


def test_times_choose_the_newest_that_is_not_later(nights: Nights) -> None:
    nights.back_up()
    taken_at = nights.listed()[0]["taken_at"]
    assert nights.restored("--at", taken_at) == nights.image.read_bytes()
    assert nights.restored("--at", taken_at[:10]) == nights.image.read_bytes()
    snapfs("restore", nights.backups, nights.path / "r", "--at", "2001-01-01").refuses(2, "The oldest backup in")
    snapfs("restore", nights.backups, nights.path / "r", "--at", "monday").refuses(2, "neither a backup nor a time")


def test_all_files_are_as_private_as_the_image(nights: Nights) -> None:
    nights.image.chmod(0o640)
    nights.back_up()
    nights.change(3)
    nights.back_up("--mode", "600")
    modes = {path.name: path.stat().st_mode & 0o777 for path in nights.backups.iterdir()}
    second = nights.listed()[1]["name"]
    assert {mode for name, mode in modes.items() if name.startswith(f"{second}.")} == {0o600}
    assert {mode for name, mode in modes.items() if name.startswith(f"{nights.listed()[0]['name']}.")} == {0o640}
    assert modes["chain.json"] == 0o600


@pytest.mark.parametrize("name", [".hidden.img", "nbd:x,y=1.img", 'json:{"a"}', "two\nlines.img", " -q.img"])
def test_any_name_of_an_image_will_do(nights: Nights, name: str) -> None:
    nights.image = nights.image.rename(nights.path / name)
    nights.back_up()
    image = nights.change(3)
    assert nights.back_up()["kind"] == "increment"
    assert nights.restored() == image
    run(
        "qemu-img",
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        nights.file(1, ".qcow2"),
        nights.path / "restored.img",
    )
