"""Mount options as fstab has them, and the command line of `snapfs mount` that they mean."""

from __future__ import annotations

import click
import pytest

from snapfs.cli.mount import mount_command
from snapfs.cli.mount_helper import long_options, mount_words, split_options
from snapfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", []),
        ("rw,snap=/mnt/snap", ["rw", "snap=/mnt/snap"]),
        (",rw,,noauto,", ["rw", "noauto"]),
        (r"store=/a\,b,rw", ["store=/a,b", "rw"]),
        ('store="/a,b",rw', ["store=/a,b", "rw"]),
        (r"store=/a\\,rw", ["store=/a\\", "rw"]),
        ("store=/a b,rw", ["store=/a b", "rw"]),
        ('store=/a"b', ['store=/a"b']),
        ("store=/a\\", ["store=/a\\"]),
    ],
)
def test_options_end_at_commas_that_are_not_escaped(text: str, options: list[str]) -> None:
    assert list(split_options(text)) == options


def test_every_long_option_of_the_mount_is_a_mount_option() -> None:
    words = {word for option in mount_command.params for word in option.opts if word.startswith("--")}
    assert {f"--{name}" for name in long_options()} == words - {"--foreground", "--json", "--quiet"}


@pytest.mark.parametrize("name", long_options())
def test_a_mount_option_is_the_option_of_the_command(name: str) -> None:
    option = long_options()[name]
    value = option.type.choices[-1] if isinstance(option.type, click.Choice) else "16M"
    given = name if option.is_flag else f"{name}={value}"
    expected = f"--{given}"
    assert mount_words("disk.img", "live", ["rw", given, "snap=snap"]) == [expected, "--", "disk.img", "live", "snap"]
    assert mount_command.make_context("mount", [expected, "--", "disk.img", "live", "snap"])


@pytest.mark.parametrize(
    "option",
    [
        "defaults",
        "rw",
        "noauto",
        "nofail",
        "_netdev",
        "nodiratime",
        "user",
        "user=alice",
        "comment=x",
        "x-systemd.requires=/srv",
    ],
)
def test_what_is_for_others_is_passed_over(option: str) -> None:
    assert mount_words("disk.img", "live", [option, "snap=snap"]) == ["--", "disk.img", "live", "snap"]


def test_what_is_for_fuse_goes_there() -> None:
    words = mount_words("disk.img", "live", ["allow_other", "snap=snap", "noatime"])
    assert words == ["-o", "allow_other", "-o", "noatime", "--", "disk.img", "live", "snap"]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("protekt=all", "The mount option protekt=all is unknown; see mount.fuse.snapfs --help."),
        ("foreground", "The mount option foreground is unknown; see mount.fuse.snapfs --help."),
        ("fsname=other", "The mount option fsname=other is unknown; see mount.fuse.snapfs --help."),
        ("skip-swap=yes", "The mount option skip-swap takes no value; leave out =yes."),
        ("store", "The mount option store has no value; write store=VALUE."),
        ("ro", "The mount option ro cannot be: LIVE is there to be written to; read SNAP instead, or leave ro out."),
    ],
)
def test_a_mistyped_option_is_refused(option: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        mount_words("disk.img", "live", ["snap=snap", option])
    assert refused.value.sentence == sentence


def test_a_sloppy_mount_passes_over_what_nobody_knows() -> None:
    assert mount_words("d", "l", ["snap=s", "protekt=all"], is_sloppy=True) == ["--", "d", "l", "s"]


def test_a_mount_without_a_place_for_the_snapshot_is_refused() -> None:
    with pytest.raises(UsageError, match="option snap is missing"):
        mount_words("disk.img", "live", ["rw"])
