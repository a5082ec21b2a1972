"""The map of used blocks of the present snapshot, computed in a process of its own.

It reads the snapshot view, which cannot change any more, so writers never wait for it. It is a program
(`python -m snapfs.servers.mapper`) that leaves two files in the directory of the cut: what is free (see
`free_file`) and `regions.json`, what was found where. `maps` starts it and takes the first over.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from snapfs.log import configure_log
from snapfs.servers.free_file import write_free
from snapfs.servers.notes import write_regions
from snapfs.stacks import dump_stacks_on_signal
from snapfs.system.mounts import open_beside
from snapfs.system.view_mounts import mounts_of, view_on
from snapfs.usedmap.result import ImageMap
from snapfs.usedmap.scan import scan
from snapfs.usedmap.unrest import distrust_mounted, distrust_written

_NICENESS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="snapfs.servers.mapper")
    parser.add_argument("device", help="the number of the snapshot view's filesystem, MAJOR:MINOR")
    parser.add_argument("name", help="the file in it")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--log-fd", type=int, help="the log of the instance")
    parser.add_argument("--block-bytes", type=int, required=True)
    parser.add_argument("--sector-bytes", type=int)
    parser.add_argument("--skip-swap", action="store_true")
    parser.add_argument("--frozen", type=int, action="append", default=[])
    parser.add_argument("--not-frozen", type=int, action="append", default=[])
    parser.add_argument("--written", type=json.loads, metavar="[OFFSET,LENGTH,NAME]", action="append", default=[])
    options = parser.parse_args(arguments)
    configure_log(options.log_fd, "snapfs-mapper")
    dump_stacks_on_signal()
    os.nice(_NICENESS)
    try:
        _make(options)
    except OSError as error:
        # Whoever started it logs the last line.
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(f"{error.strerror or error}{where}")


def _make(options: argparse.Namespace) -> None:
    # The user may unmount the view meanwhile.
    fd = open_beside(_point(options.device) / options.name)
    size_bytes = os.fstat(fd).st_size
    image_map = scan(
        fd,
        size_bytes,
        options.block_bytes,
        sector_bytes=options.sector_bytes,
        skip_swap=options.skip_swap,
        frozen_by_us=options.frozen,
    )
    for offset in options.not_frozen:
        distrust_mounted(image_map, offset)
    for offset, length, name in options.written:
        distrust_written(image_map, fd, offset, length, name, options.frozen)
    write_map(image_map, options.directory)
    # The kernel has read ahead, into free blocks too, which are to read as zeros from now on.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _point(device: str) -> Path:
    mounts = mounts_of(view_on(device))
    if not mounts:
        raise FileNotFoundError(errno.ENOENT, "the snapshot view is not mounted", device)
    return mounts[0].mount_point


def write_map(image_map: ImageMap, directory: Path) -> None:
    """Leave the map in `directory`; `regions.json` comes last and says that the other is whole."""
    write_free(directory, image_map.used)
    write_regions(directory, image_map.regions)


if __name__ == "__main__":
    main()
