"""`mount.fuse.snapfs` and `umount.fuse.snapfs`: what mount(8) and umount(8) run for this type of filesystem.

Source: mount(8), "External helpers" and "Exit status"; fuse(8).

Rules:
- The options of a mount are the long options of `snapfs mount`, from its own table: there is no second list. What is
  about the command and not the mount (`--json`, `--foreground`) is none.
- SNAP is the option `snap`, as a mount has one directory alone.
- Whatever is for mount(8), systemd or people is passed over; what goes to FUSE is listed; anything else is refused:
  a word that is mistyped must not change what is protected. Only `-s` passes over it.
- umount(8) without its helper returns before the instance has ended, and a view that is in use then goes on alone.
  libmount asks for the helper where it looks into mountinfo: for users, and for a path that is not absolute. To root
  with an absolute one the type is only fuse, and there is no helper of ours for everybody's FUSE.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final

import click

from snapfs.cli import exit_code_of
from snapfs.cli.mount import mount_command
from snapfs.cli.types import PATH
from snapfs.errors import ExitCode, UsageError

PROGRAM: Final = "mount.fuse.snapfs"
UMOUNT_PROGRAM: Final = "umount.fuse.snapfs"
_SNAP: Final = "snap"
# Of the command, not of the mount.
_NOT_OF_A_MOUNT: Final = frozenset({"foreground", "json", "quiet"})
# What mount(8) and systemd have dealt with, or is so anyway.
PASSED_OVER: Final = (
    *("defaults", "rw", "auto", "noauto", "user", "nouser", "users", "owner", "group"),
    *("nofail", "_netdev", "relatime", "atime", "nodiratime", "comment", "uhelper"),
)
_PASSED_OVER_PREFIXES: Final = ("x-", "X-")
# What libfuse gives to the kernel, or knows itself.
FOR_FUSE: Final = (
    *("allow_other", "allow_root", "auto_unmount", "nosuid", "suid", "nodev", "dev", "noexec", "exec"),
    *("noatime", "sync", "dirsync", "async"),
)
_REFUSED: Final = {
    "ro": "LIVE is there to be written to; read {snap} instead, or leave ro out.",
    "remount": "What is mounted cannot be mounted otherwise; unmount it first (snapfs limit changes its limit).",
}
# A word up to the next comma that is neither escaped nor between quotation marks.
_OPTION: Final = re.compile(r'(?:\\.|"[^"]*"|[^,\\"]|["\\])+', re.DOTALL)
_ESCAPED: Final = re.compile(r'\\(.)|"([^"]*)"', re.DOTALL)


class MountExit(IntEnum):
    """How the helpers of mount(8) end."""

    DONE = 0
    USAGE = 1
    INTERRUPTED = 8
    FAILED = 32


_ENDS: Final[dict[int, MountExit]] = {
    ExitCode.DONE: MountExit.DONE,
    ExitCode.USAGE: MountExit.USAGE,
    ExitCode.INTERRUPTED: MountExit.INTERRUPTED,
}


def mount_main() -> None:
    """Mount, and end as helpers of mount(8) do."""
    _end(mount_helper_command)


def umount_main() -> None:
    """Unmount, and end as helpers of umount(8) do."""
    _end(umount_helper_command)


def _end(command: click.Command) -> None:
    code = exit_code_of(lambda: command.main(standalone_mode=False))
    sys.exit(_ENDS.get(code, MountExit.FAILED))


@click.command(
    PROGRAM,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    short_help="Mount IMAGE at LIVE and SNAP, for mount(8) and fstab.",
)
@click.argument("image")
@click.argument("live")
@click.option(
    "-o", "options", multiple=True, metavar="OPT,...", help="Mount options: snap=SNAP and what is said above."
)
@click.option("-f", "is_fake", is_flag=True, help="Look at the options alone; mount nothing.")
@click.option("-s", "is_sloppy", is_flag=True, help="Pass over options that nobody knows.")
@click.option("-v", "is_verbose", is_flag=True, help="Say where the views and the store are.")
@click.option("-n", "no_mtab", is_flag=True, help="Nothing: there is no /etc/mtab to be written.")
@click.option("-t", "fstype", metavar="TYPE", help="Nothing: the type is fuse.snapfs.")
@click.option("--foreground", is_flag=True, help="Stay in front, for a unit of systemd; log to stderr.")
def mount_helper_command(
    image: str,
    live: str,
    options: tuple[str, ...],
    is_fake: bool,
    is_sloppy: bool,
    is_verbose: bool,
    foreground: bool,
    **_: object,
) -> int:
    """Run by mount(8): mount -t fuse.snapfs IMAGE LIVE -o snap=SNAP,OPT,... is snapfs mount IMAGE LIVE SNAP.

    Each long option of snapfs mount is a mount option without its dashes, such as store=DIR, protect=all or
    skip-swap. Those of FUSE go to FUSE (allow_other, noatime, ...); nofail, noauto, user, _netdev, x-systemd.* and
    the like are for others and passed over. A comma in a value is written \\, or between double quotation marks.

    Exit codes are those of mount(8): 0 mounted, 1 wrong usage, 8 interrupted, 32 failed.
    """
    words = mount_words(image, live, [one for value in options for one in split_options(value)], is_sloppy=is_sloppy)
    if not is_verbose:
        words.insert(0, "--quiet")
    if foreground:
        words.insert(0, "--foreground")
    # Looks at every value; with -f nothing else is done.
    with mount_command.make_context(PROGRAM, words) as context:
        return 0 if is_fake else int(mount_command.invoke(context))


@click.command(
    UMOUNT_PROGRAM,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    short_help="End both views, for umount(8).",
)
@click.argument("path", metavar="LIVE|SNAP", type=PATH)
@click.option("-l", "is_lazy", is_flag=True, help="Hide this view at once; the instance ends when nobody uses it.")
@click.option("-f", "is_forced", is_flag=True, help="The same as -l.")
@click.option("-n", "no_mtab", is_flag=True, help="Nothing: there is no /etc/mtab to be written.")
@click.option("-v", "is_verbose", is_flag=True, help="Nothing: there is nothing to be said.")
@click.option("-r", "falls_back", is_flag=True, help="Nothing: a view that is busy stays as it is.")
@click.option("-t", "fstype", metavar="TYPE", help="Nothing: the type is fuse.snapfs.")
def umount_helper_command(path: Path, is_lazy: bool, is_forced: bool, **_: object) -> None:
    """Run by umount(8): umount LIVE is snapfs umount LIVE, which returns when all is written and it has ended.

    Exit codes are those of umount(8): 0 unmounted, 1 wrong usage, 8 interrupted, 32 failed, or not all could be
    written; stderr says what.
    """
    if is_lazy or is_forced:
        from snapfs.system.mounts import unmount

        unmount(path, lazy=True)
    else:
        from snapfs.commands.umount import umount

        umount(path)


def split_options(text: str) -> Iterator[str]:
    """The single options of one `-o`, as they are meant: escapes and quotation marks are resolved."""
    for match in _OPTION.finditer(text):
        yield _ESCAPED.sub(lambda found: found[1] or found[2] or "", match[0])


def long_options() -> dict[str, click.Option]:
    """The options of `snapfs mount` that are options of a mount, by their names."""
    found = {}
    for option in mount_command.params:
        if isinstance(option, click.Option):
            names = [word[2:] for word in option.opts if word.startswith("--")]
            found.update({name: option for name in names if name not in _NOT_OF_A_MOUNT})
    return found


def mount_words(image: str, live: str, options: Iterable[str], *, is_sloppy: bool = False) -> list[str]:
    """The command line of `snapfs mount` that these mount options mean. UsageError for one that nobody knows."""
    ours, words, snap = long_options(), [], ""
    for option in options:
        name, equals, value = option.partition("=")
        if name == _SNAP:
            snap = value
        elif name in ours:
            words += _words_of(name, ours[name], value if equals else None)
        elif option in FOR_FUSE:
            words += ["-o", option]
        elif name in _REFUSED:
            raise UsageError(f"The mount option {name} cannot be: {_REFUSED[name].format(snap='SNAP')}")
        elif not (name in PASSED_OVER or name.startswith(_PASSED_OVER_PREFIXES) or is_sloppy):
            raise UsageError(f"The mount option {option} is unknown; see {PROGRAM} --help.")
    if not snap:
        raise UsageError("The mount option snap is missing; say where the snapshot is shown: -o snap=DIR.")
    return [*words, "--", image, live, snap]


def _words_of(name: str, option: click.Option, value: str | None) -> list[str]:
    if option.is_flag and value is not None:
        raise UsageError(f"The mount option {name} takes no value; leave out ={value}.")
    if not option.is_flag and not value:
        raise UsageError(f"The mount option {name} has no value; write {name}=VALUE.")
    return [f"--{name}" if value is None else f"--{name}={value}"]
