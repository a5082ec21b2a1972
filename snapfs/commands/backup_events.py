"""`snapfs backup --on-event DIR`: hooks are told how it went."""

from __future__ import annotations

import time
from pathlib import Path

from snapfs.commands.backup import Made, backup
from snapfs.commands.backup_chain import Linked
from snapfs.commands.backup_pool import Pooled
from snapfs.commands.backup_repository import Kept
from snapfs.destination.consent import Consent
from snapfs.errors import SnapfsError
from snapfs.events.hooks import call_hooks, check_hooks
from snapfs.imager.progress import Report
from snapfs.options import BackupOptions
from snapfs.system.mounts import canonical_path

AnyMade = Made | Linked | Pooled | Kept


def backup_told(options: BackupOptions, report: Report, consent: Consent) -> AnyMade:
    """`backup`, and then the hooks are called, if there are any; a hook that fails is named, and changes nothing."""
    if options.on_event is None:
        return backup(options, report, consent)
    directory = canonical_path(options.on_event)
    check_hooks(directory)
    facts = {"SNAPFS_SOURCE": str(options.source), "SNAPFS_DEST": options.address or str(options.dest)}
    began_s = time.monotonic()
    try:
        made = backup(options, report, consent)
    except BaseException as error:
        facts |= {"SNAPFS_EVENT": "backup-failed", "SNAPFS_MESSAGE": _reason(error)}
        _call(directory, facts, began_s, consent)
        raise
    facts |= {"SNAPFS_EVENT": "backup-done", **_facts_of(made)}
    _call(directory, facts, began_s, consent)
    return made


def _call(directory: Path, facts: dict[str, str], began_s: float, consent: Consent) -> None:
    """An interrupt ends them, and nothing else: how the backup went is settled."""
    try:
        sentences = call_hooks(directory, {**facts, "SNAPFS_SECONDS": f"{time.monotonic() - began_s:.0f}"})
    except KeyboardInterrupt:
        sentences = [
            f"Interrupted while the hooks were told of {facts['SNAPFS_EVENT']}: that was ended, nothing else."
        ]
    for sentence in sentences:
        consent.note(sentence)


def _reason(error: BaseException) -> str:
    if isinstance(error, SnapfsError):
        return error.sentence
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


def _facts_of(made: AnyMade) -> dict[str, str]:
    """What was made, how much of the image it holds or was sent, and what of it could not be read."""
    if isinstance(made, Linked):
        name, data_bytes, unread = str(made.dest), made.facts.data_bytes, made.facts.unread.total_bytes
    elif isinstance(made, Pooled):
        name, data_bytes, unread = f"{made.image}@{made.snapshot}", made.sent_bytes, made.unread.total_bytes
    elif isinstance(made, Kept):
        name, data_bytes, unread = made.name, made.used_bytes, 0
    else:
        name, data_bytes, unread = str(made.dest), made.manifest.data_bytes, made.manifest.unread.total_bytes
    return {"SNAPFS_BACKUP": name, "SNAPFS_DATA_BYTES": str(data_bytes), "SNAPFS_UNREAD_BYTES": str(unread)}
