"""What pyproject.toml cannot say: where the engine is installed, and an sdist that is the same bytes each time.

`cow` is no package of its own where it is installed, but lies within `snapfs`, which finds it there.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.sdist import sdist

EPOCH_S = int(os.environ.get("SOURCE_DATE_EPOCH", 0))
# Otherwise the folder that a module was built in would be part of it.
UNPLACED = ["-g0"]
# The permissions of what is built are part of it.
os.umask(0o022)


class SameSdist(sdist):
    """Neither the user nor the order of a directory is in it; the time is that of SOURCE_DATE_EPOCH."""

    def make_archive(self, base_name: str, format: str, root_dir=None, base_dir=None, owner=None, group=None) -> str:
        assert format == "gztar"
        top = Path(root_dir or ".", base_dir)
        name = f"{base_name}.tar.gz"
        with (
            open(name, "wb") as file,
            gzip.GzipFile("", "wb", mtime=EPOCH_S, fileobj=file) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in sorted([top, *top.rglob("*")]):
                archive.add(path, path.relative_to(top.parent), recursive=False, filter=_same)
        return name


def _same(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = EPOCH_S
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


setup(
    packages=[
        *find_packages(include=["snapfs", "snapfs.*"]),
        *(f"snapfs.{name}" for name in find_packages(include=["cow", "cow.*"])),
    ],
    package_dir={"snapfs.cow": "cow"},
    ext_modules=[
        Extension("snapfs.cow._faults", ["cow/_faults.c"], extra_compile_args=UNPLACED),
        # Without the headers of libfuse snapfs shows no holes, and says so.
        Extension(
            "snapfs.fuse._operations",
            ["snapfs/fuse/_operations.c"],
            libraries=["fuse3", "dl"],
            extra_compile_args=UNPLACED,
            optional=True,
        ),
    ],
    cmdclass={"sdist": SameSdist},
)
