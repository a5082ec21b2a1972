"""What every `snapfs backup` does before it reads, wherever the backup goes.

Its options are looked at, the new cut is taken, if one is asked for, and what is backed up is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

from snapfs.commands.snapshot import snapshot
from snapfs.destination.consent import Consent
from snapfs.destination.place import Place
from snapfs.errors import UsageError
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.imager.source import Source, open_source
from snapfs.options import BackupOptions

# Those that not every destination knows; where the option is called otherwise, how.
_SOME_KNOW: Final = {
    "format": "",
    "compress": "",
    "manifest": "",
    "resume": "",
    "verify": "",
    "rate_bytes_per_s": "--rate",
    "on_read_error": "",
    "mode": "",
    "full": "",
    "update": "",
    "max_increments": "",
    "skip_swap": "",
}


def refuse_others(options: BackupOptions, what: object, known: Container[str] = ()) -> None:
    """UsageError for an option that means nothing to `what`, which knows these fields of the options alone."""
    for field in fields(BackupOptions):
        if field.name in _SOME_KNOW and field.name not in known and getattr(options, field.name) != field.default:
            name = _SOME_KNOW[field.name] or "--" + field.name.replace("_", "-")
            raise UsageError(f"{name} means nothing to {what}; leave it out.")


def check_cut(options: BackupOptions) -> None:
    """UsageError when a new cut cannot be what is backed up."""
    if options.cut is not None and options.snapshot is not None:
        raise UsageError("--cut makes a new snapshot, and --snapshot names one; leave out one of them.")
    if options.resume and options.cut is not None:
        raise UsageError("--resume goes on with an old cut, and --cut makes a new one; leave out one of them.")
    if options.skip_swap and options.cut is not None:
        raise UsageError("What a new cut skips is said at the mount; give --skip-swap to snapfs mount.")


def check_device(place: Place, options: BackupOptions) -> None:
    """UsageError when a device is to be what only a file can."""
    if not place.is_device:
        return
    if options.format != "raw":
        raise UsageError(f"{place.named} is a device, and a device takes raw only; leave out --format.")
    if options.mode is not None:
        raise UsageError(f"{place.named} is a device, and keeps its mode; leave out --mode.")


def check_image(at: object, was: str, source: Source, force: bool, what: str, other: str) -> None:
    """UsageError when what is `at` a place, such as "a backup", is of another image, unless the user knows better."""
    now = source.facts["image"]
    if not force and Path(was).name != Path(now).name:
        raise UsageError(
            f"{at} has {what} of {was}, and this is {now}; name another {other}, or say --force if it is the same "
            "image."
        )


def cut_first(options: BackupOptions, consent: Consent) -> tuple[BackupOptions, dict[str, Any]]:
    """Take the cut, if one is asked for: the options of a backup of that very snapshot, which is released, and what
    was frozen for it."""
    if options.cut is None:
        return options, {}
    taken = snapshot(options.source, options.cut)
    for sentence in taken.problems:
        consent.note(sentence)
    facts = {"frozen": taken.frozen, "not_frozen": [asdict(one) for one in taken.not_frozen]}
    return replace(options, release=not options.is_stream, snapshot=taken.id), facts


@contextlib.contextmanager
def open_asked(options: BackupOptions) -> Iterator[Source]:
    """What is to be backed up. UsageError when there is nothing to be released, and that is asked for."""
    takes_damaged = options.on_read_error == "skip"
    with open_source(
        options.source, options.snapshot, takes_damaged=takes_damaged, skip_swap=options.skip_swap
    ) as source:
        if options.release and not isinstance(source, SnapshotSource):
            raise UsageError(f"{source.path} is not mounted with snapfs and owes nothing; leave out --release.")
        yield source
