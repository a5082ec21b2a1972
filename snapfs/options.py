"""What can be asked of a mount, a cut and a backup, and how sizes are written.

Rules:
- The choices and the defaults of the command line are those here.
- Every value of a mount is checked here, once, before anything is opened; whoever holds a `MountOptions` need not
  look again.
- Sizes are binary: `4K`, `4KiB` and `4096` are the same number. `4KB` is refused, because half its readers
  take it for 4000.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal, get_args

from snapfs.errors import UsageError
from snapfs.retention import Keep

Protect = Literal["used", "all"]
OnOverflow = Literal["break-snapshot", "break-oldest", "break-write", "wait"]
Durability = Literal["process", "power"]
Cache = Literal["writeback", "writethrough"]
Format = Literal["raw", "qcow2"]
Compress = Literal["zlib", "zstd"]
ChangesFormat = Literal["json", "domain", "borg", "rbd"]
OnReadError = Literal["stop", "skip"]
LogLevel = Literal["debug", "info", "warning", "error"]

DEFAULT_BLOCK_BYTES: Final = 4096
MIN_BLOCK_BYTES: Final = 512  # a sector: nothing writes less to a disk
MAX_BLOCK_BYTES: Final = 1 << 20  # the largest request the kernel sends through FUSE by default
DEFAULT_CHUNK_BYTES: Final = 4 << 20  # what object stores and deduplicating tools are made for
MIN_CHUNK_BYTES: Final = 1 << 20  # of so much each the times of changes are noted
MAX_CHUNK_BYTES: Final = 1 << 30  # a small change has all of it sent again
MAX_SIZE_BYTES: Final = (1 << 63) - 1  # off_t

_UNIT_BYTES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[KMGT]?)(?P<iec>IB)?", re.IGNORECASE)
_DECIMAL_UNIT: Final = re.compile(r"[0-9.]+\s*[KMGT]B", re.IGNORECASE)

MAX_NAME_CHARS: Final = 100
# What the newest is called, whichever that is, where each is shown by its name.
NEWEST_NAME: Final = "newest"
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_STDOUT: Final = Path("-")

# snapfs gives these to FUSE itself; a second word about them would contradict it.
_OWN_FUSE_OPTIONS: Final = frozenset(
    {"ro", "rw", "fsname", "subtype", "fd", "rootmode", "user_id", "group_id", "max_read"}
)


def parse_size(text: str) -> int:
    """Bytes meant by `text` ("4096", "4K", "1.5GiB"); `UsageError` when it is no size or an ambiguous one."""
    stripped = text.strip()
    match = _SIZE.fullmatch(stripped)
    if match is None or (match["iec"] and not match["unit"]):
        raise UsageError(_why_no_size(stripped))
    # Only where a size is given: it is among what takes longest to load.
    from fractions import Fraction

    size_bytes = Fraction(match["number"]) * _UNIT_BYTES[match["unit"].upper()]
    if size_bytes.denominator != 1:
        raise UsageError(f"{stripped!r} is not a whole number of bytes; give one such as 4K, 512M or 1.5G.")
    if size_bytes > MAX_SIZE_BYTES:
        raise UsageError(f"{stripped!r} is larger than any file can be; give a size below 8388608T.")
    return int(size_bytes)


def _why_no_size(text: str) -> str:
    if _DECIMAL_UNIT.fullmatch(text):
        clear = text[:-1].rstrip()
        return f"{text!r} may mean powers of 1000 or of 1024; write {clear} for powers of 1024."
    return f"{text!r} is no size; give a number with K, M, G or T (powers of 1024), such as 4K, 512M or 1.5G."


def check_name(name: str) -> None:
    """UsageError unless a snapshot may be called `name`: it is a name of a directory, and of a word in a shell. It is
    not written as the id of another one is: who deletes by that would not know which goes."""
    if _ID.fullmatch(name):
        raise UsageError(f"A snapshot cannot be called {name!r}, which is how ids are written; give another name.")
    if name == NEWEST_NAME:
        raise UsageError(f"A snapshot cannot be called {name!r}, which is whichever is; give another name.")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"A snapshot cannot be called {name!r}; give a name of letters, digits, and . _ - between them, of at "
            f"most {MAX_NAME_CHARS}."
        )


def format_size(size_bytes: int) -> str:
    """`size_bytes` for people: at most one decimal, powers of 1024 ("512 B", "4 KiB", "1.5 GiB")."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        value /= 1024
        if abs(value) < 1023.95 or unit == "EiB":
            break
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def split_fuse_options(values: Iterable[str]) -> tuple[str, ...]:
    """The single options of all `-o a,b` of a command line, in order."""
    return tuple(option.strip() for value in values for option in value.split(",") if option.strip())


@dataclass(frozen=True)
class MountOptions:
    """One `snapfs mount`, as asked for. Raises `UsageError` for a value that cannot be."""

    image: Path
    live: Path
    snap: Path
    store: Path | None = None
    block_bytes: int = DEFAULT_BLOCK_BYTES
    protect: Protect = "used"
    buffer_limit_bytes: int | None = None
    on_overflow: OnOverflow = "break-snapshot"
    durability: Durability = "process"
    cache: Cache = "writeback"
    fuse_options: tuple[str, ...] = ()
    foreground: bool = False
    single_pass: bool = False
    takes_snapshot: bool = True
    skip_swap: bool = False
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    # The hooks that are told of events.
    on_event: Path | None = None
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        check_block_bytes(self.block_bytes)
        check_chunk_bytes(self.chunk_bytes)
        check_buffer_limit(self.buffer_limit_bytes, self.block_bytes)
        _check_choice("--protect", self.protect, get_args(Protect))
        _check_choice("--on-overflow", self.on_overflow, get_args(OnOverflow))
        _check_choice("--durability", self.durability, get_args(Durability))
        _check_choice("--cache", self.cache, get_args(Cache))
        _check_choice("--log-level", self.log_level, get_args(LogLevel))
        for option in self.fuse_options:
            _check_fuse_option(option)


@dataclass(frozen=True)
class SnapshotOptions:
    """How to cut; times in seconds."""

    freezes: bool = True
    hooks: Path | None = None
    hook_timeout_s: float = 30.0
    freeze_timeout_s: float = 10.0
    quiesce: str | None = None
    # One with a name stays when there is a newer one.
    name: str = ""
    # Afterwards those with names go, or with names that match, but the last ones.
    keep: Keep | None = None
    match: str | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not self.name:
            raise UsageError(
                "--keep-last counts snapshots with a name, and this one would have none; give --name too, or thin "
                "out with snapfs delete."
            )
        if self.match is not None and self.keep is None:
            raise UsageError("--match alone says nothing of what to keep; give --keep-last too.")
        if self.match is not None and not fnmatchcase(self.name, self.match):
            raise UsageError(
                f"The name {self.name} does not match {self.match}, so the new snapshot would not count; change one "
                "of them."
            )


@dataclass(frozen=True)
class BackupOptions:
    """One `snapfs backup`, as asked for."""

    source: Path
    dest: Path
    # DEST as it was written: a path has lost what is doubled in an address.
    address: str = ""
    in_directory: bool = False
    # None: raw, and in a directory the next backup of a chain.
    format: Format | None = None
    # zlib of a qcow2, zstd of a stream.
    compress: Compress | None = None
    manifest: Path | None = None
    # By name or id; None: the newest.
    snapshot: str | None = None
    cut: SnapshotOptions | None = None
    release: bool = False
    resume: bool = False
    verify: bool = False
    rate_bytes_per_s: int | None = None
    on_read_error: OnReadError = "stop"
    mode: int | None = None
    # What is there is a raw backup, and only what has changed since is written.
    update: bool = False
    # The hooks that are told how it went.
    on_event: Path | None = None
    # Of a chain: a full one whatever there is; how many increments may follow one.
    full: bool = False
    max_increments: int = 30
    # Of an image that is not mounted: swap space and swap files are free.
    skip_swap: bool = False

    @property
    def is_stream(self) -> bool:
        return self.dest == _STDOUT and not self.in_directory


def check_block_bytes(block_bytes: int) -> None:
    """`UsageError` for what cannot be the size of a block."""
    power_of_two = block_bytes > 0 and block_bytes & (block_bytes - 1) == 0
    if not power_of_two or not MIN_BLOCK_BYTES <= block_bytes <= MAX_BLOCK_BYTES:
        raise UsageError(
            f"The block size cannot be {block_bytes} bytes; give a power of two from 512 to 1M, such as 4K."
        )


def check_chunk_bytes(chunk_bytes: int) -> None:
    """`UsageError` for what cannot be the size of the files of a snapshot that is shown as such."""
    power_of_two = chunk_bytes > 0 and chunk_bytes & (chunk_bytes - 1) == 0
    if not power_of_two or not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
        raise UsageError(
            f"The chunk size cannot be {chunk_bytes} bytes; give a power of two from 1M to 1G, such as 4M."
        )


def check_buffer_limit(limit_bytes: int | None, block_bytes: int) -> None:
    """`UsageError` for a limit, None for none, that no block would fit into."""
    if limit_bytes is not None and limit_bytes < block_bytes:
        raise UsageError(
            f"A buffer limit of {limit_bytes} bytes cannot hold a single block of {block_bytes} bytes; "
            "give a larger one, such as 1G, or none."
        )


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option} cannot be {value!r}; give {', '.join(choices[:-1])} or {choices[-1]}.")


def _check_fuse_option(option: str) -> None:
    name = option.partition("=")[0]
    if not name or "," in option or "\0" in option:
        raise UsageError(f"{option!r} is no single FUSE option; give options as -o NAME or -o NAME=VALUE.")
    if name in _OWN_FUSE_OPTIONS:
        raise UsageError(f"The FUSE option {name!r} is set by snapfs itself; leave it out of -o.")
