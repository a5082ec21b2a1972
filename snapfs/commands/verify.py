"""`snapfs verify`: whether a backup still is what was written."""

from __future__ import annotations

from pathlib import Path

from snapfs.imager.manifest import Manifest, manifest_of
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.reader import open_backup


def verify(backup: Path, manifest_file: Path | None, report: Report) -> Manifest:
    """Read all of it; SnapfsError names what is damaged. The manifest, for telling what it is."""
    manifest = manifest_of(backup, manifest_file)
    yield_to_others()
    with open_backup(backup, manifest) as reader:
        reader.verify(report)
    return manifest
