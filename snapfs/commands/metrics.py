"""`snapfs metrics`: what Prometheus is told of the instances, and of directories of backups, in its text format.

Rules:
- A registry of its own: what prometheus_client would tell of this process is nobody's business.
- Sizes in bytes, times in seconds, as Prometheus has them; what is not known is left out, never 0.
- An instance says what its owner likes: his user id is a label of all of it, so nobody can pass for another, and what
  cannot be told as it should be is left out, with all of that instance.
- A directory of backups is read without a lock: a backup that begins meanwhile must not fail of it.
- A file has its name only when it is whole, and everybody may read it: the node exporter is another user.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from cow import State
from snapfs.backups.chain import Chain, Entry
from snapfs.backups.facts import Facts
from snapfs.backups.layout import names_left
from snapfs.commands.status import not_understood, statuses_by_store
from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.place import Place, look_at
from snapfs.destination.result import new_result
from snapfs.errors import SnapfsError, UsageError
from snapfs.shown import shown
from snapfs.stamps import utc_time
from snapfs.system.mounts import canonical_path

# The node exporter reads no other, and nothing else is replaced unasked.
_SUFFIX: Final = ".prom"
_MODE: Final = 0o644
_STATES: Final = tuple(state.name.lower() for state in State)

# The user id of whoever an instance belongs to.
_USER: Final = "user"

Status = dict[str, Any]


@dataclass(frozen=True)
class Backups:
    """What is in a directory of backups; `last` are the facts of the newest, if they can be read."""

    directory: Path
    entries: list[Entry]
    last: Facts | None
    unfinished: int


@dataclass(frozen=True)
class Metrics:
    """The text; `problems` are sentences about what could not be asked or read."""

    text: bytes
    problems: list[str]


def metrics(directories: Sequence[Path]) -> Metrics:
    """Of all instances that this user can reach, and of these directories."""
    found: dict[tuple[str, str], Status] = {}
    with statuses_by_store() as (answers, silent):
        problems = [error.sentence for error in silent]
        for store, status in answers:
            status = {**status, _USER: str(os.stat(store).st_uid)}
            if _is_usable(status):
                found.setdefault(_labels_of(status), status)
            else:
                problems.append(not_understood(store).sentence)
    unheard = len(problems)
    backups: list[Backups] = []
    # Each name is there once, as of instances.
    asked = list({_name(directory): directory for directory in directories}.values())
    for directory in asked:
        try:
            backups.append(_read(directory))
        except SnapfsError as error:
            problems.append(error.sentence)
        except OSError as error:
            problems.append(f"{directory} cannot be read: {error.strerror}; name a directory of backups.")
    return Metrics(text_of(list(found.values()), unheard, backups, asked), problems)


def _is_usable(status: Status) -> bool:
    try:
        list(_of_instances([status]))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return False
    return True


def output_place(path: Path) -> Place:
    """Where to write; SnapfsError when nothing may be written there."""
    if path.suffix != _SUFFIX:
        raise UsageError(f"{path} is no name that the node exporter reads; name a file that ends in {_SUFFIX}.")
    place = look_at(path)
    if place.real.suffix != _SUFFIX:
        raise UsageError(
            f"{path} is a symbolic link to {place.real}, which does not end in {_SUFFIX}; remove it, or name a file."
        )
    return place


def write_metrics(place: Place, text: bytes) -> None:
    """In one step; what is there is replaced, since it is the one of before."""
    try:
        with new_result(place, Consent(force=True, quiet=True), Access(_MODE)) as path:
            path.write_bytes(text)
    except OSError as error:
        raise SnapfsError(
            f"{place.named} cannot be written: {error.strerror}; make room, or name another place.", path=place.named
        ) from error


def _read(directory: Path) -> Backups:
    real = canonical_path(directory)
    if not real.is_dir():
        raise SnapfsError(f"{directory} is no directory; name a directory of backups.", path=directory)
    chain = Chain.load(real)
    return Backups(directory, chain.entries, _last_facts(chain), len(names_left(real)))


def _last_facts(chain: Chain) -> Facts | None:
    """None when there is no backup, or it was merged or damaged meanwhile."""
    try:
        return None if chain.last is None else chain.facts(chain.last.name)
    except SnapfsError:
        return None


def text_of(found: Sequence[Status], silent: int, backups: Sequence[Backups], asked: Sequence[Path]) -> bytes:
    """All of it as Prometheus reads it; `asked` are the directories that were named, read or not."""
    registry = CollectorRegistry(auto_describe=False)
    readable = {one.directory for one in backups}
    registry.register(
        _Collected(
            [
                _gauge("snapfs_instances", "Mounted images that answer.", (), [((), len(found))]),
                _gauge("snapfs_instances_silent", "Mounted images that do not answer.", (), [((), silent)]),
                *_of_instances(found),
                *_of_backups(backups, [(path, path in readable) for path in asked]),
            ]
        )
    )
    return bytes(generate_latest(registry))


class _Collected(Collector):
    """What is known already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return [family for family in self._families if family.samples]


Value = float | int | bool | None
Sample = tuple[tuple[str, ...], Value]


def _gauge(name: str, text: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric([shown(one) for one in values], float(value))
    return family


# --- instances -----------------------------------------------------------------------------------------------


def _blocks(key: str) -> Callable[[Status], int]:
    return lambda status: int(status["snapshot"][f"{key}_blocks"] * status["block_bytes"])


_LABELS: Final = ("image", _USER)
_OF_EACH: Final[tuple[tuple[str, str, Callable[[Status], Value]], ...]] = (
    ("snapfs_image_bytes", "The size of the image.", lambda one: one["image_bytes"]),
    ("snapfs_image_in_place", "0 when the image was deleted, replaced or resized.", lambda one: _is_in_place(one)),
    ("snapfs_instance_error", "1 while status names an error.", lambda one: one["error"] is not None),
    ("snapfs_snapshot_taken_timestamp_seconds", "When the newest snapshot was taken.", lambda one: _taken_at(one)),
    ("snapfs_snapshot_used_bytes", "What of the newest snapshot is used.", _blocks("used")),
    ("snapfs_snapshot_owed_bytes", "What has to be preserved before it is overwritten.", _blocks("owed")),
    ("snapfs_snapshot_preserved_bytes", "What was preserved for the newest snapshot.", _blocks("preserved")),
    ("snapfs_snapshot_released_bytes", "What of the newest snapshot was let go.", _blocks("released")),
    ("snapfs_snapshot_changed_bytes", "What was written since the newest snapshot.", _blocks("changed")),
    ("snapfs_snapshot_lost_bytes", "What of the newest snapshot reads as errors.", _blocks("lost")),
    ("snapfs_snapshot_freeze_seconds", "How long was frozen for it.", lambda one: _freeze_s(one)),
    ("snapfs_checkpoints", "What backups have left to know what was written.", lambda one: len(one["checkpoints"])),
    ("snapfs_buffer_stored_bytes", "What the side buffer takes.", lambda one: one["buffer"]["stored_bytes"]),
    ("snapfs_buffer_raw_bytes", "What that is uncompressed.", lambda one: one["buffer"]["raw_bytes"]),
    ("snapfs_buffer_limit_bytes", "What it may take at most.", lambda one: one["buffer"]["limit_bytes"]),
    ("snapfs_buffer_writes_wait", "1 while live writes wait for room.", lambda one: one["buffer"]["writes_wait"]),
)


def _of_instances(found: Sequence[Status]) -> Iterator[Metric]:
    info = InfoMetricFamily("snapfs_instance", "Where the views and the store of an image are.", labels=_LABELS)
    for one in found:
        names = {key: one[key] for key in ("live", "snap", "store")}
        more = {"protect": one["snapshot"]["protect"], "on_overflow": one["buffer"]["on_overflow"]}
        info.add_metric([*_labels_of(one)], {key: shown(text) for key, text in (names | more).items()})
    yield info
    yield _gauge("snapfs_snapshot_state", "1 for the state of the newest snapshot.", *_states(found, _is_state))
    yield _gauge("snapfs_snapshots", "How many snapshots are in this state.", *_states(found, _count_of))
    for name, text, value in _OF_EACH:
        yield _gauge(name, text, _LABELS, [(_labels_of(one), value(one)) for one in found])


def _labels_of(status: Status) -> tuple[str, str]:
    """As they are written: the node exporter takes nothing at all from a file in which one is there twice."""
    return shown(status["image"]), status[_USER]


def _states(found: Sequence[Status], value: Callable[[Status, str], int]) -> tuple[tuple[str, ...], list[Sample]]:
    """A sample for each state, so that one that was left is 0 and not gone."""
    return (*_LABELS, "state"), [((*_labels_of(one), state), value(one, state)) for one in found for state in _STATES]


def _is_state(status: Status, state: str) -> int:
    return int(status["snapshot"]["state"] == state)


def _count_of(status: Status, state: str) -> int:
    return sum(one["state"] == state for one in status["snapshots"])


def _is_in_place(status: Status) -> bool:
    return bool(status["image_state"] == "in-place")


def _taken_at(status: Status) -> float | None:
    return _seconds(status["snapshot"]["taken_at"])


def _freeze_s(status: Status) -> float | None:
    freeze_ms = status["snapshot"]["freeze_ms"]
    return None if freeze_ms is None else freeze_ms / 1000


# --- directories of backups ----------------------------------------------------------------------------------


def _of_backups(backups: Sequence[Backups], asked: Sequence[tuple[Path, bool]]) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[Backups], Value]) -> Metric:
        return _gauge(name, text, ("directory",), [((_name(one.directory),), value(one)) for one in backups])

    yield _gauge(
        "snapfs_backups_readable",
        "0 when the directory of backups cannot be read.",
        ("directory",),
        [((_name(path),), is_readable) for path, is_readable in asked],
    )
    yield gauge("snapfs_backups", "How many backups there are.", lambda one: len(one.entries))
    yield gauge("snapfs_backups_full", "How many of them are full ones.", _fulls)
    yield gauge("snapfs_backups_bytes", "What their files take together.", _all_bytes)
    yield gauge("snapfs_backups_unfinished", "What is being made, or was interrupted.", lambda one: one.unfinished)
    yield gauge("snapfs_backup_last_success_timestamp_seconds", "When the newest was done.", _done_at)
    yield gauge("snapfs_backup_last_cut_timestamp_seconds", "Of when the newest is.", _cut_at)
    yield gauge("snapfs_backup_last_duration_seconds", "How long the newest took.", _duration_s)
    yield gauge("snapfs_backup_last_file_bytes", "The size of its file.", _of_last(lambda one: one.file_bytes))
    yield gauge("snapfs_backup_last_read_bytes", "What was read for it.", _of_last(lambda one: one.read_bytes))
    yield gauge("snapfs_backup_last_unread_bytes", "What could not be.", _of_last(lambda one: one.unread_bytes))
    yield gauge("snapfs_backup_last_verified_timestamp_seconds", "When any of them was verified last.", _verified_at)


def _name(directory: Path) -> str:
    return shown(os.path.abspath(directory))


def _of_last(value: Callable[[Entry], int]) -> Callable[[Backups], Value]:
    return lambda one: value(one.entries[-1]) if one.entries else None


def _fulls(backups: Backups) -> int:
    return sum(entry.kind == "full" for entry in backups.entries)


def _all_bytes(backups: Backups) -> int:
    return sum(entry.file_bytes for entry in backups.entries)


def _done_at(backups: Backups) -> float | None:
    return _seconds(backups.entries[-1].created_at) if backups.entries else None


def _cut_at(backups: Backups) -> float | None:
    return _seconds(backups.entries[-1].taken_at) if backups.entries else None


def _verified_at(backups: Backups) -> float | None:
    return max((time for entry in backups.entries if (time := _seconds(entry.verified_at))), default=None)


def _duration_s(backups: Backups) -> float | None:
    """From the cut on; None when the backup is of a snapshot that was there before it began."""
    last = backups.last
    if last is None or (last.cut is not None and "frozen" not in last.cut):
        return None
    began, ended = _seconds(last.taken_at), _seconds(last.created_at)
    return None if began is None or ended is None else max(0.0, ended - began)


def _seconds(text: Any) -> float | None:
    """The UNIX time; None when there is none, or it is of another hand."""
    try:
        return None if text is None else utc_time(text).timestamp()
    except (TypeError, ValueError):
        return None
