"""Several backups of which some go, and what must be there then."""

from __future__ import annotations

import signal

from nightly_rig import CELL, Nights, run, snapfs

from snapfs.backups.chain import Chain

MOST = 200


def several(nights: Nights, count: int = 4) -> list[bytes]:
    """So many backups, each with other cells changed, some of them again, and some that become zeros."""
    images = [nights.image.read_bytes()]
    nights.back_up()
    for number in range(1, count):
        with nights.image.open("r+b") as file:
            file.seek((10 + number) * CELL)
            file.write(bytes(CELL))
        images.append(nights.change(number, number + 1, 9 + number, 64))
        nights.back_up()
    return images


def prune(nights: Nights, *words: str) -> None:
    snapfs("prune", nights.backups, *words).ok()


def check(nights: Nights, images: list[bytes]) -> None:
    """The backups are those, whole by every account."""
    listed = nights.listed()
    assert len(listed) == len(images)
    snapfs("verify", nights.backups, "--all").ok()
    for one, image in zip(listed, images, strict=True):
        assert nights.restored("--at", one["name"]) == image
        then = nights.path / "then.img"
        then.write_bytes(image)
        path = nights.backups / f"{one['name']}.qcow2"
        run("qemu-img", "check", "-q", path)
        run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, then)


# Any of them, as no rule chooses them.
PRUNE = """
import sys
from pathlib import Path
from snapfs.backups.chain import Chain
from snapfs.backups.pruning import Pruner
Pruner(Chain.load(Path(sys.argv[1])), lambda progress: None).prune(sys.argv[2:])
"""


def chain_of(nights: Nights) -> Chain:
    return Chain.load(nights.backups)


def silent(progress: object) -> None:
    """Nobody wants to know."""


def killed_at(step: int, nights: Nights) -> int:
    """The code of a prune that leaves the newest, and is killed before this step."""
    done = snapfs("prune", nights.backups, "--keep-last", "1", die_before=step)
    assert done.code in (0, -signal.SIGKILL), done.err
    return done.code
