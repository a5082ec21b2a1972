"""``snapfs restore``: a backup back onto an image, checked against its hashes on the way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from snapfs.errors import SnapfsError, UsageError
from snapfs.imager.backup import sync_directory
from snapfs.imager.extents import free_ranges
from snapfs.imager.manifest import Manifest, manifest_of
from snapfs.imager.pace import Pace, yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.reader import BackupReader, open_backup
from snapfs.imager.target import FileTarget, partial_path, write_errors
from snapfs.options import format_size
from snapfs.system.image_lock import lock_image
from snapfs.system.image_probe import check_image_unused

Confirm = Callable[[str], bool]
_WAY_OUT = "restore again"


@dataclass(frozen=True)
class RestoreOptions:
    """One `snapfs restore`, as asked for."""

    backup: Path
    image: Path
    manifest: Path | None = None
    force: bool = False
    keep_free: bool = False
    verify: bool = False
    rate_bytes_per_s: int | None = None


def restore(options: RestoreOptions, report: Report, confirm: Confirm) -> Manifest:
    """Write the image. SnapfsError: a new image has not got its name; one that was there is only half restored."""
    manifest = manifest_of(options.backup, options.manifest)
    with open_backup(options.backup, manifest) as reader:
        if options.image.exists():
            _check_existing(options, manifest, confirm)
            _write(reader, options.image, options, report, is_new=False)
        else:
            with _new_image(options.image) as partial:
                _write(reader, partial, options, report, is_new=True)
    return manifest


def _check_existing(options: RestoreOptions, manifest: Manifest, confirm: Confirm) -> None:
    image = options.image
    if image.is_dir():
        raise UsageError(f"{image} is a directory; name the image to restore to.")
    if not (image.is_file() or image.is_block_device()):
        raise UsageError(f"{image} is neither a file nor a block device; name the image to restore to.")
    if os.path.samefile(image, options.backup):
        raise UsageError(f"{image} is the backup itself; name another image.")
    check_image_unused(image)
    if image.is_file() and image.stat().st_size != manifest.image_bytes:
        raise SnapfsError(
            f"{image} has {format_size(image.stat().st_size)}, the backup is of {format_size(manifest.image_bytes)}; "
            "name an image of that size, or a new one.",
            path=image,
        )
    if not options.force and not confirm(f"{image} will be overwritten. Go on?"):
        raise UsageError(f"{image} exists and would be overwritten; say --force, or name another image.")


@contextlib.contextmanager
def _new_image(image: Path) -> Iterator[Path]:
    """The name to write to; at the end it gets its own, or is removed again."""
    partial = partial_path(image)
    try:
        yield partial
        with write_errors(str(image), _WAY_OUT):
            os.rename(partial, image)
            sync_directory(image.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write(reader: BackupReader, path: Path, options: RestoreOptions, report: Report, *, is_new: bool) -> None:
    manifest = reader.manifest
    target = FileTarget(path, manifest.image_bytes, keep=not is_new, way_out=_WAY_OUT, name=str(options.image))
    try:
        lock_image(target.fd)
        yield_to_others()
        if not options.keep_free:
            for offset, length in free_ranges((h.extent for h in manifest.extents), manifest.image_bytes):
                target.write_zeros(offset, length)
        for hashed in manifest.extents:
            if hashed.digest is None:
                target.write_zeros(hashed.extent.offset, hashed.extent.length)

        def on_damage(index: int) -> None:
            raise reader.damage([index])

        reader.run("restore", target.write, on_damage, report, Pace(options.rate_bytes_per_s))
        target.sync()
    finally:
        target.close()
    if options.verify:
        written = Manifest(manifest.image_bytes, "raw", manifest.extents, unread=manifest.unread)
        with open_backup(path, written) as image:
            image.verify(report)
