"""The image all rows work on: an ext4 with realistic data, and ranges of it known to be used or free.

Layout: one big file of programs, libraries and sources of this machine lies in one piece (mkfs.ext4 -d allocates
in order); `data` is where its blocks are, `free` a run of blocks that the filesystem calls free.
Every group of rows starts from a copy equal to this master, so the snapshot can be compared with it at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
BLOCK_BYTES = 4096
COPY_BYTES = 1 * MIB
TREE_INODES = 1 << 18
# Of mkfs.ext4: as many inodes and as large a journal whatever the size, so that what is used depends on the files.
SAME_METADATA = ("-N", str(TREE_INODES), "-J", "size=16")
SOURCES = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/include", "/usr/share", "/opt", "/usr/local")
# Neither text nor machine code, and compressed already: more of them would make the data less like a system disk.
SKIPPED_SUFFIXES = (".gz", ".xz", ".zst", ".png", ".jpg", ".whl", ".zip", ".woff2")


@dataclass(frozen=True)
class Range:
    """Bytes of the image."""

    offset: int
    length: int

    def head(self, length: int) -> Range:
        return Range(self.offset, min(length, self.length))


@dataclass(frozen=True)
class Master:
    """The image as it is at every cut; never written."""

    path: Path
    data: Range
    free: Range

    @property
    def image_bytes(self) -> int:
        return self.path.stat().st_size


def make_master(
    folder: Path, image_bytes: int, data_bytes: int, free_bytes: int, options: tuple[str, ...] = ()
) -> Master:
    """An ext4 image of `image_bytes` in `folder`, `data_bytes` of it realistic data, and its free range."""
    content = folder / "content"
    content.mkdir()
    write_realistic_data(content / "data", data_bytes)
    image = folder / "master.img"
    how = ("-q", "-b", str(BLOCK_BYTES), *options, "-d", str(content))
    run("mkfs.ext4", *how, str(image), f"{image_bytes // 1024}k")
    shutil.rmtree(content)
    return Master(image, file_range(image, "/data"), longest_free_range(image).head(free_bytes))


def make_tree_master(folder: Path, image_bytes: int, data_bytes: int) -> Master:
    """An ext4 image of `image_bytes` in `folder` with files of this machine, about `data_bytes`.

    What is used depends on the files only, whatever the size.
    """
    folder.mkdir()
    content = folder / "content"
    content.mkdir()
    copy_files(content, data_bytes)
    image = folder / "image.img"
    how = ("-q", "-b", str(BLOCK_BYTES), *SAME_METADATA, "-d", str(content))
    run("mkfs.ext4", *how, str(image), f"{image_bytes // 1024}k")
    shutil.rmtree(content)
    return Master(image, Range(0, 0), longest_free_range(image).head(MIB))


def copy_files(content: Path, length: int) -> None:
    """Files of this machine, a thousand in a folder, until they are `length` bytes or there are no more."""
    for number, source in enumerate(machine_files()):
        folder = content / str(number // 1000)
        folder.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / f"{number}-{source.name}"[:200])
        length -= source.stat().st_size
        if length <= 0 or number == TREE_INODES // 2:
            return


def write_realistic_data(path: Path, length: int) -> None:
    """Files of this machine one after the other, again from the start when there are too few."""
    with path.open("wb") as out:
        while out.tell() < length:
            before = out.tell()
            for source in machine_files():
                out.write(source.read_bytes()[: length - out.tell()])
                if out.tell() == length:
                    return
            if out.tell() == before:
                raise RuntimeError(f"no readable files under {', '.join(SOURCES)} to fill the image with")


def machine_files() -> Iterator[Path]:
    for top in SOURCES:
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix not in SKIPPED_SUFFIXES and path.is_file() and not path.is_symlink():
                    yield path


def file_range(image: Path, name: str) -> Range:
    """From the first to the last block of a file that lies in one piece but for the filesystem's own blocks."""
    blocks = [int(word) for word in run("debugfs", "-R", f"blocks {name}", str(image)).split()]
    first, last = min(blocks), max(blocks)
    if len(blocks) < (last - first) * 0.95:
        raise RuntimeError(f"mkfs.ext4 scattered {name} over the image, so no range of it is all used")
    return Range(first * BLOCK_BYTES, (last - first) // 256 * 256 * BLOCK_BYTES)


def longest_free_range(image: Path) -> Range:
    runs = re.findall(r"(?:Free blocks: |, )(\d+)-(\d+)", run("dumpe2fs", str(image)))
    merged: list[tuple[int, int]] = []
    for first, last in sorted((int(a), int(b)) for a, b in runs):
        if merged and first == merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    first, last = max(merged, key=lambda run: run[1] - run[0])
    first = -(-first // 256) * 256
    return Range(first * BLOCK_BYTES, (last + 1 - first) // 256 * 256 * BLOCK_BYTES)


def restore(master: Master, image: Path) -> None:
    """Make `image` equal to the master again by writing only what differs, so its layout on disk stays."""
    if not image.exists():
        run("cp", "--sparse=always", "--reflink=never", str(master.path), str(image))
    reload(image)
    with master.path.open("rb") as source, image.open("r+b") as target:
        for extent in data_extents(target.fileno()):
            for piece in pieces(extent):
                old = os.pread(source.fileno(), piece.length, piece.offset)
                if os.pread(target.fileno(), piece.length, piece.offset) != old:
                    os.pwrite(target.fileno(), old, piece.offset)
        punch_free(target.fileno(), master.free)
        os.fsync(target.fileno())


def reload(path: Path) -> None:
    """Have the whole file in the page cache, in small folios: read without read-ahead, which makes large ones.

    A write of 4 KiB into a large one takes ext4 eight times as long: whoever used the file last would decide the
    figures.
    """
    with path.open("rb") as file:
        # Only what has been written out can leave.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for extent in data_extents(file.fileno()):
            for piece in pieces(extent):
                os.pread(file.fileno(), piece.length, piece.offset)


def punch_free(fd: int, free: Range) -> None:
    # A row wrote here; without the hole the next one would find its blocks allocated already.
    run(
        "fallocate",
        "--punch-hole",
        f"--offset={free.offset}",
        f"--length={free.length}",
        f"/proc/{os.getpid()}/fd/{fd}",
    )


def data_extents(fd: int) -> Iterator[Range]:
    """What is not a hole."""
    end = os.fstat(fd).st_size
    offset = 0
    while offset < end:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield Range(start, offset - start)


def pieces(extent: Range) -> Iterator[Range]:
    end = extent.offset + extent.length
    for offset in range(extent.offset, end, COPY_BYTES):
        yield Range(offset, min(COPY_BYTES, end - offset))


def run(*command: str) -> str:
    """Output of a command that must succeed; its own words when it does not."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
